"""Every measured layer as a fraction of the ceilings that were measured in the same runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks._layers_operands import TORCH_DTYPES
from benchmarks._layers_shapes import Layer
from benchmarks._layers_work import Way
from benchmarks._records import Record, Results
from dwr_rewrite.workload import LAYOUTS

DEFAULT, KEPT, REWRITTEN = "default", "best kept", "best rewritten"
ROLES = (DEFAULT, KEPT, REWRITTEN)


@dataclass(frozen=True)
class Point:
    """One way of one layer; ``of_copy`` and ``of_matrix`` are fractions of the ceilings."""

    layer: str
    dtype: str
    batch: int
    direction: str
    role: str
    way: str
    us: float
    bytes: int
    flops: int
    of_copy: float
    of_matrix: float | None


def rates(results: Results) -> dict[str, float]:
    """Median over the runs of each ceiling: ``copy`` in bytes a second, dtypes in flop/s."""
    names = {name for run in results.runs for name in run["rates"]}
    return {
        name: statistics.median(r["rates"][name] for r in results.runs if name in r["rates"])
        for name in sorted(names)
    }


def points(results: Results) -> list[Point]:
    """The default, the fastest without a rewrite and the fastest rewritten one of every layer."""
    ceilings = rates(results)
    return [
        _point(group, role, entry, ceilings)
        for group in results.groups.values()
        if not group["compiled"]
        for role, entry in _roles(group)
    ]


def _roles(group: Record) -> Iterable[tuple[str, Record]]:
    timed = [entry for entry in group["entries"] if entry["status"] == "timed"]
    default = Way(LAYOUTS[0]).name
    chosen = {
        DEFAULT: [entry for entry in timed if entry["way"] == default],
        KEPT: [entry for entry in timed if entry["form"] == "keep"],
        REWRITTEN: [entry for entry in timed if entry["form"] != "keep"],
    }
    for role, entries in chosen.items():
        if entries:
            yield role, min(entries, key=lambda entry: statistics.median(entry["us"]))


def _point(group: Record, role: str, entry: Record, ceilings: dict[str, float]) -> Point:
    layer, batch, dtype = Layer.of(group["layer"]), group["batch"], group["dtype"]
    us = statistics.median(entry["us"])
    size = layer.elements(batch, entry["width"]) * TORCH_DTYPES[dtype].itemsize
    flops = layer.flops(batch, entry["width"])
    rate = ceilings.get(dtype)
    return Point(
        layer.key, dtype, batch, group["direction"], role, entry["way"], us, size, flops,
        size / us * 1e6 / ceilings["copy"], flops / us * 1e6 / rate if rate else None,
    )  # fmt: skip
