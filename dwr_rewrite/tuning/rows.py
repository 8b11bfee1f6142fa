"""An answer of a device as plain values, as it is stored and as it travels."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.timing import Timing
from dwr_rewrite.tuning.bench import Answer, Device
from dwr_rewrite.workload import Workload

MOST_SAMPLES = 1 << 16
"""Samples of one form; a measurement takes some hundreds."""


@dataclass(frozen=True)
class Stamp:
    """When and by what a row was made.

    Attributes:
        date: ISO 8601 in UTC with microseconds, so that they sort as text.
        version: of dwr-rewrite.
    """

    date: str
    version: str


def key(value: object) -> str:
    """SHA-256 of a value's canonical JSON: sorted names, no spaces."""
    return sha256(dumps(value).encode()).hexdigest()


def device_key(device: Device) -> str:
    """Of what its answers depend on; neither its name for a person nor whether it is a target."""
    return key([device.engine, dict(device.facts)])


def dumps(value: object) -> str:
    """Canonical JSON; it has no words for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def answer_row(answer: Answer) -> dict[str, Any]:
    """Plain values, which :func:`read_answer` reads."""
    return {
        "workload": answer.workload.to_dict(),
        "timings": {form: timing.samples for form, timing in answer.timings.items()},
        "failures": dict(answer.failures),
        "state": dict(answer.state),
    }


def device_row(device: Device) -> dict[str, Any]:
    """Plain values, which :func:`read_device` reads."""
    return asdict(device)


def read_device(row: object) -> Device:
    """From JSON.

    Raises:
        ValueError: a field is missing, unknown or of another type.
    """
    found = _fields(row, "a device", "name", "engine", "facts", "target")
    if not isinstance(found["target"], bool):
        raise ValueError("target: true or false expected")  # noqa: TRY004
    name, engine = (_text(found[field], field) for field in ("name", "engine"))
    return Device(name, engine, _texts(found["facts"], "facts"), found["target"])


def read_answer(row: object) -> Answer:
    """From JSON.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of range, or the timings
            do not belong together.
    """
    found = _fields(row, "an answer", "workload", "timings", "failures", "state")
    if not _whole(found["workload"]):
        raise ValueError("a workload consists of whole numbers, texts and lists of them")
    timings = {form: _timing(form, value) for form, value in _names(found["timings"]).items()}
    answer = Answer(
        Workload.from_dict(_names(found["workload"])), timings,
        _texts(found["failures"], "failures"), _texts(found["state"], "state"),
    )  # fmt: skip
    check(answer)
    return answer


def check(answer: Answer) -> None:
    """Refuses what does not keep to :class:`~dwr_rewrite.tuning.bench.Answer`.

    Raises:
        ValueError: it does not.
    """
    both = set(answer.timings) & set(answer.failures)
    if both or not (answer.timings or answer.failures):
        raise ValueError(f"every form has a timing or a failure; {min(both, default='none')} has "
                         f"{'both' if both else 'either'}")  # fmt: skip
    if answer.timings and KEEP not in answer.timings:
        raise ValueError(f"without a timing of {KEEP!r} there is nothing to compare the others to")
    try:
        for form in answer.timings:
            answer.paired(form)
    except DwrError as error:
        raise ValueError(str(error)) from None


def read_rates(row: object) -> dict[str, float]:
    """The measured rates of a device, from JSON.

    Raises:
        ValueError: not a mapping of names to positive finite numbers.
    """
    rates = _names(row)
    bad = [name for name, rate in rates.items() if not _positive(rate)]
    if bad or not rates:
        raise ValueError(f"rates {', '.join(bad)}: positive finite numbers by name expected")
    return {name: float(rate) for name, rate in rates.items()}


def read_stamp(row: object) -> Stamp:
    """From JSON.

    Raises:
        ValueError: no date with a time zone, or no version.
    """
    found = _fields(row, "a stamp", "date", "version")
    when = datetime.fromisoformat(_text(found["date"], "date"))
    version = _text(found["version"], "version")
    if when.tzinfo is None or not version.isprintable():
        raise ValueError("a date with a time zone and a printable version expected")
    return Stamp(_iso(when), version)


def stamp(version: str) -> Stamp:
    """Of this moment."""
    return Stamp(_iso(datetime.now(UTC)), version)


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def _fields(row: object, what: str, *names: str) -> Mapping[str, Any]:
    found = _names(row)
    if set(found) != set(names):
        raise ValueError(f"{what} has {', '.join(names)}; found {', '.join(found) or 'nothing'}")
    return found


def _names(row: object) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"values by name expected, found {type(row).__name__}")  # noqa: TRY004
    return row


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what}: a text expected")  # noqa: TRY004
    return value


def _texts(row: object, what: str) -> dict[str, str]:
    return {name: _text(value, f"{what}, {name}") for name, value in _names(row).items()}


def _timing(form: str, samples: object) -> Timing:
    if not isinstance(samples, list | tuple) or not 1 <= len(samples) <= MOST_SAMPLES:
        raise ValueError(f"{form}: a list of 1 to {MOST_SAMPLES} samples expected")
    if not all(_positive(sample) for sample in samples):
        raise ValueError(f"{form}: samples of more than 0 s expected")
    return Timing(tuple(float(sample) for sample in samples))


def _positive(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value <= sys.float_info.max


def _whole(value: object) -> bool:
    """No float, no null: what :class:`Workload` takes for a number is one."""
    if isinstance(value, Mapping):
        return all(_whole(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_whole(item) for item in value)
    return isinstance(value, int | str)
