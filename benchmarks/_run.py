"""A run of a study: its groups one by one, each written as soon as it is there, until time is up.

The command line that every such study has is here too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import _records as records
from benchmarks._device import state
from benchmarks._records import DamagedError, Record, Results

LOST = "the device was lost"


class TimeIsUpError(Exception):
    """The group was not finished in time; nothing of it is kept."""


class DeviceLostError(Exception):
    """The device answers no longer; ``entries`` is what was found out before."""

    def __init__(self, entries: list[Record]) -> None:
        super().__init__(next(e["reason"] for e in reversed(entries) if "reason" in e))
        for entry in entries:
            if "status" not in entry:
                entry.update(status="failed", reason="not timed: the device was lost")
        self.entries = entries


def refusal(error: Exception, known: Mapping[Any, str]) -> Record:
    """What an entry tells of a way that did not run, or not rightly."""
    status = next((name for kind, name in known.items() if isinstance(error, kind)), "failed")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return {"status": status, "reason": first[:300]}


def give_up(entries: list[Record], error: Exception, known: Mapping[Any, str], way: str) -> None:
    """No time of a group is kept in which the timing failed: they are paired.

    ``way`` names the entry that tells it where there is no other.
    """
    told = refusal(error, known)
    untold = [entry for entry in entries if "status" not in entry]
    for entry in untold or [{"way": way}]:
        entry.update(told)
        if entry not in entries:
            entries.append(entry)


def still_there(device: torch.device, entries: list[Record]) -> None:
    """Lets go of what an error left behind.

    Raises:
        DeviceLostError: the device answers no longer.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise DeviceLostError(entries) from error


@dataclass(frozen=True)
class Task:
    """A group to measure.

    Attributes:
        key: its name, which no other has.
        facts: what it is.
        measure: gives its entries; may raise the two errors above.
    """

    key: str
    facts: Record
    measure: Callable[[], list[Record]]


def run(begun: Record, tasks: Sequence[Task], out: Path, deadline: float) -> str:
    """Measures the tasks that ``out`` lacks until ``time.monotonic()`` is ``deadline``.

    Returns:
        Why it ended.

    Raises:
        DamagedError: ``out`` is damaged, or was measured elsewhere.
    """
    start = time.monotonic()
    known = records.read(out) if out.exists() else Results()
    begun = {"schema": records.SCHEMA, **begun}
    known.add(Results([begun]), out)
    records.append(out, begun)
    missing = [task for task in tasks if task.key not in known.groups]
    reason, done = _work(missing, out, deadline)
    left, minutes = len(missing) - done, round((time.monotonic() - start) / 60, 2)
    end = {"record": "end", "reason": reason, "left": left, "minutes": minutes, "state": state()}
    records.append(out, end)
    return f"{reason}: {done} groups measured, {left} left; {out}"


def _work(tasks: Sequence[Task], out: Path, deadline: float) -> tuple[str, int]:
    longest = 0.0
    for done, task in enumerate(tasks):
        begun = time.monotonic()
        if begun + longest > deadline:
            return "the time is up", done
        lost: DeviceLostError | None = None
        try:
            entries = task.measure()
        except TimeIsUpError:
            return "the time is up", done
        except KeyboardInterrupt:
            return "interrupted", done
        except DeviceLostError as error:
            lost, entries = error, error.entries
        seconds = time.monotonic() - begun
        longest = max(longest, seconds)
        group = {"record": "group", "key": task.key, **task.facts, "seconds": round(seconds, 3)}
        records.append(out, {**group, "entries": entries})
        if lost is not None:
            return f"{LOST} ({lost}); --resume goes on after this group", done + 1
    return "all done", len(tasks)


def merge(paths: Sequence[Path]) -> Results:
    """Joins result files.

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
    return results


def part_of(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: I/N with 0 <= I < N expected, as in 0/4")
    return int(part), int(parts)


def parser(study: str, description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{study}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--out", type=Path, metavar="FILE", help="result file, JSON Lines")
    made.add_argument("--shard", type=part_of, default=(0, 1), metavar="I/N", help="which part")
    made.add_argument("--minutes", type=float, default=8, help="stop before this has passed (8)")
    made.add_argument("--resume", action="store_true", help="skip what FILE has already")
    made.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="join result files")
    made.add_argument("--quick", action="store_true", help="a little, anywhere; keeps no results")
    return made


Told = tuple[str, bool]
"""What is printed, and whether all is well."""


def main(
    made: argparse.ArgumentParser,
    quick: Callable[[Path], Told],
    measure: Callable[[argparse.Namespace, float], str],
    merge: Callable[[Sequence[Path]], Told],
) -> None:
    """Runs the command line; ends with 1 where a target is missed or the device was lost.

    Args:
        made: of :func:`parser`.
        quick: measures a little and merges it, all inside a folder.
        measure: measures what the options ask for until a deadline; tells why it ended.
        merge: joins files into the results of their device.
    """
    options = made.parse_args()
    try:
        if options.quick:
            with tempfile.TemporaryDirectory() as folder:
                told, fine = quick(Path(folder))
        elif options.merge:
            told, fine = merge(options.merge)
        else:
            told = measure(_checked(options, made), time.monotonic() + 60 * options.minutes)
            fine = not told.startswith(LOST)
    except DamagedError as error:
        made.error(str(error))
    print(told)
    sys.exit(not fine)


def _checked(options: Any, made: argparse.ArgumentParser) -> Any:
    if options.out is None:
        made.error("--out FILE is needed, or --merge FILE..., or --quick")
    if options.out.exists() and not options.resume:
        made.error(f"{options.out} exists; add --resume to go on with it, or name another file")
    if options.out.exists() and records.cut_torn_line(options.out):
        print(f"{options.out}: cut off the last line, which a killed run left unfinished")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options
