"""Times as reports have them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dwr_rewrite.timing.statistics import Paired, Timing


@dataclass(frozen=True, slots=True)
class Time:
    """A time in milliseconds.

    Attributes:
        median: of the samples.
        low: end of its 95 % interval.
        high: end of its 95 % interval.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, timing: Timing) -> Time:
        """Of a timing."""
        return cls(*(1e3 * seconds for seconds in (timing.median, *timing.interval)))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing that was timed for both models.

    Attributes:
        name: what, for a person.
        unit: of the times.
        reference: of the original.
        candidate: of the model in question.
    """

    name: str
    unit: Literal["ms"] = field(default="ms", init=False)
    reference: Time
    candidate: Time

    @classmethod
    def of(cls, name: str, pair: Paired) -> Measurement:
        """Of a pair of timings."""
        return cls(name, Time.of(pair.reference), Time.of(pair.candidate))


@dataclass(frozen=True, slots=True)
class Runtime:
    """The times of both models on one device.

    Attributes:
        device: what ran them.
        measurements: one for each thing that was timed.
    """

    device: str
    measurements: tuple[Measurement, ...]
