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
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import _layers_records as records
from benchmarks import _layers_table
from benchmarks._layers_clock import QUICK, Effort
from benchmarks._layers_device import calibrate, header, pick, state
from benchmarks._layers_measure import Bench, DeviceLostError, TimeIsUpError, measure
from benchmarks._layers_records import DamagedError, Results
from benchmarks._layers_shapes import Layer, load
from benchmarks._layers_work import BATCHES, DTYPES, Group, order_of_work, shard

SMALL = (
    Layer(16, (3, 3), (8, 8), (1, 1), (1, 1), (1, 1), sets=("quick",)),
    Layer(12, (5, 5), (9, 9), (2, 2), (2, 2), (1, 1), multiplier=2, bias=True, sets=("quick",)),
    Layer(16, (4,), (20,), (2,), (0,), (1,), transposed=True, sets=("quick",)),
)
"""What `--quick` measures: no layer that a network has."""

LOST = "the device was lost"


def run(groups: Sequence[Group], out: Path, minutes: float, quick: bool, part: str) -> str:
    """Measures the groups that ``out`` lacks until the time is up; why it ended.

    Raises:
        DamagedError: ``out`` is damaged, or was measured elsewhere.
    """
    start = time.monotonic()
    known = records.read(out) if out.exists() else Results()
    device, clock = pick()
    effort = QUICK if quick else Effort()
    rates = calibrate(device, clock, quick)
    bench = Bench(device, clock, effort, rates, start + 60 * minutes)
    begun = {
        "record": "run",
        "schema": records.SCHEMA,
        **header(device, rates),
        "shard": part,
        "clock": clock.replayed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    known.add(Results([begun]), out)
    records.append(out, begun)
    missing = [group for group in groups if group.key not in known.groups]
    reason, done = _work(missing, bench, out)
    left, minutes = len(missing) - done, round((time.monotonic() - start) / 60, 2)
    end = {"record": "end", "reason": reason, "left": left, "minutes": minutes, "state": state()}
    records.append(out, end)
    return f"{reason}: {done} groups measured, {left} left; {out}"


def _work(groups: Sequence[Group], bench: Bench, out: Path) -> tuple[str, int]:
    longest = 0.0
    for done, group in enumerate(groups):
        begun = time.monotonic()
        if begun + longest > bench.deadline:
            return "the time is up", done
        try:
            entries = measure(group, bench)
        except TimeIsUpError:
            return "the time is up", done
        except KeyboardInterrupt:
            return "interrupted", done
        except DeviceLostError as error:
            seconds = time.monotonic() - begun
            records.append(out, records.group_record(group, error.entries, seconds))
            return f"{LOST} ({error}); --resume goes on after this group", done + 1
        seconds = time.monotonic() - begun
        longest = max(longest, seconds)
        records.append(out, records.group_record(group, entries, seconds))
    return "all done", len(groups)


def merge(paths: Sequence[Path], folder: Path | None = None) -> str:
    """Joins result files; the table.

    Raises:
        DamagedError: a file is damaged, or does not belong to the others.
    """
    results = Results()
    for path in paths:
        if not path.exists():
            raise DamagedError(f"{path}: no such file; name the files that --out wrote")
        results.add(records.read(path), path)
    if not results.groups:
        raise DamagedError("no group was measured in these files; there is nothing to merge")
    target, shown = _layers_table.write(results, folder)
    return f"{shown}\nwritten: {target}"


def quick(folder: Path) -> str:
    """Measures a little and merges it, all inside ``folder``."""
    out = folder / "layers.jsonl"
    torch.set_num_threads(1)  # so small a layer is slower on several
    groups = order_of_work(SMALL, batches=(1,), compiled=False)
    groups.append(Group(SMALL[0], 1, "fp32", "forward", compiled=True))
    told = run(groups, out, math.inf, True, "0/1")
    return f"{merge([out], folder)}\n{told}"


def part_of(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: I/N with 0 <= I < N expected, as in 0/4")
    return int(part), int(parts)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.layers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--out", type=Path, metavar="FILE", help="result file, JSON Lines")
    made.add_argument("--shard", type=part_of, default=(0, 1), metavar="I/N", help="which layers")
    made.add_argument("--minutes", type=float, default=8, help="stop before this has passed (8)")
    made.add_argument("--resume", action="store_true", help="skip what FILE has already")
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    made.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=BATCHES)
    made.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    made.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="join result files")
    made.add_argument("--quick", action="store_true", help="three small layers; writes no results")
    return made


def main() -> None:
    made = parser()
    options = made.parse_args()
    try:
        if options.quick:
            with tempfile.TemporaryDirectory() as folder:
                print(quick(Path(folder)))
        elif options.merge:
            print(merge(options.merge))
        else:
            told = _measure_part(options, made)
            print(told)
            sys.exit(told.startswith(LOST))
    except DamagedError as error:
        made.error(str(error))


def _measure_part(options: argparse.Namespace, made: argparse.ArgumentParser) -> str:
    if options.out is None:
        made.error("--out FILE is needed, or --merge FILE..., or --quick")
    if options.out.exists() and not options.resume:
        made.error(f"{options.out} exists; add --resume to go on with it, or name another file")
    if options.out.exists() and records.cut_torn_line(options.out):
        print(f"{options.out}: cut off the last line, which a killed run left unfinished")
    groups = order_of_work(load(), options.dtypes, options.batches, not options.no_compile)
    if not torch.cuda.is_available():
        print("no CUDA device: these are times of a CPU, not the target")
    part, parts = options.shard
    return run(shard(groups, part, parts), options.out, options.minutes, False, f"{part}/{parts}")


if __name__ == "__main__":
    main()
