"""Every form of a depthwise convolution against what torch does without a rewrite, by direction.

`python -m benchmarks.layers --out layers.jsonl --shard 0/4 --minutes 8` measures a part of the
layers of data/depthwise_layers.json, the most telling first, and adds a line to the file for each
group that is done; `--resume` goes on where a run ended. `--merge FILE...` joins the files into
benchmarks/results/<device>/layers.json and a table of the winners. `--quick` measures three small
layers anywhere and writes nothing into the results. On a CPU every time is labelled as not the
target's. Needs torch and numpy beside this checkout.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import _device, _layers_table, _run
from benchmarks._layers_clock import QUICK, Effort, clock_of
from benchmarks._layers_measure import Bench, measure
from benchmarks._layers_rates import calibrate
from benchmarks._layers_shapes import Layer, load
from benchmarks._layers_work import BATCHES, DTYPES, Group, order_of_work, shard
from benchmarks._run import Task
from dwr_rewrite.kernels import ops
from dwr_rewrite.passes.fx import functional

SMALL = (
    Layer(16, (3, 3), (8, 8), (1, 1), (1, 1), (1, 1), sets=("quick",)),
    Layer(12, (5, 5), (9, 9), (2, 2), (2, 2), (1, 1), multiplier=2, bias=True, sets=("quick",)),
    Layer(16, (4,), (20,), (2,), (0,), (1,), transposed=True, sets=("quick",)),
)
"""What `--quick` measures: no layer that a network has."""


def run(
    groups: Sequence[Group], out: Path, deadline: float, quick: bool, part: str,
    study: str = "layers", **more: Any,
) -> str:  # fmt: skip
    """Measures the groups that ``out`` lacks; why it ended.

    Args:
        groups: in the order of work.
        out: result file.
        deadline: of ``time.monotonic()``.
        quick: with little effort.
        part: of how many this is.
        study: which one this is.
        more: what its runs tell besides.

    Raises:
        DamagedError: ``out`` is damaged, or was measured elsewhere.
    """
    device = _device.pick()
    clock = clock_of(device)
    rates = calibrate(device, clock, quick)
    bench = Bench(device, clock, QUICK if quick else Effort(), rates, deadline)
    begun = _device.begin(
        study, device, clock.replayed, rates=rates, shard=part, source=source(), **more
    )
    tasks = [Task(group.key, facts(group), lambda g=group: measure(g, bench)) for group in groups]
    return _run.run(begun, tasks, out, deadline)


def facts(group: Group) -> dict[str, object]:
    return {"layer": asdict(group.layer), "batch": group.batch, "dtype": group.dtype,
            "direction": group.direction, "compiled": group.compiled}  # fmt: skip


def source() -> str:
    folder, kernels = Path(__file__).parent, Path(ops.__file__).parent
    files = [*folder.glob("*layers*.py"), *kernels.glob("*.py"), Path(functional.__file__)]
    return _device.source(files)


def merge(paths: Sequence[Path], folder: Path | None = None) -> str:
    """Joins result files; the table.

    Raises:
        DamagedError: a file is damaged, or does not belong to the others.
    """
    target, shown = _layers_table.write(_run.merge(paths), folder)
    return f"{shown}\nwritten: {target}"


def quick(folder: Path) -> str:
    """Measures a little and merges it, all inside ``folder``."""
    out = folder / "layers.jsonl"
    torch.set_num_threads(1)  # so small a layer is slower on several
    groups = order_of_work(SMALL, batches=(1,), compiled=False)
    groups.append(Group(SMALL[0], 1, "fp32", "forward", compiled=True))
    told = run(groups, out, math.inf, True, "0/1")
    return f"{merge([out], folder)}\n{told}"


def parser() -> argparse.ArgumentParser:
    made = _run.parser("layers", __doc__)
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    made.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=BATCHES)
    made.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return made


def measure_part(options: argparse.Namespace, deadline: float) -> str:
    if not torch.cuda.is_available():
        print("no CUDA device: these are times of a CPU, not the target")
    groups = order_of_work(load(), options.dtypes, options.batches, not options.no_compile)
    part, parts = options.shard
    return run(shard(groups, part, parts), options.out, deadline, False, f"{part}/{parts}")


def main() -> None:
    _run.main(
        parser(),
        lambda folder: (quick(folder), True),
        measure_part,
        lambda paths: (merge(paths), True),
    )


if __name__ == "__main__":
    main()
