"""Times as reports have them."""

from __future__ import annotations

from collections.abc import Mapping
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
        variation: the samples' coefficient of variation, standard deviation over mean.
    """

    median: float
    low: float
    high: float
    variation: float

    @classmethod
    def of(cls, timing: Timing) -> Time:
        """Of a timing."""
        low, high = timing.interval
        return cls(1e3 * timing.median, 1e3 * low, 1e3 * high, timing.variation)


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster a candidate is than its reference, with its 95 % interval.

    Attributes:
        median: above 1 where it is faster.
        low: end of the interval.
        high: end of the interval.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, pair: Paired) -> Speedup:
        """Of a pair of timings."""
        return cls(1 / pair.ratio, 1 / pair.interval.high, 1 / pair.interval.low)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing that was timed for both models.

    Attributes:
        name: what, for a person.
        unit: of the times.
        reference: of the original.
        candidate: of the model in question.
        speedup: how many times faster that is.
    """

    name: str
    unit: Literal["ms"] = field(default="ms", init=False)
    reference: Time
    candidate: Time
    speedup: Speedup

    @classmethod
    def of(cls, name: str, pair: Paired) -> Measurement:
        """Of a pair of timings."""
        times = Time.of(pair.reference), Time.of(pair.candidate)
        return cls(name, *times, Speedup.of(pair))


@dataclass(frozen=True, slots=True)
class FreeSetting:
    """A setting that changes the speed of the original without any rewrite.

    Attributes:
        name: ``channels_last``.
        how: what the user writes to have it.
        rounds_alike: whether it leaves the precision of every product as it was. TF32 and 16-bit
            types do not: they are told, and never what a rewrite is held against.
        speedup: over the original as it was given; None where it did not run.
        failure: why it did not.
    """

    name: str
    how: str
    rounds_alike: bool
    speedup: Speedup | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Energy:
    """What one run takes from the power supply.

    Attributes:
        reference: joules of the original.
        candidate: joules of the model in question.
        method: how they were sampled.
    """

    reference: float
    candidate: float
    method: str


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial of the whole model with a part of the plan.

    Attributes:
        sites: how many were rewritten.
        speedup: over the original.
        accepted: whether that was faster by the margin, beyond doubt.
    """

    sites: int
    speedup: Speedup
    accepted: bool


@dataclass(frozen=True, slots=True)
class Runtime:
    """The times of both models on one device.

    Attributes:
        device: what ran them.
        measurements: one for each thing that was timed; the first is what the decision rests on.
        setting: name of the free setting under which both were timed; empty for none.
        settings: every free setting that was tried on the original.
        trials: of the whole model, in order; the last one is the outcome.
        energy: where the device tells it.
        facts: driver, versions, options and clocks.
    """

    device: str
    measurements: tuple[Measurement, ...]
    setting: str = ""
    settings: tuple[FreeSetting, ...] = ()
    trials: tuple[TrialResult, ...] = ()
    energy: Energy | None = None
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
