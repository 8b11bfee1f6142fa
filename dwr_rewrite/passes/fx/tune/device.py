"""What a torch device is: everything about it that changes how long a convolution takes."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import torch

from dwr_rewrite import nvidia
from dwr_rewrite.kernels import ops
from dwr_rewrite.passes.fx.tune import kernels
from dwr_rewrite.report import processor
from dwr_rewrite.tuning import Device

ENGINE = "torch"

CPU_CACHE = 32 << 20
"""Bytes of the last level of cache that is reckoned with on a CPU, which torch does not tell."""


def describe(device: torch.device) -> Device:
    """A device with the flags that torch has at this moment.

    Whether TF32 is allowed is no fact of it, but of every workload. A CPU is described as a target:
    who asks for one to be measured has said that it is.

    Args:
        device: a CPU, or a GPU with its index.
    """
    facts = {"torch": torch.__version__, **_flags()}
    if device.type == "cuda":
        return Device(torch.cuda.get_device_name(device), ENGINE, {**_gpu(device), **facts})
    cpu = {
        "device": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "mkldnn": str(torch.backends.mkldnn.enabled),
    }
    return Device(cpu["device"], ENGINE, {**cpu, **facts})


def cache_bytes(device: torch.device) -> int:
    """Size of the last level of cache."""
    if device.type != "cuda":
        return CPU_CACHE
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def state(device: torch.device) -> dict[str, str]:
    """Clocks, power and temperature at this moment, where the device tells them."""
    return nvidia.state(index_of(device)) if device.type == "cuda" else {}


def index_of(device: torch.device) -> int:
    """The number by which CUDA programs know a GPU; without one it is the current one."""
    index: Any = device.index  # None is possible, whatever torch's types say
    return torch.cuda.current_device() if index is None else index


def _gpu(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    found: dict[str, object] = {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "driver": nvidia.driver_version(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version("triton"),
        kernels.FACT: kernels.digest() if _runs_kernels(device) else None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _runs_kernels(device: torch.device) -> bool:
    """Whether our kernels run there, and not in Triton's interpreter, which is no device."""
    return ops.available(device) and os.environ.get("TRITON_INTERPRET") != "1"


def _flags() -> dict[str, str]:
    """Flags that change which kernel torch takes."""
    names = ("enabled", "benchmark", "deterministic", "depthwise_kernel")
    cudnn = torch.backends.cudnn
    flags = {f"cudnn.{name}": getattr(cudnn, name) for name in names if hasattr(cudnn, name)}
    flags["deterministic_algorithms"] = torch.are_deterministic_algorithms_enabled()
    return {name: str(value) for name, value in flags.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
