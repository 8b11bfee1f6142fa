"""What samples of a time tell, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import NamedTuple

import numpy as np

from dwr_rewrite.errors import DwrError

CONFIDENCE = 0.95
"""Of every interval that is reported."""

RESAMPLES = 2000
"""Of a bootstrap: the ends of a 95 % interval then rest on 50 resamples each."""

PER_ROUND = 2
"""Samples of each side in a round."""

DECISIVE = 12
"""Rounds that a decision takes. In simulations of equal sides, with normal noise and with outliers,
an end of the 95 % interval lies on the wrong side of 1 in 6 % of the cases after six rounds, in
4 % after ten, and from twelve on in no more than the 2.5 % that it should."""

NARROW = 0.02
"""Relative width of the ratio's interval that ends a measurement early."""

EARLY_CONFIDENCE = 0.99
"""Of the interval that ends a measurement early: it is looked at several times, at each of which
chance may push it past 1. (Pocock's bound for five looks at 5 % together is 98.4 % each.)"""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """How long something takes.

    Attributes:
        samples: seconds for one call, in the order of measurement.

    Raises:
        DwrError: there is no sample, or one is not a positive finite number.
    """

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses what no statistics can be made of."""
        bad = [sample for sample in self.samples if not (isfinite(sample) and sample > 0)]
        if bad or not self.samples:
            found = f"{bad[0]!r} s" if bad else "none"
            raise DwrError(f"a timing needs samples of more than 0 s; found {found}")

    @cached_property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.samples))

    @cached_property
    def interval(self) -> Interval:
        """Of the median, in seconds; the percentile bootstrap, drawing samples."""
        return _percentiles(_medians(np.asarray(self.samples)[:, None]), CONFIDENCE)

    @property
    def variation(self) -> float:
        """The coefficient of variation, standard deviation over mean; 0 for a single sample."""
        if len(self.samples) < 2:
            return 0.0
        return float(np.std(self.samples, ddof=1) / np.mean(self.samples))


@dataclass(frozen=True)
class Paired:
    """Two timings that were taken in the same rounds.

    Attributes:
        reference: of the one; its samples 2i and 2i + 1 belong to round i.
        candidate: of the other, likewise.

    Raises:
        DwrError: the timings do not consist of the same number of whole rounds.
    """

    reference: Timing
    candidate: Timing

    def __post_init__(self) -> None:
        """Refuses timings that do not belong together."""
        counts = len(self.reference.samples), len(self.candidate.samples)
        if counts[0] != counts[1] or counts[0] % PER_ROUND:
            raise DwrError(f"paired timings need {PER_ROUND} samples of each side in every round; "
                           f"found {counts[0]} and {counts[1]}")  # fmt: skip

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len(self.reference.samples) // PER_ROUND

    @property
    def ratio(self) -> float:
        """Median of the candidate over that of the reference: below 1 where it is faster."""
        return self.candidate.median / self.reference.median

    @cached_property
    def interval(self) -> Interval:
        """Of the ratio; see :meth:`interval_at`."""
        return self.interval_at(CONFIDENCE)

    def interval_at(self, confidence: float) -> Interval:
        """Of the ratio; the percentile bootstrap, drawing whole rounds.

        What disturbs a round disturbs both sides of it, and so does a slow drift; drawn together,
        they cancel in the ratio.
        """
        reference, candidate = (
            _medians(np.asarray(timing.samples).reshape(self.rounds, PER_ROUND))
            for timing in (self.reference, self.candidate)
        )
        return _percentiles(candidate / reference, confidence)

    def is_faster(self, min_speedup: float = 1.0) -> bool:
        """Whether the candidate is faster by more than a factor, beyond doubt.

        That is: the whole interval of reference over candidate lies above ``min_speedup``, and
        there were at least :data:`DECISIVE` rounds. The same samples always give the same answer.
        Two sessions of one and the same model may differ by about 1 % for reasons of their own,
        such as where their memory lies: a smaller margin than that decides about nothing.
        """
        return self.rounds >= DECISIVE and 1 / self.interval.high > min_speedup

    @property
    def settled(self) -> bool:
        """Whether more rounds would hardly tell more: one side is faster, and by how much."""
        low, high = self.interval_at(EARLY_CONFIDENCE)
        different = not low <= 1 <= high
        return self.rounds >= DECISIVE and different and high - low < NARROW * self.ratio


def _medians(rounds: np.ndarray) -> np.ndarray:
    """Median [RESAMPLES] of all samples in rounds [n, samples] that are drawn with replacement.

    The draws depend on n alone, so that both sides of a pair are given the same ones.
    """
    n = len(rounds)
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    return np.median(rounds[drawn].reshape(RESAMPLES, -1), axis=1)


def _percentiles(values: np.ndarray, confidence: float) -> Interval:
    outside = (1 - confidence) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return Interval(float(low), float(high))
