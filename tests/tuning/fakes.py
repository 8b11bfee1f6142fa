"""A device and a clock that take the time they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.timing import Timing
from dwr_rewrite.tuning import Answer, Device, Question
from dwr_rewrite.workload import Workload

ABACUS = Device("Abacus 9", "torch", {"device": "Abacus 9", "driver": "1.2", "torch": "3.0"})


def workload(channels: int = 64, **fields) -> Workload:
    spec = ConvSpec(channels, (3, 3), padding=((1, 1), (1, 1)), spatial=(14, 14))
    return Workload(**{"spec": spec, "batch": 1, **fields})


def question(channels: int = 64, forms: tuple[str, ...] = (KEEP, "dense"), **fields) -> Question:
    return Question(workload(channels, **fields), forms)


def samples(seconds: float, rounds: int = 24, noise: float = 0.0, seed: int = 0) -> Timing:
    """Two a round; the noise is a standard deviation relative to the time."""
    factors = 1 + noise * np.random.default_rng(seed).standard_normal(2 * rounds)
    return Timing(tuple(float(seconds * factor) for factor in factors))


def answer(asked: Question, seconds: Callable[[str], float] = lambda form: 1e-3) -> Answer:
    return Answer(asked.workload, {form: samples(seconds(form)) for form in asked.forms})


@dataclass
class FakeClock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeBench:
    """Every form of a convolution takes `milliseconds` of it; every question one second."""

    milliseconds: Mapping[str, float] = field(default_factory=lambda: {KEEP: 1.0, "dense": 2.0})
    clock: FakeClock = field(default_factory=FakeClock)
    device: Device = ABACUS
    before: Callable[[int], None] = lambda number: None
    asked: list[Workload] = field(default_factory=list)
    closed: int = 0
    begun: list[Iterator[Answer]] = field(default_factory=list)

    def measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        self.begun.append(self._measure(questions))  # which keeps it open until it is closed
        return self.begun[-1]

    @property
    def calls(self) -> int:
        return len(self.begun)

    def _measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        try:
            for asked in questions:
                self.before(len(self.asked))
                self.asked.append(asked.workload)
                self.clock.now += 1
                yield answer(asked, lambda form: 1e-3 * self.milliseconds[form])
        finally:
            self.closed += 1


def with_facts(**facts: str) -> Device:
    return replace(ABACUS, facts={**ABACUS.facts, **facts})
