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
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import _results, layers
from benchmarks._layers_summary import geometric_mean
from benchmarks._layers_work import DTYPES
from benchmarks._records import DamagedError, Results
from benchmarks._roofline_points import KEPT, REWRITTEN, ROLES, Point, points, rates
from dwr_rewrite.workload import DIRECTIONS

NEAR = 0.8
"""Fraction of the copy bandwidth from which a layer has nothing left to gain by itself."""


def table(found: Sequence[Point], results: Results) -> str:
    """Markdown: geometric means over the layers, and how many are near the copy bandwidth."""
    head = ["dtype", "batch", "direction", "layers"]
    head += [f"{role}: of copy" for role in ROLES]
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
    by_role = {role: [point for point in here if point.role == role] for role in ROLES}
    cells = [str(len({point.layer for point in here}))]
    cells += [_mean(point.of_copy for point in of_role) for of_role in by_role.values()]
    cells.append(str(sum(point.of_copy >= NEAR for point in by_role[KEPT])))
    cells.append(_mean(p.of_matrix for p in by_role[REWRITTEN] if p.of_matrix is not None))
    return cells


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{geometric_mean(found):.3f}" if found else ""


def write(results: Results, folder: Path) -> str:
    """Writes the table, its points and, where matplotlib is, the plots; the table."""
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
    if find_spec("matplotlib") is None:
        return f"{shown}\nno plot: matplotlib is missing; run this again where it is\n"
    from benchmarks._roofline_plot import plot

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
                print(write(_results.load(Path(folder) / "layers.json"), Path(folder)))
        elif not options.results:
            made.error("the path of a layers.json is needed, or --quick")
        for path in options.results:
            print(write(_results.load(path), path.parent))
    except DamagedError as error:
        made.error(str(error))


if __name__ == "__main__":
    main()
