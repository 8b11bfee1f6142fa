"""Measures two calls side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from dwr_rewrite.errors import DwrError
from dwr_rewrite.timing.statistics import DECISIVE, Paired, Timing

Call = Callable[[], object]
"""Runs one inference (or step) to its end: where a device works on its own, it waits for it."""

Clock = Callable[[], float]
"""Seconds since some fixed moment."""

SHORTEST = 1e-3
"""Seconds that a sample lasts at least. ``perf_counter`` resolves 100 ns or better everywhere, so
that its two readings are off by 0.02 % of a sample at most. Shorter calls are repeated in it."""

MOST_CALLS = 1 << 20
"""Calls in one sample; past them the clock stands still."""

WINDOW = 5
"""Samples of each side in a window of the warm-up."""

WINDOW_SECONDS = 0.1
"""What a window lasts at least: two of them make the 200 ms for which trtexec warms up."""

STABLE = 0.02
"""A side is warm when the medians of two successive windows differ by no more than this share."""

WARM_UP_SHARE = 0.5
"""Share of the budget after which the warm-up ends, stable or not."""

ROUND = (0, 1, 1, 0)
"""Who runs in a round, 0 the reference and 1 the candidate: in A B B A both sides lie, on average,
at the same moment, so that a device which slows down evenly slows down both alike."""


def measure_pair(
    reference: Call,
    candidate: Call,
    *,
    clock: Clock = time.perf_counter,
    budget: float = 10.0,
    rounds: int = 200,
    warmup: int = 10,
) -> Paired:
    """Times two calls side by side: warm-up, then rounds of A B B A.

    It ends when the pair is settled (looked at after 12, 24, 48, ... rounds), when the budget is
    used up, or after ``rounds``; never before one round is complete.

    Args:
        reference: the one.
        candidate: the other.
        clock: what is read.
        budget: seconds for the warm-up and the rounds together.
        rounds: at most so many, and at least one.
        warmup: windows of warm-up at most; without a window, both sides still run once.

    Raises:
        DwrError: the clock stands still.
    """
    began = clock()
    sides = _Side(reference, clock), _Side(candidate, clock)
    _warm_up(sides, clock, warmup, began + WARM_UP_SHARE * budget)
    samples: tuple[list[float], list[float]] = [], []
    look = DECISIVE
    while True:
        for side in ROUND:
            samples[side].append(sides[side].sample())
        pair = Paired(Timing(tuple(samples[0])), Timing(tuple(samples[1])))
        if clock() - began >= budget or pair.rounds >= rounds:
            return pair
        if pair.rounds == look:
            if pair.settled:
                return pair
            look *= 2


class _Side:
    """One of two calls, and how often it is repeated in a sample."""

    def __init__(self, call: Call, clock: Clock) -> None:
        self.call, self.clock = call, clock
        self.repeats = 1

    def sample(self) -> float:
        """Seconds for one call."""
        began = self.clock()
        for _ in range(self.repeats):
            self.call()
        return (self.clock() - began) / self.repeats

    def warm_up(self) -> float:
        """A sample; the repeats are doubled until it lasts :data:`SHORTEST`."""
        while (sample := self.sample()) * self.repeats < SHORTEST:
            if self.repeats == MOST_CALLS:
                raise DwrError(f"{MOST_CALLS} calls took less than {SHORTEST} s: nothing runs in "
                               f"them, or the clock stands still")  # fmt: skip
            self.repeats *= 2
        return sample


def _warm_up(sides: Sequence[_Side], clock: Clock, windows: int, deadline: float) -> None:
    """Runs both sides until both are stable, by turns, as they will be measured."""
    before = [side.warm_up() for side in sides]  # what happens only once: it is in no window
    for index in range(windows):
        if clock() >= deadline:
            return
        now = _window(sides, clock, deadline)
        steady = all(abs(a - b) <= STABLE * b for a, b in zip(now, before, strict=True))
        if index and steady:
            return
        before = now


def _window(sides: Sequence[_Side], clock: Clock, deadline: float) -> list[float]:
    """Medians of the sides over one window, cut short by the deadline."""
    began, found = clock(), list[list[float]]()
    while len(found) < WINDOW or clock() - began < WINDOW_SECONDS:
        found.append([side.warm_up() for side in sides])
        if clock() >= deadline:
            break
    return [float(median) for median in np.median(found, axis=0)]
