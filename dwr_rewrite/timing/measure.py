"""Measures several calls side by side."""

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

Sampler = Callable[[], float]
"""Runs something, often enough for its clock, and gives the seconds of one time."""

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


def measure_pair(
    reference: Call,
    candidate: Call,
    *,
    clock: Clock = time.perf_counter,
    budget: float = 10.0,
    rounds: int = 200,
    warmup: int = 10,
) -> Paired:
    """Times two calls side by side; see :func:`measure_all`.

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
    samplers = Repeated(reference, clock), Repeated(candidate, clock)
    timings = measure_all(samplers, clock=clock, budget=budget, rounds=rounds, warmup=warmup)
    return Paired(*timings)


def measure_all(
    samplers: Sequence[Sampler],
    *,
    clock: Clock = time.perf_counter,
    budget: float = 10.0,
    rounds: int = 200,
    warmup: int = 10,
) -> tuple[Timing, ...]:
    """Times several things side by side: warm-up, then rounds of A B C C B A.

    In such a round all lie, on average, at the same moment, so that a device which slows down
    evenly slows down all alike. It ends when every one is settled against the first (looked at
    after 12, 24, 48, ... rounds), when the budget is used up, or after ``rounds``; never before one
    round is complete.

    Args:
        samplers: what is timed; the first is the reference.
        clock: what the budget is measured by.
        budget: seconds for the warm-up and the rounds together.
        rounds: at most so many, and at least one.
        warmup: windows of warm-up at most; without a window, each still runs once.
    """
    began = clock()
    _warm_up(samplers, clock, warmup, began + WARM_UP_SHARE * budget)
    samples: list[list[float]] = [[] for _ in samplers]
    done, look = 0, DECISIVE
    while True:
        for index in turns(len(samplers)):
            samples[index].append(samplers[index]())
        done += 1
        over = clock() - began >= budget or done >= rounds
        if over or done == look:
            timings = tuple(Timing(tuple(found)) for found in samples)
            if over or all(Paired(timings[0], other).settled for other in timings[1:]):
                return timings
            look *= 2


def turns(count: int) -> tuple[int, ...]:
    """Who runs in a round: 0 1 2 2 1 0."""
    return (*range(count), *reversed(range(count)))


class Repeated:
    """A sampler that repeats a call until it lasts :data:`SHORTEST`.

    Args:
        call: what is timed.
        clock: what is read before and after.
    """

    def __init__(self, call: Call, clock: Clock = time.perf_counter) -> None:
        """Begins with one call in a sample."""
        self.call, self.clock = call, clock
        self.repeats = 1

    def __call__(self) -> float:
        """A sample; the repeats are doubled, and it is taken again, until it lasts long enough.

        Raises:
            DwrError: the clock stands still.
        """
        while (sample := self._sample()) * self.repeats < SHORTEST:
            if self.repeats == MOST_CALLS:
                raise DwrError(f"{MOST_CALLS} calls took less than {SHORTEST} s: nothing runs in "
                               f"them, or the clock stands still")  # fmt: skip
            self.repeats *= 2
        return sample

    def _sample(self) -> float:
        began = self.clock()
        for _ in range(self.repeats):
            self.call()
        return (self.clock() - began) / self.repeats


def _warm_up(samplers: Sequence[Sampler], clock: Clock, windows: int, deadline: float) -> None:
    """Runs all until all are stable, by turns, as they will be measured."""
    before = [sampler() for sampler in samplers]  # what happens only once: it is in no window
    for index in range(windows):
        if clock() >= deadline:
            return
        now = _window(samplers, clock, deadline)
        steady = all(abs(a - b) <= STABLE * b for a, b in zip(now, before, strict=True))
        if index and steady:
            return
        before = now


def _window(samplers: Sequence[Sampler], clock: Clock, deadline: float) -> list[float]:
    """Medians over one window, cut short by the deadline."""
    began, found = clock(), list[list[float]]()
    while len(found) < WINDOW or clock() - began < WINDOW_SECONDS:
        found.append([sampler() for sampler in samplers])
        if clock() >= deadline:
            break
    return [float(median) for median in np.median(found, axis=0)]
