"""The plot of the roofline; the only part of it that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._layers_work import DTYPES
from benchmarks._roofline_points import DEFAULT, KEPT, REWRITTEN, Point
from dwr_rewrite.workload import DIRECTIONS

MARKERS = {DEFAULT: ("o", "tab:gray"), KEPT: ("^", "tab:blue"), REWRITTEN: ("s", "tab:orange")}


def plot(found: Sequence[Point], batch: int, ceilings: dict[str, float], title: str) -> Figure:
    """Flop/s against flops a byte, a panel for each direction and dtype, under its two roofs."""
    here = [point for point in found if point.batch == batch]
    dtypes = [dtype for dtype in DTYPES if any(point.dtype == dtype for point in here)]
    figure = Figure((3.4 * len(dtypes), 8), layout="constrained")
    panels = figure.subplots(len(DIRECTIONS), len(dtypes), squeeze=False, sharex=True, sharey="col")
    for row, direction in zip(panels, DIRECTIONS, strict=True):
        for axes, dtype in zip(row, dtypes, strict=True):
            _panel(axes, [p for p in here if (p.direction, p.dtype) == (direction, dtype)])
            _roofs(axes, ceilings["copy"], ceilings.get(dtype))
            axes.set_title(f"{direction}, {dtype}", fontsize="small")
            if direction == DIRECTIONS[-1]:
                axes.set_xlabel("flops executed per byte that must move", fontsize="small")
        row[0].set_ylabel("flop/s", fontsize="small")
    figure.suptitle(f"{title}, batch {batch}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _panel(axes: Axes, here: Sequence[Point]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for role, (marker, colour) in MARKERS.items():
        chosen = [point for point in here if point.role == role]
        x = [point.flops / point.bytes for point in chosen]
        y = [point.flops / point.us * 1e6 for point in chosen]
        axes.scatter(x, y, s=9, marker=marker, color=colour, alpha=0.7, label=role)


def _roofs(axes: Axes, copy: float, rate: float | None) -> None:
    low, high = 0.5, 5e4
    slanted = high if rate is None else rate / copy
    axes.plot([low, slanted], [low * copy, slanted * copy], color="black", lw=1, label="ceilings")
    if rate is not None:
        axes.plot([slanted, high], [rate, rate], color="black", lw=1)
