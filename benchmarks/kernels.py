"""Our depthwise kernels beside everything that torch has, by layer and direction.

`python -m benchmarks.kernels --out kernels.jsonl --shard 0/4 --minutes 8` measures a part of the
layers of data/depthwise_layers.json in bf16, fp32 and fp16: the ways of benchmarks.layers (torch as
it comes, cudnn.benchmark, cuDNN forced, channels_last, the diagonal forms, torch.compile with
max-autotune), the kernels as they come, and the tiles that tuning would try, all timed in turn and
each held against float64 first. `--resume` goes on where a run ended; `--merge FILE...` joins the
files into benchmarks/results/<device>/kernels.json and kernels.md. `--layers PATTERN` keeps the
layers whose key, set or example the regular expression is found in. `--quick` measures three small
layers anywhere. On a CPU the kernels run by aten, or with TRITON_INTERPRET=1 by Triton's
interpreter, and every time is labelled as not the target's.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import _device, _kernels_report, _results, _run, layers
from benchmarks._layers_calls import runs_by
from benchmarks._layers_shapes import Layer, load
from benchmarks._layers_work import BATCHES, DTYPES, DType, Group, Kernels, order_of_work, shard

TILES = 8
"""All of those that tuning tries."""

DEFAULT_DTYPES: tuple[DType, ...] = ("bf16", "fp32", "fp16")
"""The kernels multiply float32 as it is, so TF32 is off beside them; it can be asked for."""

TINY = (
    Layer(2, (3, 3), (4, 4), (1, 1), (1, 1), (1, 1), sets=("quick",)),
    Layer(2, (3,), (5,), (2,), (0,), (1,), transposed=True, sets=("quick",)),
)
"""What `--quick` gives Triton's interpreter, which is slow."""

FIRST: tuple[DType, ...] = ("bf16", "fp32")


def run(groups: Sequence[Group], out: Path, deadline: float, quick: bool, part: str) -> str:
    """Measures the groups that ``out`` lacks, with compilations of this run's own; why it ended.

    Raises:
        DamagedError: ``out`` is damaged, or was measured elsewhere.
    """
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as fresh:
        os.environ["TRITON_CACHE_DIR"] = fresh  # so that a first call is one
        try:
            by = runs_by(_device.pick())
            return layers.run(groups, out, deadline, quick, part, "kernels", kernels=by)
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


def cut_for(device: torch.device, tiles: int) -> Kernels:
    """On a CPU the tiles are those of an H100 or H200."""
    count = _device.facts(device).get("multiprocessors", 132)
    return Kernels(count, tiles)


def pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def matching(found: Sequence[Layer], wanted: re.Pattern[str]) -> list[Layer]:
    """The layers whose key, set or example has a match."""
    return [x for x in found if wanted.search(" ".join((x.key, *x.sets, x.example)))]


def merge(paths: Sequence[Path], folder: Path | None = None) -> str:
    """Joins result files; the summary. The file has a table of all layers, too.

    Raises:
        DamagedError: a file is damaged, or does not belong to the others.
    """
    results = _run.merge(paths)
    summary, whole = _kernels_report.tables(results)
    return f"{summary}\nwritten: {_results.write(results, whole, folder)}"


def quick(folder: Path) -> str:
    """Measures a little and merges it, all inside ``folder``."""
    out, device = folder / "kernels.jsonl", _device.pick()
    torch.set_num_threads(1)  # so small a layer is slower on several
    interpreted = runs_by(device) == "Triton's interpreter"
    asked = cut_for(device, 1 if interpreted else 2)
    small, dtypes = (TINY, FIRST[1:]) if interpreted else (layers.SMALL, FIRST)
    groups = order_of_work(small, dtypes, (1,), False, FIRST, asked)
    groups.append(Group(small[0], 1, "fp32", "forward", True, asked))
    told = run(groups, out, math.inf, True, "0/1")
    return f"{merge([out], folder)}\n{told}"


def parser() -> argparse.ArgumentParser:
    made = _run.parser("kernels", __doc__)
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DEFAULT_DTYPES)
    made.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=BATCHES)
    made.add_argument(
        "--layers", type=pattern, default="", metavar="PATTERN", help="a regular expression"
    )
    made.add_argument("--tiles", type=int, choices=range(1, TILES + 1), default=TILES,
                      help=f"most tiles to try, the kernels' own among them ({TILES})")  # fmt: skip
    made.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return made


def measure_part(options: argparse.Namespace, deadline: float) -> str:
    device = _device.pick()
    if device.type != "cuda":
        print(f"no CUDA device: times of a CPU, not the target; our kernels by {runs_by(device)}")
    chosen, compiled = matching(load(), options.layers), not options.no_compile
    groups = order_of_work(
        chosen, options.dtypes, options.batches, compiled, FIRST, cut_for(device, options.tiles)
    )
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
