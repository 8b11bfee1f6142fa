"""The depthwise layers of MobileNetV1 in a training step, added up from the layers' own times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import _paper
from benchmarks._layers_work import BATCHES, DTYPES, Group, Way
from benchmarks._records import Record, Results
from benchmarks._results import timing, timings_of
from dwr_rewrite.lowerings import is_kernel
from dwr_rewrite.timing import Paired, Timing
from dwr_rewrite.workload import DIRECTIONS, LAYOUTS

SIZE = 224


@dataclass(frozen=True)
class Network:
    """All 13 layers in the three directions, in NCHW.

    Attributes:
        dtype: of the operands.
        measured: groups of which the default and a kernel were timed.
        groups: how many there are.
        own: default over kernel in the tile that it takes by itself, with its interval.
        best: the same in the fastest tile of each.
    """

    dtype: str
    measured: int
    groups: int
    own: Paired | None
    best: Paired | None

    @property
    def name(self) -> str:
        return f"MobileNetV1's 13 layers, a training step of batch {BATCHES[0]}, {self.dtype}"

    @property
    def told(self) -> str:
        if self.own is None or self.best is None:
            return f"not measured ({self.measured} of {self.groups} convolutions)"
        return f"own tiles {_speedup(self.own)}, best tiles {_speedup(self.best)}"


def _speedup(pair: Paired) -> str:
    low, high = 1 / pair.interval.high, 1 / pair.interval.low
    return f"{1 / pair.ratio:.2f} [{low:.2f}, {high:.2f}]"


def networks(results: Results) -> list[Network]:
    """For each dtype of the results, and bf16 and fp32 in any case."""
    seen = {group["dtype"] for group in results.groups.values()} | {"bf16", "fp32"}
    return [_network(results, dtype) for dtype in DTYPES if dtype in seen]


def _network(results: Results, dtype: str) -> Network:
    rows: list[tuple[Timing, Timing, Timing]] = []
    asked = [
        Group(layer, BATCHES[0], dtype, direction).key
        for layer in _paper.layers(SIZE)
        for direction in DIRECTIONS
    ]
    for key in asked:
        row = _row(results.groups.get(key))
        if row is not None:
            rows.append(row)
    if len(rows) < len(asked):
        return Network(dtype, len(rows), len(asked), None, None)
    default, own, best = (together(column) for column in zip(*rows, strict=True))
    return Network(dtype, len(rows), len(asked), Paired(default, own), Paired(default, best))


def _row(group: Record | None) -> tuple[Timing, Timing, Timing] | None:
    """The default in NCHW, and our kernel there in its own and in its fastest tile."""
    if group is None:
        return None
    kernels = [e for e in group["entries"] if e["status"] == "timed" and is_kernel(e["form"])
               and e["layout"] == LAYOUTS[0]]  # fmt: skip
    own = [e for e in kernels if e["way"] == Way(LAYOUTS[0], "kernel").name]
    default = timings_of(group).get(Way(LAYOUTS[0]).name)
    if default is None or not own:
        return None
    fastest = min((timing(e) for e in kernels), key=lambda each: each.median)
    return default, timing(own[0]), fastest


def together(timings: Sequence[Timing]) -> Timing:
    """Of one after the other: sample by sample, of as many as all have."""
    return Timing(tuple(map(sum, zip(*(each.samples for each in timings), strict=False))))
