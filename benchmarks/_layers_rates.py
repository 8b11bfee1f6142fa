"""The two ceilings that a device reaches when asked for nothing else, and its cache."""

from __future__ import annotations

import statistics

import torch

from benchmarks._layers_calls import Call
from benchmarks._layers_clock import Clock
from benchmarks._layers_cudnn import settings
from benchmarks._layers_operands import TORCH_DTYPES
from benchmarks._layers_work import DTYPES, DType
from dwr_rewrite.passes.fx.tune.flags import flag

CPU_CACHE = 32 * 2**20
"""Bytes of the last level of cache that a rotation reckons with on a CPU."""


def cache_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_CACHE
    return torch.cuda.get_device_properties(device).L2_cache_size


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
    numbers = "tf32" if dtype == "tf32" else "ieee"
    with (
        flag(torch.backends.cuda.matmul, "fp32_precision", numbers),
        settings(dtype, "default"),
    ):
        return _seconds(clock, lambda _: a @ b)


def _seconds(clock: Clock, call: Call) -> float:
    clock.start()
    sample = clock.sampler(call, 4)
    sample()
    return statistics.median(sample() for _ in range(7)) / 1e6
