"""Whole networks, rewritten by `auto` and not: no one may be slower.

`python -m benchmarks.models --out models.jsonl --shard 0/4 --minutes 8` runs the networks of
_networks.py in inference (batch 64, 1, 8) and training (batch 64), in torch (eager and compiled)
and in onnxruntime: the original under every setting that is free, and the network that `fx_rewrite`
or `onnx_rewrite` makes for this device, all in turn. `--resume` goes on where a run ended;
`--merge FILE...` writes models.json, models.md and, where matplotlib is, models.png, and ends with
1 if a rewritten network runs at less than 0.99 times the speed of its best free setting.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import _device, _models_report, _run, _steps
from benchmarks._auto import hasty, remembering
from benchmarks._layers_work import DType
from benchmarks._models_onnx import Onnx
from benchmarks._models_torch import Asked, Torch
from benchmarks._networks import BATCHES, NETWORKS, SMALL
from benchmarks._records import Record
from benchmarks._run import Task
from models.entry import Entry

Measure = Callable[[Asked], list[Record]]
DTYPES: tuple[DType, ...] = ("tf32", "bf16")
ENGINES = ("torch eager", "torch compiled", "onnxruntime")
LIBRARIES = ("transformers", "onnx", "onnxruntime-gpu", "onnxruntime")


def tasks(
    networks: Mapping[str, Entry], engines: Sequence[str], batches: Sequence[int],
    dtypes: Sequence[DType], with_torch: Measure, with_onnx: Measure,
) -> list[Task]:  # fmt: skip
    """All groups, engine by engine; onnxruntime runs inference in float32."""
    found: list[Task] = []
    for dtype in dtypes:
        for engine in engines:
            onnx = engine == "onnxruntime"
            if onnx and dtype in _steps.CAST:
                continue
            modes = [("inference", batch) for batch in batches]
            modes[1:1] = [] if onnx else [("training", batches[0])]
            for mode, batch in modes:
                for name, network in networks.items():
                    asked = Asked(network, mode, batch, dtype, engine == "torch compiled")
                    facts = {"network": name, "engine": engine, "mode": mode, "batch": batch,
                             "dtype": dtype}  # fmt: skip
                    key = " | ".join(map(str, facts.values()))
                    measure = partial(with_onnx if onnx else with_torch, asked)
                    found.append(Task(key, facts, measure))
    return found


def run(found: Sequence[Task], device: torch.device, out: Path, deadline: float, part: str) -> str:
    begun = _device.begin(
        "models", device, _steps.clock_name(device), LIBRARIES, shard=part,
        source=_device.source(_device.everything()),
    )  # fmt: skip
    with remembering(out):
        return _run.run(begun, found, out, deadline)


def merge(paths: Sequence[Path], folder: Path | None = None) -> tuple[str, bool]:
    """Joins result files; the table, and whether no network is slower.

    Raises:
        DamagedError: a file is damaged, or does not belong to the others.
    """
    return _models_report.write(_run.merge(paths), folder)


def quick(folder: Path) -> tuple[str, bool]:
    """A small network with every engine, on whatever there is; so hastily that it stays itself."""
    device, out = _device.pick(), folder / "models.jsonl"
    with_torch, with_onnx = Torch(device, 1.0, 0.0, hasty(device)), Onnx(device, 1.0, 0.5, 1e6)
    eager, *others = ENGINES
    found = tasks(SMALL, [eager], (2,), ("tf32",), with_torch, with_onnx)
    found += [
        task
        for task in tasks(SMALL, others, (2,), ("tf32",), with_torch, with_onnx)
        if task.facts["mode"] == "inference"  # compiling takes seconds
    ]
    told = run(found, device, out, math.inf, "0/1")
    shown, fine = merge([out], folder)
    return f"{shown}\n{told}", fine


def main() -> None:
    def part(options: argparse.Namespace, deadline: float) -> str:
        device = _device.pick()
        with_torch, with_onnx = Torch(device, 30.0, 20.0), Onnx(device, 30.0, 20.0)
        chosen = {name: NETWORKS[name] for name in options.networks}
        asked = options.engines, options.batches, options.dtypes
        found = tasks(chosen, *asked, with_torch, with_onnx)
        index, parts = options.shard
        return run(found[index::parts], device, options.out, deadline, f"{index}/{parts}")

    made = _run.parser("models", __doc__)
    made.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    made.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    made.add_argument("--batches", nargs="+", type=int, default=BATCHES,
                      help="the first is that of training too")  # fmt: skip
    _run.main(made, quick, part, merge)


if __name__ == "__main__":
    main()
