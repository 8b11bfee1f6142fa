"""What devices have answered, in an SQLite file that several processes use at once."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dwr_rewrite import __version__
from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.tuning import rows, travel
from dwr_rewrite.tuning.bench import Answer, Device, Question
from dwr_rewrite.tuning.schema import prepare, transaction

PATH_VARIABLE = "DWR_TUNING_DATABASE"
"""Environment variable that names another file."""

PATIENCE = 30.0
"""Seconds that a process waits for another one's write, which takes milliseconds."""


def default_path() -> Path:
    """``tuning.sqlite3`` in the user's cache folder, or what :data:`PATH_VARIABLE` names."""
    if named := os.environ.get(PATH_VARIABLE):
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("dwr-rewrite", appauthor=False) / "tuning.sqlite3"


@dataclass(frozen=True)
class Holding:
    """What there is of one device from one version of dwr-rewrite.

    Attributes:
        device: the device.
        version: of dwr-rewrite.
        answers: how many.
        newest: date of the newest.
    """

    device: Device
    version: str
    answers: int
    newest: str


class Database:
    """The answers of devices.

    An answer is found again under everything that changes it: the engine and the facts of its
    device, the workload, and the version of dwr-rewrite, which writes the forms.

    A context manager, which closes it. Every method raises :class:`DwrError` where the file cannot
    be read or written; nothing is ever deleted.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Takes an open connection; :meth:`open` makes one."""
        self.path, self._connection = path, connection

    @classmethod
    def open(cls, path: Path | None = None) -> Database:
        """Opens a file, and makes it where there is none.

        Args:
            path: the file; :func:`default_path` by default.

        Raises:
            DwrError: it cannot be made, or is damaged, of a newer version, or something else.
        """
        path = default_path() if path is None else path
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
            try:
                prepare(connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self.close()

    def get(self, device: Device, question: Question) -> Answer | None:
        """What the device answered before, to the forms that are asked about.

        None where it was not asked, or not about all of them. If ``keep`` did not run, that
        answers for every form.
        """
        found = self._one(
            "SELECT document FROM answers WHERE device = ? AND workload = ? AND version = ?",
            rows.device_key(device), rows.key(question.workload.to_dict()), __version__,
        )  # fmt: skip
        if found is None:
            return None
        with _explained(self.path):
            answer = rows.read_answer(json.loads(found[0]))
        covered = {*answer.timings, *answer.failures}.issuperset(question.forms)
        return _about(answer, question.forms) if covered or KEEP in answer.failures else None

    def put(self, device: Device, answer: Answer) -> None:
        """Stores an answer for good; one to the same question is replaced."""
        with _refused(f"an answer of {device}"):
            rows.check(answer)
        with self._writing():
            self._put_answer(device, answer, rows.stamp(__version__))

    def devices(self) -> list[Device]:
        """Those that have answered anything."""
        found = self._all("SELECT document FROM devices WHERE key IN (SELECT device FROM answers)")
        return [self._device(document) for (document,) in found]

    def holdings(self) -> list[Holding]:
        """How much there is, by device and version."""
        found = self._all(
            "SELECT devices.document, version, COUNT(*), MAX(date) FROM answers "
            "JOIN devices ON devices.key = device GROUP BY device, version ORDER BY MAX(date) DESC"
        )
        return [Holding(self._device(document), *rest) for document, *rest in found]

    def put_rates(self, device: Device, rates: Mapping[str, float]) -> None:
        """Stores the measured rates of a device, from which a cost model's target can be made."""
        with _refused(f"what was measured on {device}"):
            known = rows.read_rates(rates)
        with self._writing():
            self._put_rates(device, known, rows.stamp(__version__))

    def rates(self, device: Device) -> Mapping[str, float] | None:
        """Its measured rates; None where it was not calibrated."""
        found = self._one("SELECT document FROM targets WHERE device = ?", rows.device_key(device))
        if found is None:
            return None
        with _explained(self.path):
            return rows.read_rates(json.loads(found[0]))

    def calibrated(self) -> list[Device]:
        """Those whose rates were measured."""
        found = self._all("SELECT document FROM devices WHERE key IN (SELECT device FROM targets)")
        return [self._device(document) for (document,) in found]

    def export(self, path: Path) -> None:
        """Writes everything to a file that :meth:`merge` reads on another machine.

        Raises:
            DwrError: it cannot be written, or is a file that is no such export.
        """
        travel.write(path, self._everything())

    def merge(self, path: Path) -> int:
        """Adds what an export holds and this one lacks or has older; all of it or nothing.

        Returns:
            How many answers and targets were added or replaced.

        Raises:
            DwrError: a row is not as it should be; nothing was added.
        """
        with self._writing():
            return sum(self._add(item) for item in travel.read(path))

    def _everything(self) -> Iterator[travel.Item]:
        for kind, table in (("answer", "answers"), ("rates", "targets")):
            found = self._all(
                f"SELECT devices.document, {table}.document, date, version FROM {table} "  # noqa: S608
                f"JOIN devices ON devices.key = device ORDER BY date, device"
            )
            for device, document, date, version in found:
                with _explained(self.path):
                    yield travel.item(kind, json.loads(device), json.loads(document),
                                      {"date": date, "version": version})  # fmt: skip

    def _add(self, item: travel.Item) -> int:
        if isinstance(item.content, Answer):
            return self._put_answer(item.device, item.content, item.stamp, newer=True)
        return self._put_rates(item.device, item.content, item.stamp, newer=True)

    def _put_answer(
        self, device: Device, answer: Answer, stamp: rows.Stamp, newer: bool = False
    ) -> int:
        workload = rows.key(answer.workload.to_dict())
        document = json.dumps(rows.answer_row(answer))  # the order of the forms is kept
        return self._upsert(
            "answers (device, workload, version, date, document) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (device, workload, version)", newer,
            device, workload, stamp.version, stamp.date, document,
        )  # fmt: skip

    def _put_rates(
        self, device: Device, rates: Mapping[str, float], stamp: rows.Stamp, newer: bool = False
    ) -> int:
        return self._upsert(
            "targets (device, version, date, document) VALUES (?, ?, ?, ?) ON CONFLICT (device)",
            newer, device, stamp.version, stamp.date, json.dumps(dict(rates)),
        )  # fmt: skip

    def _upsert(self, what: str, newer: bool, device: Device, *values: str) -> int:
        """How many rows it added or replaced; with ``newer`` only older ones are replaced."""
        key = rows.device_key(device)
        self._connection.execute(
            "INSERT INTO devices (key, document) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET document = excluded.document",
            (key, rows.dumps(rows.device_row(device))),
        )
        table = what.partition(" ")[0]
        where = f" WHERE excluded.date > {table}.date" if newer else ""
        return self._connection.execute(
            f"INSERT INTO {what} DO UPDATE SET version = excluded.version, date = excluded.date, "
            f"document = excluded.document{where}",
            (key, *values),
        ).rowcount

    def _device(self, document: str) -> Device:
        with _explained(self.path):
            return rows.read_device(json.loads(document))

    def _one(self, query: str, *values: str) -> Any:
        with _explained(self.path):
            return self._connection.execute(query, values).fetchone()

    def _all(self, query: str) -> list[Any]:
        with _explained(self.path):
            return self._connection.execute(query).fetchall()

    @contextmanager
    def _writing(self) -> Generator[None]:
        """All or nothing."""
        with _explained(self.path), transaction(self._connection):
            yield


def _about(answer: Answer, forms: tuple[str, ...]) -> Answer:
    """An answer without the forms that are not asked about."""
    timings = {form: answer.timings[form] for form in forms if form in answer.timings}
    failures = {form: answer.failures[form] for form in forms if form in answer.failures}
    return Answer(answer.workload, timings, failures, answer.state)


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Turns what SQLite and the reading of rows say into a sentence with a way out.

    Raises:
        DwrError: something went wrong with the file.
    """
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise DwrError(f"{path}: the tuning results cannot be used: {error}; repair or move the "
                       f"file, or name another one in {PATH_VARIABLE}") from error  # fmt: skip


@contextmanager
def _refused(what: str) -> Generator[None]:
    """Names what cannot be stored.

    Raises:
        DwrError: it is not as it should be.
    """
    try:
        yield
    except ValueError as error:
        raise DwrError(f"{what} cannot be stored: {error}") from error
