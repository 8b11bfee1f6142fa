"""The result files: JSON Lines, one flushed line for each group, so that no measurement is lost.

A line is a ``run`` (study, device, versions, clocks, command), a ``group`` (what was timed
together: an entry for every way, with all its samples) or an ``end`` (why the run ended). A file
that was resumed holds several runs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dwr_rewrite.timing.statistics import PER_ROUND

SCHEMA = 2
STUDIES = {
    "layers": ({"rates"}, {"layer", "batch", "dtype", "direction", "compiled"}),
    "kernels": ({"rates", "kernels"}, {"layer", "batch", "dtype", "direction", "compiled"}),
    "kernels_used": (set[str](), {"layer", "batch", "dtype", "direction"}),
    "paper_table": (set[str](), {"part", "batch", "size", "dtype"}),
    "models": (set[str](), {"network", "engine", "mode", "batch", "dtype"}),
}
"""What a run and a group of each study have besides what all have."""

RUN = {"study", "device", "state", "clock", "date", "command"}
GROUP = {"key", "seconds", "entries"}
STATUS = {"timed", "ran", "same", "unsupported", "out of memory", "too slow", "wrong", "failed"}
Record = dict[str, Any]


class DamagedError(Exception):
    """A result file cannot be used; the message says which line, why, and what to do."""


@dataclass
class Results:
    """What result files hold: their runs, and the groups by key."""

    runs: list[Record] = field(default_factory=list)
    groups: dict[str, Record] = field(default_factory=dict)

    def take(self, record: Any, where: str) -> None:
        """Adds one record, found at ``where``.

        Raises:
            DamagedError: it is no record of this study, or not of these runs.
        """
        fault = _fault(record, self)
        if fault:
            raise DamagedError(f"{where}: {fault}; restore the file, or measure again")
        if record["record"] == "run":
            self.add(Results([record]), where)
        elif record["record"] == "group":
            self.groups[record["key"]] = record

    def add(self, other: Results, path: Path | str) -> None:
        """Joins what ``path`` holds.

        Raises:
            DamagedError: another device or other versions, or a group that is there already.
        """
        for run in other.runs:
            self._same_device(run, path)
            self.runs.append(run)
        for key, group in other.groups.items():
            if key in self.groups:
                raise DamagedError(f"{path}: the group {key!r} is in another file too")
            self.groups[key] = group

    def _same_device(self, run: Record, path: Path | str) -> None:
        first, device = self.runs[0] if self.runs else run, run["device"]
        if first["study"] != run["study"]:
            raise DamagedError(f"{path} is of the study {run['study']}, not {first['study']}")
        known = first["device"]
        for name in sorted({*known, *device}):
            if known.get(name) != device.get(name):
                raise DamagedError(
                    f"{path}: {name} is {device.get(name)!r}, where the other runs have "
                    f"{known.get(name)!r}; keep one file for each device and set of versions"
                )


def read(path: Path) -> Results:
    """A result file.

    Raises:
        DamagedError: a line is no record of this study. A last line without its line feed is what
            a killed run leaves behind; it is passed over.
    """
    results = Results()
    for number, line in enumerate(_whole(path.read_bytes()).splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line, parse_constant=_no_constant)
        except ValueError as error:
            raise DamagedError(f"{where} is not JSON ({error}); restore the file") from None
        results.take(record, where)
    return results


def _whole(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _fault(record: Any, before: Results) -> str:
    kind = record.get("record") if isinstance(record, dict) else None
    if kind == "run":
        return _fault_of_run(record)
    if kind == "end":
        return ""
    if kind != "group":
        return "neither a run nor a group nor an end of this study"
    if not before.runs:
        return "a group stands before the run that measured it"
    if record.get("key") in before.groups:
        return f"the group {record['key']!r} is there twice"
    return _fault_of_group(record, before.runs[0]["study"])


def _fault_of_run(run: Record) -> str:
    if run.get("schema") != SCHEMA:
        return f"schema {run.get('schema')!r}, where this study reads {SCHEMA}"
    if run.get("study") not in STUDIES:
        return f"study {run.get('study')!r} is none of {', '.join(STUDIES)}"
    missing = (RUN | STUDIES[run["study"]][0]) - run.keys()
    return f"the run lacks {', '.join(sorted(missing))}" if missing else ""


def _fault_of_group(group: Record, study: str) -> str:
    missing = (GROUP | STUDIES[study][1]) - group.keys()
    if missing:
        return f"the group lacks {', '.join(sorted(missing))}"
    counts: set[int] = set()
    for entry in group["entries"]:
        fault = _fault_of_entry(entry)
        if fault:
            return f"{entry.get('way', 'a way without a name')}: {fault}"
        if entry["status"] == "timed":
            counts.add(len(entry["us"]))
    if len(counts) > 1:
        return "the ways have different numbers of samples, so they are not paired"
    odd = any(count % PER_ROUND for count in counts)
    return f"a round has {PER_ROUND} samples of each way; one is torn" if odd else ""


def _fault_of_entry(entry: Record) -> str:
    status = entry.get("status")
    if status not in STATUS:
        return f"status {status!r} is none of {', '.join(sorted(STATUS))}"
    if status == "same":
        return "" if entry.get("same_as") else "it does not say what it is the same as"
    if status == "ran":
        return "" if entry.get("kernels") else "it does not say which kernels ran"
    if status != "timed":
        return "a refused way has samples" if "us" in entry else ""
    samples = entry.get("us")
    if not samples or not all(_is_time(value) for value in samples):
        return f"its samples are {samples!r}; positive microseconds are expected"
    return ""


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def cut_torn_line(path: Path) -> int:
    """Cuts off what a killed run left of its last line; bytes cut.

    Raises:
        DamagedError: this is no result file; it is left as it is.
    """
    if not read(path).runs:
        raise DamagedError(f"{path} holds no run of this study; name another file")
    content = path.read_bytes()
    kept = len(_whole(content))
    if kept < len(content):
        os.truncate(path, kept)
    return len(content) - kept


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line and waits until it is on the disk."""
    with path.open("a") as file:
        file.write(json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())
