"""One layer in one direction: our kernel's times beside torch's, and the work that there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks._layers_operands import TORCH_DTYPES
from benchmarks._layers_rates import CPU_CACHE
from benchmarks._layers_shapes import Layer
from benchmarks._layers_summary import compiled_free, is_free
from benchmarks._layers_work import Way
from benchmarks._records import Record, Results
from benchmarks._results import timings_of
from dwr_rewrite.lowerings import KERNEL, is_kernel
from dwr_rewrite.workload import LAYOUTS

EITHER = "either"
OWN = "own"
"""What the tile that a kernel takes by itself is called."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's time in one layout and tile; microseconds."""

    layout: str
    tile: str
    us: float


@dataclass(frozen=True)
class Case:
    """A layer of one dtype, batch and direction in which our kernel was timed.

    Attributes:
        layer: its geometry.
        dtype: of the operands.
        batch: images.
        direction: which convolution of a training step.
        default_us: of torch as it comes, in NCHW.
        free: name and microseconds of the fastest setting without a rewrite.
        own: the kernel in the tile that it takes by itself, in its better layout.
        best: in the fastest tile and layout.
        first_s: seconds of the slowest first call of ``own``.
        bytes: that must move, each once.
        flops: two for every product.
        large: whether the bytes are more than the L2 holds.
        rates: measured ceilings; ``copy`` in bytes a second, dtypes in flop/s.
    """

    layer: Layer
    dtype: str
    batch: int
    direction: str
    default_us: float | None
    free: tuple[str, float] | None
    own: Kernel | None
    best: Kernel
    first_s: float
    bytes: int
    flops: int
    large: bool
    rates: Mapping[str, float]

    @property
    def of_copy(self) -> float:
        """Fraction of the copy bandwidth, in the best tile."""
        return self._fraction(self.best.us)

    @property
    def own_of_copy(self) -> float | None:
        """The same in the tile that the kernel takes by itself."""
        return None if self.own is None else self._fraction(self.own.us)

    @property
    def over_default(self) -> float | None:
        """Speed-up over torch as it comes, in the best tile."""
        return _over(self.default_us, self.best)

    @property
    def own_over_default(self) -> float | None:
        """The same in the tile that the kernel takes by itself."""
        return _over(self.default_us, self.own)

    @property
    def over_free(self) -> float | None:
        """Speed-up over the best free setting, in the best tile."""
        return _over(self.free and self.free[1], self.best)

    @property
    def own_over_free(self) -> float | None:
        """The same in the tile that the kernel takes by itself."""
        return _over(self.free and self.free[1], self.own)

    @property
    def bound(self) -> tuple[str, float]:
        """What takes longer at the measured ceilings, bytes or flops, and its microseconds."""
        times = {"bytes": self.bytes / self.rates["copy"] * 1e6}
        if "fp32" in self.rates:  # sums are kept in float32, whatever the operands are
            times["flops"] = self.flops / self.rates["fp32"] * 1e6
        name = max(times, key=lambda each: times[each])
        return name, times[name]

    def _fraction(self, us: float) -> float:
        return self.bytes / (us / 1e6) / self.rates["copy"]


def _over(us: float | None, kernel: Kernel | None) -> float | None:
    return None if us is None or kernel is None else us / kernel.us


def cases(results: Results, rates: Mapping[str, float]) -> list[Case]:
    """A case for each group in which a kernel was timed, in the order of measurement."""
    compiled = {of(g): g for g in results.groups.values() if g["compiled"]}
    cache = results.runs[0]["device"].get("l2_bytes", CPU_CACHE)
    found = (
        _case(group, compiled.get(of(group)), rates, cache)
        for group in results.groups.values()
        if not group["compiled"]
    )
    return [case for case in found if case is not None]


def of(group: Record) -> str:
    """What a group and its compiled one have in common."""
    return group["key"].rpartition(" ")[0]


def _case(
    group: Record, compiled: Record | None, rates: Mapping[str, float], cache: int
) -> Case | None:
    times = {way: timing.median * 1e6 for way, timing in timings_of(group).items()}
    timed = [e for e in group["entries"] if e["way"] in times and is_kernel(e["form"])]
    if not timed:
        return None
    kernels = [(e, _kernel(e, times[e["way"]])) for e in timed]
    own = [(e, kernel) for e, kernel in kernels if e["form"] == KERNEL]
    layer, batch = Layer.of(group["layer"]), group["batch"]
    size = layer.elements(batch) * TORCH_DTYPES[group["dtype"]].itemsize
    default = times.get(Way(LAYOUTS[0]).name)
    return Case(
        layer, group["dtype"], batch, group["direction"], default,
        _best_free(group, compiled, times, default), _fastest([k for _, k in own]),
        _fastest([kernel for _, kernel in kernels]),
        max((e["first_s"] for e, _ in own), default=0.0),
        size, layer.flops(batch), size > cache, rates,
    )  # fmt: skip


def _kernel(entry: Record, us: float) -> Kernel:
    return Kernel(entry["layout"], entry["form"].partition(":")[2] or OWN, us)


def _fastest(found: list[Kernel]) -> Any:
    """The kernel's own choice is there by its name too, which tells more."""
    return min(found, key=lambda each: (each.us, each.tile == OWN), default=None)


def _best_free(
    group: Record, compiled: Record | None, times: Mapping[str, float], default: float | None
) -> tuple[str, float] | None:
    """What torch.compile made was timed beside the default in other rounds, and is scaled to it."""
    free = {e["way"]: times[e["way"]] for e in group["entries"] if e["way"] in times and is_free(e)}
    if default is not None:
        speeds = compiled_free(compiled, EITHER)
        free |= {way: default / speed for way, speed in speeds.items()}
    return min(free.items(), key=lambda item: item[1], default=None)
