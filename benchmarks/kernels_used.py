"""Which kernels torch and cuDNN pick for every form of every layer: why one wins.

`python -m benchmarks.kernels_used --out kernels.jsonl --shard 0/4 --minutes 8` runs the ways of
benchmarks.layers once each under torch.profiler and writes the kernels by name, with the
microseconds that the profiler saw; those are no measurement. `--resume` goes on, `--merge FILE...`
writes kernels_used.json and a table of those that take longest. It is a process of its own: the
profiler and CUDA graphs do not go together. On a CPU it names operators.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import _device, _results, _run, layers
from benchmarks._layers_calls import call_of
from benchmarks._layers_cudnn import SameError, UnsupportedError, backend, forced_by, settings
from benchmarks._layers_operands import Operands, operands
from benchmarks._layers_shapes import load
from benchmarks._layers_work import BATCHES, DTYPES, Group, Way, order_of_work, shard, ways
from benchmarks._records import DamagedError, Record, Results
from benchmarks._run import Task, refusal, still_there
from dwr_rewrite.timing import Call
from dwr_rewrite.workload import Layout

STATUS = {UnsupportedError: "unsupported", torch.OutOfMemoryError: "out of memory"}
FEW = 3
"""Kernels of a row that the table names."""


def kernels(call: Call, device: torch.device) -> dict[str, float]:
    """The kernels of one call with the microseconds of each, the longest first.

    What is chosen once, such as cuDNN's algorithm, has to be chosen already.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as seen:
        call()
        if gpu:
            torch.cuda.synchronize(device)
    found: dict[str, float] = {}
    for event in seen.events() or ():
        if gpu and event.device_type == DeviceType.CUDA:
            found[event.name] = found.get(event.name, 0.0) + event.device_time_total
        elif not gpu:
            found[event.name] = found.get(event.name, 0.0) + event.self_cpu_time_total
    return {name: round(found[name], 2) for name in sorted(found, key=found.__getitem__)[::-1]}


@torch.no_grad()
def look(group: Group, device: torch.device) -> list[Record]:
    """An entry for every way of a group."""
    given: dict[Layout, Operands] = {}
    entries: list[Record] = []
    for way, other in ways(group).items():
        entry: Record = {"way": way.name, "layout": way.layout, "form": way.form,
                         "setting": way.setting, "precomputed": way.precomputed}  # fmt: skip
        entries.append(entry)
        if other is not None:
            entry.update(status="same", same_as=other.name)
            continue
        try:
            with settings(group.dtype, way.setting):
                entry.update(_seen(group, way, given, device))
        except SameError:
            entry.update(status="same", same_as=Way(way.layout).name)
        except (RuntimeError, UnsupportedError) as error:
            entry.update(refusal(error, STATUS))
            del error
            still_there(device, entries)
    return entries


def _seen(group: Group, way: Way, given: dict[Layout, Operands], device: torch.device) -> Record:
    if group.dtype == "tf32" and device.type != "cuda":
        raise UnsupportedError("TF32 is a mode of CUDA devices")
    if way.layout == "channels_last" and len(group.layer.spatial) == 1:
        raise UnsupportedError("torch has no channels_last for one spatial axis")
    if way.layout not in given:
        given[way.layout] = operands(group, way.layout, 1, device)
    operand = given[way.layout]
    found: Record = {"backend": backend(group, way.width, operand)}
    if way.setting == "cudnn":
        found["how"] = forced_by(group, operand)
    call = call_of(group, way, operand, 1)
    for _ in range(2):
        call(0)
    seen = kernels(lambda: call(0), device)
    if not seen:
        raise UnsupportedError("the profiler saw no kernel")
    return {**found, "status": "ran", "kernels": seen}


def measure(groups: Sequence[Group], out: Path, deadline: float, part: str) -> str:
    device = _device.pick()
    begun = _device.begin(
        "kernels_used", device, "torch.profiler, one call", shard=part, source=layers.source()
    )
    tasks = [Task(g.key, layers.facts(g), lambda g=g: look(g, device)) for g in groups]
    return _run.run(begun, tasks, out, deadline)


def table(results: Results) -> str:
    """Markdown: by dtype, layout, batch, direction and form, the kernels that take longest."""
    if results.runs[0]["study"] != "kernels_used":
        raise DamagedError(f"these are results of {results.runs[0]['study']}, not of kernels_used")
    found: dict[tuple[Any, ...], list[tuple[str, ...]]] = {}
    for group in results.groups.values():
        for entry in group["entries"]:
            if entry["status"] == "ran":
                form = f"{entry['form']} {entry['setting']}" + " stored" * entry["precomputed"]
                row = (group["dtype"], entry["layout"], group["batch"], group["direction"], form)
                found.setdefault(row, []).append(tuple(entry["kernels"]))
    lines = [[*map(str, row), str(len(each)), _longest(each)] for row, each in found.items()]
    head = ["dtype", "layout", "batch", "direction", "form", "layers", "longest kernel (layers)"]
    title = _results.heading(results, "Kernels of depthwise layers")
    return f"{title}\n{_results.markdown(head, sorted(lines))}\n"


def _longest(each: Sequence[tuple[str, ...]]) -> str:
    counts = Counter(_short(names[0]) for names in each).most_common(FEW)
    return ", ".join(f"`{name}` ({count})" for name, count in counts)


def _short(name: str) -> str:
    """Without template arguments, of which some kernels have hundreds of characters."""
    return name.partition("<")[0].removeprefix("void ").replace("|", "/")


def merge(paths: Sequence[Path], folder: Path | None = None) -> tuple[str, bool]:
    results = _run.merge(paths)
    shown = table(results)
    return f"{shown}\nwritten: {_results.write(results, shown, folder)}", True


def quick(folder: Path) -> tuple[str, bool]:
    out = folder / "kernels_used.jsonl"
    groups = order_of_work(layers.SMALL, ("fp32", "bf16"), (1,), compiled=False)
    told = measure(groups, out, math.inf, "0/1")
    shown, fine = merge([out], folder)
    return f"{shown}\n{told}", fine


def main() -> None:
    def part(options: argparse.Namespace, deadline: float) -> str:
        groups = order_of_work(load(), options.dtypes, options.batches, compiled=False)
        index, parts = options.shard
        chosen = shard(groups, index, parts)
        return measure(chosen, options.out, deadline, f"{index}/{parts}")

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it logs two lines for every call
    made = _run.parser("kernels_used", __doc__)
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    made.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=BATCHES)
    _run.main(made, quick, part, merge)


if __name__ == "__main__":
    main()
