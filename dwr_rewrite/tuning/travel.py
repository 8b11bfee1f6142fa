"""The file in which tuning results travel: JSON lines, every one of which is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwr_rewrite.errors import DwrError
from dwr_rewrite.tuning import rows
from dwr_rewrite.tuning.bench import Answer, Device

HEADER = {"format": "dwr-rewrite tuning", "schema": 1}
"""First line of the file."""

LONGEST = 1 << 24
"""Characters of a line; an answer with every form at its most samples has fewer."""


@dataclass(frozen=True)
class Item:
    """A line.

    Attributes:
        device: what answered.
        content: the answer, or the rates that were measured.
        stamp: when, and by which version.
    """

    device: Device
    content: Answer | Mapping[str, float]
    stamp: rows.Stamp


READERS = {"answer": rows.read_answer, "rates": rows.read_rates}
"""What a line can hold, by its name there."""


def item(kind: str, device: object, content: object, stamp: object) -> Item:
    """From plain values.

    Raises:
        ValueError: they are not as they should be.
    """
    read = READERS[kind]
    return Item(rows.read_device(device), read(content), rows.read_stamp(stamp))


def write(path: Path, items: Iterable[Item]) -> None:
    """Writes a file, whole or not at all.

    Raises:
        DwrError: it cannot be written, or another kind of file has that name.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists():
            _check_replaceable(path)
        with partial.open("x", encoding="utf-8") as file:
            file.write(json.dumps(HEADER) + "\n")
            file.writelines(json.dumps(_plain(item)) + "\n" for item in items)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DwrError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> Iterator[Item]:
    """The lines of a file, each checked.

    Raises:
        DwrError: it cannot be read, or a line is not as it should be.
    """
    number = 1
    try:
        with path.open(encoding="utf-8") as file:
            _check_header(file.readline(LONGEST))
            while line := file.readline(LONGEST):
                number += 1
                yield _parsed(line)
    except OSError as error:
        raise DwrError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DwrError(f"{path}, line {number}: {error}; nothing was imported. Export it again "
                       f"with dwr-bench export") from error  # fmt: skip


def _plain(item: Item) -> dict[str, Any]:
    if isinstance(item.content, Answer):
        kind, content = "answer", rows.answer_row(item.content)
    else:
        kind, content = "rates", dict(item.content)
    stamp = {"date": item.stamp.date, "version": item.stamp.version}
    return {"device": rows.device_row(item.device), kind: content, "stamp": stamp}


def _parsed(line: str) -> Item:
    if len(line) == LONGEST:
        raise ValueError(f"lines of fewer than {LONGEST} characters expected")
    row = json.loads(line)
    kind = next((kind for kind in READERS if isinstance(row, dict) and kind in row), None)
    if kind is None or set(row) != {"device", kind, "stamp"}:
        raise ValueError(f"device, stamp, and one of {', '.join(READERS)} expected")
    return item(kind, row["device"], row[kind], row["stamp"])


def _check_header(line: str) -> None:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != HEADER["format"]:
        raise ValueError("it is no export of tuning results")
    if header != HEADER:
        raise ValueError("a newer version of dwr-rewrite wrote it")


def _check_replaceable(path: Path) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            _check_header(file.readline(LONGEST))
    except ValueError as error:
        raise DwrError(f"{path} is there already, and {error}; name another file") from None
