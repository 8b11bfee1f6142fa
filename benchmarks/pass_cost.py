"""What the ONNX pass itself costs: seconds and memory of whole processes, on a CPU.

`python -m benchmarks.pass_cost` measures every target, prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import _measure
from benchmarks._measure import (
    Check,
    Sample,
    entry_point,
    exponent,
    in_child,
    interleave,
    median,
    ratio,
)
from benchmarks._models import write_chain, write_mobilenet, write_stack
from dwr_rewrite import __version__

DWR = entry_point("dwr_rewrite.cli.rewrite:main")
SLIM = entry_point("onnxslim.cli:main")
SIM = entry_point("onnxsim:main")
LIBRARIES = (
    *("numpy", "onnx", "onnx-graphsurgeon", "protobuf", "onnxslim", "onnxsim"),
    *("onnxruntime-gpu", "onnxruntime", "torch", "transformers"),
)

OUT = "out"
"""Folder of the outputs in the temporary folder that a section works in."""

LINEAR = 1.1
"""Largest exponent that counts as linear."""

Section = tuple[Table, list[Check], Any]


def rewrite(model: Path, *options: str) -> list[str]:
    output = ["-o", f"{OUT}/dwr-{model.name}"]
    return [*DWR, str(model), *output, "--policy", "blocks:32", "--no-verify", *options]


def peers(folder: Path, quick: bool) -> Section:
    """Load, match, rewrite and save against onnxslim and onnxsim on the same file."""
    rounds = 3 if quick else 15
    models = {"dynamo": folder / "dynamo.onnx", "torchscript": folder / "torchscript.onnx"}
    for exporter, model in models.items():
        in_child(write_mobilenet, model, exporter, exporter == "dynamo")
    table = _table("MobileNetV2", "tool", "median s", "ratio to onnxslim [95 %]", "peak MiB")
    checks, data = [], {}
    for name, model in models.items():
        tools = {
            "dwr-rewrite": rewrite(model),
            "onnxslim": [*SLIM, str(model), f"{OUT}/slim.onnx"],
            "onnxsim": [*SIM, str(model), f"{OUT}/sim.onnx"],
        }
        samples = interleave(tools, rounds, folder)
        for tool, runs in samples.items():
            middle, low, high = ratio(runs, samples["onnxslim"])
            interval = f"{middle:.2f} [{low:.2f}, {high:.2f}]" if tool != "onnxslim" else "1"
            table.add_row(name, tool, f"{median(runs):.3f}", interval, _mib(_peak(runs)))
        middle, low, high = ratio(samples["dwr-rewrite"], samples["onnxslim"])
        measured = f"{middle:.2f} times its time [{low:.2f}, {high:.2f}]"
        target = f"MobileNetV2 ({name}) no slower than onnxslim"
        checks.append(Check(target, "at most 1.00 times", measured, high <= 1))
        data[name] = _plain(samples)
    return table, checks, data


def growth(folder: Path, quick: bool) -> Section:
    """Seconds against nodes, and the exponent of the time above the start-up."""
    sizes = [1000, 3000, 10_000] if quick else [1000, 3000, 10_000, 30_000, 100_000]
    chains = {size: folder / f"chain{size}.onnx" for size in (1, *sizes)}
    for size, path in chains.items():
        in_child(write_chain, path, size)
    commands = {
        f"{weights} {size}": rewrite(path, "--weights", weights)
        for weights in ("precomputed", "linked")
        for size, path in chains.items()
    }
    samples = interleave(commands, 1 if quick else 5, folder)
    table = _table("weights", "nodes", "median s", "s above start-up per 1000 nodes", "peak MiB")
    checks = []
    for weights in ("precomputed", "linked"):
        runs = {size: samples[f"{weights} {size}"] for size in chains}
        seconds = {size: median(runs[size]) for size in chains}
        for size in chains:
            each = (seconds[size] - seconds[1]) / size * 1000
            cells = f"{seconds[size]:.3f}", f"{each:.4f}" if size > 1 else "start-up"
            table.add_row(weights, f"{size:,}", *cells, _mib(_peak(runs[size])))
        # Below, the work takes less than the start-up, whose noise would decide the slope.
        middle, low, high = exponent({size: runs[size] for size in (1, *sizes[-3:])})
        measured = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        target, required = f"growth in nodes, {weights}", f"exponent at most {LINEAR}"
        checks.append(Check(target, required, measured, high <= LINEAR))
        largest = seconds[sizes[-1]]
        target = f"{sizes[-1]:,} nodes, {weights}"
        checks.append(Check(target, "under 30 s", f"{largest:.2f} s", largest < 30))
    return table, checks, _plain(samples)


def memory(folder: Path, quick: bool) -> Section:
    """Peak resident bytes against twice the bytes of input and output."""
    part = 4 if quick else 1  # of the channels
    stacks = {  # blocks, channels, kernel, pointwise, external
        "little of it depthwise": (5, 4096 // part, 3, True, False),
        "the same, external data": (5, 4096 // part, 3, True, True),
        "8 sites grow 32 times": (8, 1024 // part, 21, False, False),
        "1 site grows 32 times": (1, 8192 // part, 21, False, False),
    }
    one = folder / "one.onnx"
    in_child(write_chain, one, 1)
    models = {"MobileNetV2": folder / "mobilenet.onnx"}
    in_child(write_mobilenet, models["MobileNetV2"])
    for count, (name, shape) in enumerate(stacks.items()):
        models[name] = folder / f"stack{count}.onnx"
        in_child(write_stack, models[name], *shape)
    commands = {"one node": rewrite(one)}
    for name, model in models.items():
        external = ["--save-external-data"] if "external" in name else []
        commands[name] = rewrite(model, "--max-growth", "1G", *external)
    samples = interleave(commands, 1 if quick else 3, folder)
    start_up = _peak(samples["one node"])
    table = _table("model", "in MiB", "out MiB", "2 x (in + out)", "peak MiB", "above start-up")
    table.add_row("one node", "0", "0", "", _mib(start_up), "0")
    checks, data = [], {"one node": {"samples": _plain(samples)["one node"]}}
    for name, model in models.items():
        sizes = _size(model), _size(folder / OUT / f"dwr-{model.name}")
        peak, limit = _peak(samples[name]), 2 * sum(sizes)
        above = peak - start_up
        table.add_row(name, *map(_mib, (*sizes, limit, peak, above)))
        measured = f"{above / sum(sizes):.2f} times"
        target = f"memory above start-up, {name}"
        checks.append(Check(target, "at most 2 times in + out", measured, above <= limit))
        data[name] = {"in": sizes[0], "out": sizes[1], "samples": _plain(samples)[name]}
    return table, checks, data


LOADED = """
import json, sys
from dwr_rewrite.cli.rewrite import main
try:
    main()
except SystemExit:
    pass
json.dump(sorted({"torch", "onnxruntime"} & set(sys.modules)), open("loaded.json", "w"))
"""


def startup(folder: Path, quick: bool) -> Section:
    """The time to the help text, and what a rewrite without verification imports."""
    model = folder / "one.onnx"
    in_child(write_chain, model, 1)
    commands = {
        "dwr-rewrite --help": [*DWR, "--help"],
        "a bare interpreter": [sys.executable, "-c", "pass"],
        "one node, --no-verify": [sys.executable, "-c", LOADED, *rewrite(model)[len(DWR) :]],
    }
    samples = interleave(commands, 3 if quick else 15, folder)
    table = _table("start-up", "median s", "slowest s")
    for name, runs in samples.items():
        table.add_row(name, f"{median(runs):.3f}", f"{max(run.seconds for run in runs):.3f}")
    seconds = median(samples["dwr-rewrite --help"])
    loaded = json.loads((folder / "loaded.json").read_text())
    checks = [
        Check("dwr-rewrite --help", "under 0.3 s", f"{seconds:.3f} s", seconds < 0.3),
        Check("imported without verification", "neither torch nor onnxruntime",
              ", ".join(loaded) or "neither", not loaded),
    ]  # fmt: skip
    return table, checks, {"loaded": loaded, **_plain(samples)}


def _peak(samples: Sequence[Sample]) -> int:
    return max(sample.peak for sample in samples)


def _size(path: Path) -> int:
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _plain(samples: dict[str, list[Sample]]) -> dict[str, list[dict[str, float]]]:
    return {name: [asdict(sample) for sample in runs] for name, runs in samples.items()}


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="left" if column in LABELS else "right")
    return table


LABELS = ("MobileNetV2", "tool", "weights", "model", "start-up")
SECTIONS = {"peers": peers, "growth": growth, "memory": memory, "startup": startup}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pass_cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and few: writes no results")
    parser.add_argument("--only", choices=SECTIONS, help="measure one section")
    options = parser.parse_args()
    console, facts = Console(), _measure.host()
    libraries = {"dwr-rewrite": __version__, **_measure.versions(*LIBRARIES)}
    console.print(_measure.slug(facts), facts, libraries)
    verdicts, results = Table("target", "required", "measured", ""), {}
    for name in [options.only] if options.only else SECTIONS:
        # A folder of its own: onnxslim deletes files relative to the working directory.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, OUT).mkdir()
            table, checks, data = SECTIONS[name](Path(folder), options.quick)
        console.print(table)
        for check in checks:
            verdict = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
            verdicts.add_row(check.target, check.required, escape(check.measured), verdict)
        results[name] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": facts,
            "versions": libraries,
            "checks": [asdict(check) for check in checks],
            "samples": data,
        }
    console.print(verdicts)
    if not options.quick:
        console.print(f"written: {_measure.write('pass_cost', facts, results)}")


if __name__ == "__main__":
    main()
