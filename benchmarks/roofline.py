"""How near every measured layer comes to the device's measured ceilings.

`python -m benchmarks.roofline benchmarks/results/<device>/layers.json` reads what
`benchmarks.layers --merge` wrote, prints a table and writes roofline.json, roofline.md and one plot
for each batch beside it. The ceilings are the copy bandwidth and matrix rate measured in the same
runs; the bytes are those that must move, each once, and the flops those that a form executes, its
products with zeros included. `--quick` measures three small layers first and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import _layers_table, layers
from benchmarks._layers_operands import TORCH_DTYPES
from benchmarks._layers_records import DamagedError, Record, Results
from benchmarks._layers_shapes import DIRECTIONS, Layer
from benchmarks._layers_summary import geometric_mean
from benchmarks._layers_work import DTYPES, LAYOUTS, Way

DEFAULT, KEPT, REWRITTEN = "default", "best kept", "best rewritten"
MARKERS = {DEFAULT: ("o", "tab:gray"), KEPT: ("^", "tab:blue"), REWRITTEN: ("s", "tab:orange")}
NEAR = 0.8
"""Fraction of the copy bandwidth from which a layer has nothing left to gain by itself."""


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


def table(found: Sequence[Point], results: Results) -> str:
    """Markdown: geometric means over the layers, and how many are near the copy bandwidth."""
    head = ["dtype", "batch", "direction", "layers"]
    head += [f"{role}: of copy" for role in MARKERS]
    head += [f"{KEPT}: layers at {NEAR:.0%} of copy", f"{REWRITTEN}: of matrix rate"]
    lines = [head, ["---"] * len(head)]
    for batch in sorted({point.batch for point in found}):
        for dtype in DTYPES:
            for direction in DIRECTIONS:
                row = (dtype, batch, direction)
                here = [p for p in found if (p.dtype, p.batch, p.direction) == row]
                if here:
                    lines.append([dtype, str(batch), direction, *_cells(here)])
    device, ceilings = results.runs[0]["device"], rates(results)
    label = f" ({device['label']})" if device["label"] else ""
    told = [f"copy {ceilings['copy'] / 1e12:.3g} TB/s"]
    told += [f"{n} {ceilings[n] / 1e12:.3g} Tflop/s" for n in DTYPES if n in ceilings]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Roofline of {device['name']}{label}\n\nMeasured: {', '.join(told)}.\n\n{body}\n"


def _cells(here: Sequence[Point]) -> list[str]:
    by_role = {role: [point for point in here if point.role == role] for role in MARKERS}
    cells = [str(len({point.layer for point in here}))]
    cells += [_mean(point.of_copy for point in of_role) for of_role in by_role.values()]
    cells.append(str(sum(point.of_copy >= NEAR for point in by_role[KEPT])))
    cells.append(_mean(p.of_matrix for p in by_role[REWRITTEN] if p.of_matrix is not None))
    return cells


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{geometric_mean(found):.3f}" if found else ""


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


def write(results: Results, folder: Path) -> str:
    """Writes the table, its points and the plots into ``folder``; the table."""
    found, ceilings = points(results), rates(results)
    device = results.runs[0]["device"]
    if not found:
        raise DamagedError("no layer was timed in this file; there is nothing to draw")
    shown = table(found, results)
    data: dict[str, Any] = {
        "study": "roofline", "label": device["label"], "device": device, "rates": ceilings,
        "points": [asdict(point) for point in found],
    }  # fmt: skip
    (folder / "roofline.json").write_text(json.dumps(data) + "\n")
    (folder / "roofline.md").write_text(shown)
    title = device["name"] + (f" ({device['label']})" if device["label"] else "")
    for batch in sorted({point.batch for point in found}):
        name = folder / f"roofline-batch-{batch}.png"
        plot(found, batch, ceilings, title).savefig(name, dpi=110)
    return shown


def main() -> None:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("results", type=Path, nargs="*", metavar="LAYERS.JSON")
    made.add_argument("--quick", action="store_true", help="three small layers; writes no results")
    options = made.parse_args()
    try:
        if options.quick:
            with tempfile.TemporaryDirectory() as folder:
                layers.quick(Path(folder))
                print(write(_layers_table.load(Path(folder) / "layers.json"), Path(folder)))
        elif not options.results:
            made.error("the path of a layers.json is needed, or --quick")
        for path in options.results:
            print(write(_layers_table.load(path), path.parent))
    except DamagedError as error:
        made.error(str(error))


if __name__ == "__main__":
    main()
