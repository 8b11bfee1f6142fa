"""What a choice can rest on: a device that is here, one that is elsewhere, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.tune.engine import ProviderBench
from dwr_rewrite.tuning import Device
from dwr_rewrite.tuning.names import means, words

HOST = "cpu"
"""The name of the target that is always here."""


@dataclass(frozen=True)
class Target:
    """What a model is to be fast on.

    Attributes:
        provider: of onnxruntime, to measure with here: ``cuda``, ``tensorrt``, ``openvino``,
            ``dml``, ``cpu``; None for what fits.
        options: for it, as onnxruntime takes them.
        name: of the device, which need not be here: ``H200``, ``cpu``; None for the GPU that is.
        min_speedup: how many times faster a model has to be.
        budget: seconds for measuring single convolutions.
    """

    provider: str | None = None
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str | None = None
    min_speedup: float = 1.02
    budget: float = 120.0

    def __post_init__(self) -> None:
        """Refuses what cannot be asked for.

        Raises:
            DwrError: says what.
        """
        for what, value in (("--min-speedup", self.min_speedup), ("--budget", self.budget)):
            if not isfinite(value) or value < 0:
                raise DwrError(f"{what} {value:g}: a finite number, 0 or more, expected")
        if self.name is not None and not words(self.name):
            raise DwrError(f"--target {self.name!r}: the name of a device expected, as in H200")


@dataclass(frozen=True)
class Here:
    """The device is here: everything can be measured."""

    bench: ProviderBench


@dataclass(frozen=True)
class Elsewhere:
    """The device is not here.

    Attributes:
        name: of the target.
        devices: that may have answered before and been recorded here.
    """

    name: str
    devices: Sequence[Device] = ()


@dataclass(frozen=True)
class Nowhere:
    """There is no GPU here, and none was named."""


Ground = Here | Elsewhere | Nowhere


def ground(
    target: Target,
    look: Callable[[str | None], ProviderBench],
    recorded: Callable[[], Sequence[Device]],
) -> Ground:
    """What a choice for a target rests on.

    Args:
        target: what is asked for.
        look: the bench of a provider; for None that of a GPU if one loads, else of the CPU, whose
            device is no target then.
        recorded: the devices that answered before.

    Raises:
        DwrError: the provider does not load, or its device is not the target.
    """
    if target.provider is not None:
        bench = look(target.provider)
        if target.name is not None and not means(target.name, bench.device.name):
            raise DwrError(f"--provider {target.provider} measures on {bench.device}, which is not "
                           f"the target {target.name}: leave one of them out")  # fmt: skip
        return Here(bench)
    if target.name is not None and target.name.lower() == HOST:
        return Here(look(HOST))
    bench = look(None)
    if target.name is None:
        return Here(bench) if bench.device.target else Nowhere()
    if bench.device.target and means(target.name, bench.device.name):
        return Here(bench)
    others = [device for device in recorded() if means(target.name, device.name)]
    return Elsewhere(target.name, others)
