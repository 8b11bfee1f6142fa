"""The device behind an execution provider, and all that its times depend on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dwr_rewrite import nvidia
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import child
from dwr_rewrite.passes.onnx.provider import CPU, Provider
from dwr_rewrite.report import processor
from dwr_rewrite.tuning import Device

JOBS = ["-m", "dwr_rewrite.passes.onnx.jobs"]
"""What Python runs as the child process of a job that is called."""

OPTION = "option "
"""Begins the name of a fact that is an option of the provider."""

INDEX = "device_id"
"""The option that is no fact: equal devices of one machine give one answer."""

CACHE_BYTES = 128 << 20
"""What the cache of a device is taken for that does not tell; an RTX 5090 has an L2 of 96 MiB."""

START = 120.0
"""Seconds that it may take to load a provider: CUDA's libraries have gigabytes."""


@dataclass(frozen=True)
class Found:
    """A provider that loads here, and its device."""

    provider: Provider
    device: Device


@dataclass(frozen=True)
class Look:
    """A job: which device there is.

    Attributes:
        provider: as :func:`~dwr_rewrite.passes.onnx.providers.choose` takes it.
        options: for it.
    """

    provider: str | None
    options: Mapping[str, str] = field(default_factory=dict[str, str])

    def __call__(self) -> Found:
        """The device.

        Raises:
            DwrError: the provider is missing or does not load.
        """
        from dwr_rewrite.passes.onnx.providers import choose

        child.tell("looking for the device")
        provider = choose(self.provider, self.options)
        return Found(provider, describe(provider, self.provider is not None))


def look(provider: str | None, options: Mapping[str, str]) -> Found:
    """The device of a provider, or the best that there is; nothing is loaded into this process.

    Args:
        provider: as :func:`~dwr_rewrite.passes.onnx.providers.choose` takes it; None for a GPU if
            there is one, else the CPU, which is not the target then.
        options: for it.

    Raises:
        DwrError: the provider is missing or does not load.
    """
    found: Found
    try:
        found, _ = child.run(JOBS, Look(provider, options), START, lambda what: None)
    except child.ChildError as error:
        raise DwrError(f"the process that looked for {provider or 'a GPU'} {error}") from None
    return found


def describe(provider: Provider, asked: bool) -> Device:
    """The device of a provider that was loaded into this process.

    Args:
        provider: the provider.
        asked: the user named it; a CPU is a target only then.
    """
    import onnxruntime

    gpu = gpu_of(provider)
    options = {name: value for name, value in sorted(provider.options.items()) if name != INDEX}
    facts = {
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime build": _build(str(onnxruntime.get_build_info())),
        **{f"{OPTION}{name}": value for name, value in options.items()},
    }
    if gpu is None:
        name = "CPU" if provider.name == CPU else f"device {provider.device_id}"
        facts |= {"processor": processor(), "threads": str(_threads())}
    else:
        name = gpu.name
        facts["driver"] = nvidia.driver_version() or "unknown"
        facts["CUDA driver"] = gpu.cuda
        facts["cuDNN"] = nvidia.cudnn_version() or "unknown"
    return Device(name, provider.name, facts, asked or provider.name != CPU)


def provider_of(device: Device) -> Provider:
    """The provider that a device was measured with."""
    options = {
        name.removeprefix(OPTION): value
        for name, value in device.facts.items()
        if name.startswith(OPTION)
    }
    return Provider(device.engine, options)


def gpu_of(provider: Provider) -> nvidia.Gpu | None:
    """The NVIDIA device of a provider; None where it has another one."""
    return nvidia.gpu(provider.device_id) if provider.memory == "cuda" else None


def state_of(provider: Provider) -> dict[str, str]:
    """Clocks, power and temperature at this moment, where the device tells them."""
    return nvidia.state(provider.device_id) if provider.memory == "cuda" else {}


def cache_bytes(provider: Provider) -> int:
    """Of the device's cache; 0 on a host, whose inputs come from its cache in any case."""
    if provider.memory == "cpu":
        return 0
    gpu = gpu_of(provider)
    return CACHE_BYTES if gpu is None else gpu.l2_bytes


def _build(told: str) -> str:
    """The commit of a build, or all that it tells of itself."""
    found = re.search(r"git-commit-id=(\w+)", told)
    return found[1] if found else told


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
