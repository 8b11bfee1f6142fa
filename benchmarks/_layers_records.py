"""The result files: JSON Lines, one flushed line for each group, so that nothing measured is lost.

A line is a ``run`` (device, versions, ceilings, command), a ``group`` (the entries of one group) or
an ``end`` (why the run ended). A file that was resumed holds several runs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._layers_work import Group

SCHEMA = 1
STATUS = {"timed", "same", "unsupported", "out of memory", "too slow", "wrong", "failed"}
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
            self._same_device(run["device"], path)
            self.runs.append(run)
        for key, group in other.groups.items():
            if key in self.groups:
                raise DamagedError(f"{path}: the group {key!r} is in another file too")
            self.groups[key] = group

    def _same_device(self, device: Mapping[str, Any], path: Path | str) -> None:
        known = self.runs[0]["device"] if self.runs else device
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
    return _fault_of_group(record)


def _fault_of_run(run: Record) -> str:
    if run.get("schema") != SCHEMA:
        return f"schema {run.get('schema')!r}, where this study reads {SCHEMA}"
    missing = {"device", "rates", "command"} - run.keys()
    return f"the run lacks {', '.join(sorted(missing))}" if missing else ""


def _fault_of_group(group: Record) -> str:
    missing = {"key", "layer", "batch", "dtype", "direction", "compiled", "entries"} - group.keys()
    if missing:
        return f"the group lacks {', '.join(sorted(missing))}"
    counts: set[int] = set()
    for entry in group["entries"]:
        fault = _fault_of_entry(entry)
        if fault:
            return f"{entry.get('way', 'a way without a name')}: {fault}"
        if entry["status"] == "timed":
            counts.add(len(entry["us"]))
    unpaired = "the ways have different numbers of samples, so they are not paired"
    return unpaired if len(counts) > 1 else ""


def _fault_of_entry(entry: Record) -> str:
    status = entry.get("status")
    if status not in STATUS:
        return f"status {status!r} is none of {', '.join(sorted(STATUS))}"
    if status == "same":
        return "" if entry.get("same_as") else "it does not say what it is the same as"
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


def group_record(group: Group, entries: Iterable[Record], seconds: float) -> Record:
    return {
        "record": "group", "key": group.key, "layer": asdict(group.layer), "batch": group.batch,
        "dtype": group.dtype, "direction": group.direction, "compiled": group.compiled,
        "seconds": round(seconds, 3), "entries": list(entries),
    }  # fmt: skip
