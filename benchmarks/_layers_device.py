"""The device: what it is, and the two ceilings that it reaches when asked for nothing else."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import _measure
from benchmarks._layers_calls import Call
from benchmarks._layers_clock import Clock, GraphClock, ProcessorClock
from benchmarks._layers_cudnn import settings
from benchmarks._layers_operands import TORCH_DTYPES
from benchmarks._layers_work import DTYPES, DType
from dwr_rewrite.passes.fx import functional

NOT_THE_TARGET = "a CPU, not the target"
STATE = (
    "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
)
CPU_CACHE = 32 * 2**20
"""Bytes of the last level of cache that a rotation reckons with on a CPU."""


def pick() -> tuple[torch.device, Clock]:
    if torch.cuda.is_available():
        return torch.device("cuda"), GraphClock()
    return torch.device("cpu"), ProcessorClock()


def cache_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_CACHE
    return torch.cuda.get_device_properties(device).L2_cache_size


def facts(device: torch.device) -> dict[str, Any]:
    """What must be the same for two files to be one study."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "triton": _measure.versions("triton").get("triton"),
        "python": platform.python_version(),
    }
    if device.type != "cuda":
        host = _measure.host()
        return {"name": host["cpu"], "cores": host["cores"], "label": NOT_THE_TARGET, **found}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "capability": f"{properties.major}.{properties.minor}",
        "label": "",
        **found,
    }


def slug(found: dict[str, Any]) -> str:
    """The folder of a device's results."""
    if found["label"]:
        return _measure.slug({"cpu": found["name"], "cores": found["cores"]})
    return "-".join(re.findall(r"[a-z0-9]+", found["name"].lower()))


def state() -> dict[str, str]:
    """Driver, clocks, power limit and temperature now, as nvidia-smi tells them; empty without."""
    program = shutil.which("nvidia-smi")
    if program is None or not torch.cuda.is_available():
        return {}
    index = str(torch.cuda.current_device())
    command = [program, f"--query-gpu={STATE}", "--format=csv,noheader", f"--id={index}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    values = [value.strip() for value in told.stdout.split(",")]
    names = STATE.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def source() -> str:
    """A digest of the code that measures and of the product's code that is measured."""
    files = [*sorted(Path(__file__).parent.glob("*layers*.py")), Path(functional.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def header(device: torch.device, rates: dict[str, float]) -> dict[str, Any]:
    return {"device": facts(device), "rates": rates, "state": state(), "source": source(),
            "command": ["python", "-m", "benchmarks.layers", *sys.argv[1:]]}  # fmt: skip


def calibrate(device: torch.device, clock: Clock, quick: bool = False) -> dict[str, float]:
    """Measured ceilings: ``copy`` in bytes a second (read + written), and by dtype in flop/s.

    Random numbers are copied and multiplied: a GPU runs zeros faster.
    """
    size, side = (2**30, 8192) if device.type == "cuda" else (2**28, 1024)
    if quick:
        size, side = 2**24, 128
    found = {"copy": 2 * size / _copy(clock, device, size)}
    for dtype in DTYPES:
        if dtype != "tf32" or device.type == "cuda":
            found[dtype] = 2 * side**3 / _product(clock, device, dtype, side)
    return found


def _copy(clock: Clock, device: torch.device, size: int) -> float:
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _seconds(clock, lambda _: target.copy_(source))


def _product(clock: Clock, device: torch.device, dtype: DType, side: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(TORCH_DTYPES[dtype]) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        with settings(dtype, "default"):
            return _seconds(clock, lambda _: a @ b)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _seconds(clock: Clock, call: Call) -> float:
    clock.start()
    sample = clock.sampler(call, 4)
    sample()
    return statistics.median(sample() for _ in range(7)) / 1e6
