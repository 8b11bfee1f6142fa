"""What a device reaches when it is asked for one thing only: the rates of a cost model's target."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from dwr_rewrite.cost import target
from dwr_rewrite.passes.fx.tune.clock import Stopwatch, stopwatch
from dwr_rewrite.passes.fx.tune.device import cache_bytes
from dwr_rewrite.passes.fx.tune.flags import precision

SAMPLES = 7
"""Of each rate; the median counts."""

SECONDS = 4.0
"""For each rate, after which no further sample is taken: seven of them take half a minute."""


@dataclass(frozen=True)
class Effort:
    """How much is copied and multiplied.

    Attributes:
        bytes: of what is copied.
        side: of the square matrices.
    """

    bytes: int
    side: int


GPU = Effort(1 << 30, 8192)
"""2 GiB through the memory take 0.4 ms at 5 TB/s, a product of 1.1 Tflop 1 ms at 1 Pflop/s; at the
60 Tflop/s of a GPU's ordinary units 18 ms. All of them, a few times each, take seconds."""

CPU = Effort(1 << 28, 1024)
"""Several times the last level of cache; a product of 2 Gflop."""


def rates(device: str | torch.device, effort: Effort | None = None) -> dict[str, float]:
    """Measured ceilings of a device, as :meth:`dwr_rewrite.cost.Target.measured` takes them.

    Random numbers are copied and multiplied: a GPU runs zeros faster. 16-bit factors that do not go
    to matrix units are multiplied and summed in float32, so that they have no rate of their own.

    Args:
        device: a CPU, or a CUDA device.
        effort: how much; by default enough for the device to reach its rates.

    Returns:
        ``copy`` in bytes a second, read and written together; ``launch`` in seconds, the time of
        a kernel that does nothing, where one follows the other without gaps; ``l2_bytes``;
        ``multiprocessors`` (threads of a CPU); ``fma.float32`` and ``fma.float64``, and
        ``matrix.tf32``, ``matrix.float16`` and ``matrix.bfloat16`` where the device multiplies
        them, in flop/s.
    """
    where = torch.device(device)
    on_gpu, watch = where.type == "cuda", stopwatch(where)
    chosen = (GPU if on_gpu else CPU) if effort is None else effort
    with torch.no_grad(), watch.running():
        found = {
            "copy": 2 * chosen.bytes / _copy(watch, where, chosen.bytes),
            "launch": _launch(watch, where),
            "l2_bytes": float(cache_bytes(where)),
            "multiprocessors": float(_units(where)),
        }
        for name, dtype, tf32 in (
            (f"{target.FMA}float32", torch.float32, False),
            (f"{target.FMA}float64", torch.float64, False),
            (f"{target.MATRIX}tf32", torch.float32, True),
            (f"{target.MATRIX}float16", torch.float16, False),
            (f"{target.MATRIX}bfloat16", torch.bfloat16, False),
        ):
            if on_gpu or not tf32:
                with precision(tf32, products=True):
                    seconds = _product(watch, where, dtype, chosen.side)
                found[name] = 2 * chosen.side**3 / seconds
    return found


def _units(device: torch.device) -> int:
    if device.type != "cuda":
        return torch.get_num_threads()
    return torch.cuda.get_device_properties(device).multi_processor_count


def _copy(watch: Stopwatch, device: torch.device, size: int) -> float:
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return _seconds(watch, lambda: copy.copy_(source))


def _launch(watch: Stopwatch, device: torch.device) -> float:
    single = torch.zeros(1, device=device)
    return _seconds(watch, single.neg_)


def _product(watch: Stopwatch, device: torch.device, dtype: torch.dtype, side: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return _seconds(watch, lambda: torch.mm(a, b, out=product))


def _seconds(watch: Stopwatch, run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()  # what happens only once
    [sample] = watch.samplers([lambda _: run()], 1)
    samples = [sample()]
    while len(samples) < SAMPLES and time.perf_counter() - began < SECONDS:
        samples.append(sample())
    return median(samples)
