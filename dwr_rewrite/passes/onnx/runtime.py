"""How long two model files take on a device, measured side by side in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import Shapes
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import child
from dwr_rewrite.passes.onnx.child import Progress
from dwr_rewrite.passes.onnx.provider import Provider
from dwr_rewrite.timing import Energy, Measurement, Paired, Runtime
from dwr_rewrite.tuning import Device

WORKER = ["-m", "dwr_rewrite.passes.onnx.runtime_worker"]
"""What Python runs as the child process."""


@dataclass(frozen=True)
class RuntimeJob:
    """What the child process is told; see :func:`time_models`."""

    reference: Path
    candidate: Path
    settings: Settings
    provider: str | None
    options: Mapping[str, str]
    budget: float


@dataclass(frozen=True)
class RuntimeResult:
    """The times of two models, and all that they depend on.

    Attributes:
        pair: the times of one inference.
        device: what ran them. A CPU is a target only where it was asked for: one that stands in for
            a missing GPU decides nothing.
        provider: of onnxruntime, with its options.
        shapes: of the inputs.
        state: clocks, power and temperature after it, where the device tells them.
        energy: of one inference, where the device counts it.
    """

    pair: Paired
    device: Device
    provider: Provider
    shapes: Shapes
    state: Mapping[str, str] = field(default_factory=dict[str, str])
    energy: Energy | None = None

    @property
    def runtime(self) -> Runtime:
        """As reports have it."""
        sizes = (f"{n} {'x'.join(map(str, s)) or 'scalar'}" for n, s in self.shapes.items())
        measured = Measurement.of(", ".join(("inference", *sizes)), self.pair)
        facts = {**self.device.facts, **self.state}
        label = label_of(self.device, self.provider)
        return Runtime(label, (measured,), energy=self.energy, facts=facts)


def label_of(device: Device, provider: Provider) -> str:
    """A device and how it is used, for a person."""
    return f"{device.name} ({provider})" + ("" if device.target else ", not the target")


def time_models(
    reference: Path,
    candidate: Path,
    settings: Settings,
    *,
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    budget: float = 10.0,
    progress: Progress = lambda what: None,
) -> RuntimeResult:
    """Times two model files on the same inputs, interleaved, in one process.

    The inputs are the first given case of the settings, else seeded normal values of the first
    shapes on which the reference runs.

    Args:
        reference: the original.
        candidate: the model in question.
        settings: inputs, shapes and seed; its timeout ends the child.
        provider: ``cuda``, ``tensorrt``, ``openvino``, ``dml``, ``cpu`` or a name as onnxruntime
            has it; None for a GPU if there is one, else the CPU, which is not the target then.
        provider_options: for it, as onnxruntime takes them: ``cudnn_conv_algo_search``,
            ``use_tf32``, ``prefer_nhwc``, ``enable_cuda_graph``, ``device_id``, ...
        budget: seconds for warm-up and rounds, without loading.
        progress: told what is going on.

    Raises:
        DwrError: the provider is missing or leaves operators to the CPU, a model does not run, the
            inputs do not fit, or the child crashed or ran out of time.
    """
    paths = reference.resolve(), candidate.resolve()
    job = RuntimeJob(*paths, settings, provider, dict(provider_options or {}), budget)
    result: RuntimeResult
    try:
        result, _ = child.run(WORKER, job, settings.timeout, progress)
    except child.ChildError as error:
        raise DwrError(
            f"the process that timed the models {error}: no time is known{error.remedy}"
        ) from None
    return result
