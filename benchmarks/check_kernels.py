"""Compiles our Triton kernels for sm_80, sm_90 and sm_100, and says what became of them.

`make check-kernels` or `python -m benchmarks.check_kernels`; no GPU is needed. Layers of every kind
of geometry, in every direction, dtype and layout, are launched on tensors of sizes and strides
alone; what would be launched is compiled by Triton and ptxas and disassembled. It fails where a
kernel spills registers, does not compile, has more shared memory than a program may have, or where
compiling all kernels of a first call takes longer than a few seconds. `--quick` compiles a few;
`--write` keeps the facts in benchmarks/results/compile/. They are facts of the compiler, not times
of a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _measure, _results
from benchmarks._compile_cases import (
    DTYPES,
    MULTIPROCESSORS,
    SHARED,
    Case,
    cases,
    compiled,
    layers,
    per_output,
    per_position,
)
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.workload import DIRECTIONS

LIMIT = 5.0
"""Seconds of processor time that compiling a first call may take; tuning may wait for longer."""

HEAD = ["layer", "direction", "dtype", "layout", "tile", "sm", "kernel", "registers", "spilled",
        "shared", "SASS", "per output", "s"]  # fmt: skip
QUICK = ("C128m1 k3x3 s1x1 p1x1 d1x1 on 56x56", "C512m1 k9 s1 p4 d1 on 1500 bias")


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a call."""
    if "failed" in row:
        return [row["failed"]]
    found: list[str] = []
    for each in row["kernels"]:
        if each["spilled"]:
            found.append(f"{each['kernel']} spills {each['spilled']} bytes a thread")
        if each["shared"] > SHARED[row["arch"]]:
            found.append(f"{each['kernel']} asks for {each['shared']} bytes of shared memory")
    seconds = sum(each["seconds"] for each in row["kernels"])
    if seconds > LIMIT and row["default"]:
        found.append(f"compiling took {seconds:.1f} s; {LIMIT:g} s is the limit")
    return found


def run(work: Sequence[Case], folder: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """The facts of every case, in order."""
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    os.environ.pop("TRITON_INTERPRET", None)  # read where kernels are defined, which is later
    os.environ["TRITON_FRONT_END_DEBUGGING"] = "1"  # or trimming an error's traceback may hang
    if jobs == 1:
        yield from (compiled(case, folder) for case in work)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(partial(compiled, folder=folder), work)


def table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The lines of a markdown table: one for each kernel of a call, as soon as it is known."""
    yield _results.markdown(HEAD, [])
    for row in rows:
        yield from (f"| {' | '.join(line)} |" for line in _lines(row))


def _lines(row: dict[str, Any]) -> list[list[str]]:
    call = [row["layer"], row["direction"], row["dtype"], row["layout"], row["tile"]]
    call.append(str(row["arch"]))
    if "failed" in row:
        return [[*call, row["failed"], *[""] * 6]]
    shown = _issued(row)
    return [
        [*call, kernel["kernel"], *(str(kernel[n]) for n in ("registers", "spilled", "shared")),
         str(sum(kernel["instructions"].values())), "" if i else shown, f"{kernel['seconds']:.1f}"]
        for i, kernel in enumerate(row["kernels"])
    ]  # fmt: skip


def kept(rows: Iterable[Any], found: list[Any]) -> Iterator[Any]:
    """The rows, each of which is appended to ``found`` as it passes."""
    for row in rows:
        found.append(row)
        yield row


def _issued(row: dict[str, Any]) -> str:
    """Instructions for an output, or what is known of a loop."""
    output, position = per_output(row), per_position(row)
    if output is not None:
        return f"{output:.1f}"
    longest = max(kernel["loop"] for kernel in row["kernels"])
    return f"loop of {longest}" if position is None else f"{position:.1f} a position"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How many there were, their extremes, and what is wrong."""
    kernels = [kernel for row in rows for kernel in row.get("kernels", ())]
    lines = [f"{len(rows)} calls, {len(kernels)} launches, Triton {version('triton')}"]
    if kernels:
        lines[0] += f"; most registers {max(k['registers'] for k in kernels)}"
    first = [sum(k["seconds"] for k in row["kernels"]) for row in rows
             if "kernels" in row and row["default"]]  # fmt: skip
    if first:
        lines.append(
            f"Compiling a first call takes {median(first):.1f} s of processor time by median, "
            f"{max(first):.1f} s at most (limit {LIMIT:g} s)."
        )
    wrong = [(row, fault) for row in rows for fault in faults(row)]
    for row, fault in wrong:
        names = ("layer", "direction", "dtype", "layout", "tile")
        lines.append(f"FAIL: {', '.join(row[n] for n in names)}, sm_{row['arch']}: {fault}")
    lines.append(f"{len(wrong)} faults" if wrong else "no spills, no failures")
    return "\n".join(lines)


def write(rows: Sequence[dict[str, Any]]) -> Path:
    """Every call and kernel as JSON; its path."""
    folder = _results.RESULTS / "compile"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "check_kernels.json"
    head = {"label": "facts of the compiler, not times of a GPU", "triton": version("triton"),
            "limit_s": LIMIT, "calls": len(rows)}  # fmt: skip
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')
    return path.relative_to(_measure.ROOT)


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that were asked for; the quick ones are a few on one architecture."""
    if options.quick:
        few = [layer for layer in layers() if layer.key in QUICK]
        own = cases(few, options.arch or [90], ("bf16",), options.tile)
        found = [case for case in own if case.default or options.tile]
    else:
        archs = options.arch or [*MULTIPROCESSORS]
        few = layers(options.layers)
        found = cases(few, archs, options.dtypes, options.tile, options.all)
    return [case for case in found if case.direction in options.directions]


def tile(text: str) -> str:
    try:
        return text and str(Tile.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.check_kernels", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--quick", action="store_true", help="a few kernels")
    made.add_argument("--layers", default="", metavar="TEXT", help="layers whose key contains it")
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    made.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    made.add_argument("--arch", nargs="+", type=int, choices=MULTIPROCESSORS, help="80, 90, 100")
    made.add_argument("--tile", type=tile, default="", help="only this tile, as Tile prints it")
    made.add_argument("--all", action="store_true", help="every dtype on every GPU, every tile")
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one a core)")
    made.add_argument("--write", action="store_true", help="keep the facts as JSON")
    made.add_argument("--cache", type=Path, metavar="DIR", help="kept, so that a next run is short")
    return made


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = options.cache or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for line in table(kept(run(chosen(options), folder, options.jobs), rows)):
            print(line, flush=True)
    print(summary(rows))
    if options.write:
        print(f"written: {write(rows)}")
    sys.exit(any(faults(row) for row in rows))


if __name__ == "__main__":
    main()
