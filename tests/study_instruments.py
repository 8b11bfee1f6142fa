"""Clocks and devices whose times are made up, for the studies of benchmarks/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import torch

from benchmarks._layers_clock import Sampler
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.passes.fx.notes import RECORD
from dwr_rewrite.passes.fx.tune.auto import Instruments
from dwr_rewrite.passes.fx.tune.whole import Run
from dwr_rewrite.timing import Timing
from dwr_rewrite.tuning import Answer, Device, Question

SAMPLES = 24
"""Twelve rounds, which a decision takes."""


class CountingClock:
    """The n-th thing that it samples takes n microseconds, every time."""

    replayed = "made up"

    def __init__(self) -> None:
        self.turns = count(1)

    def start(self) -> None:
        self.turns = count(1)

    def once(self, call: Callable[[int], Any]) -> float:
        call(0)
        return 1.0

    def sampler(self, call: Callable[[int], Any], calls: int) -> Sampler:
        us = float(next(self.turns))
        return lambda: us

    def gaps(self, call: Callable[[int], Any], calls: int) -> None:
        return None


class BlocksWin:
    """A device on which ``blocks:8`` takes half the time of ``keep``, and others twice as long."""

    device = Device("made up", "torch", {"made": "up"})

    def measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        seconds = {KEEP: 2.0, "blocks:8": 1.0}
        for question in questions:
            timings = {f: Timing((seconds.get(f, 4.0),) * SAMPLES) for f in question.forms}
            yield Answer(question.workload, timings)


def instruments(of_run: Callable[[int, Run], float]) -> Instruments:
    """Whole models take what ``of_run`` says of their place and run; blocks:8 wins alone."""

    def timer(runs: Sequence[Run], seconds: float) -> tuple[Timing, ...]:
        for run in runs:
            run()
        return tuple(Timing((of_run(i, run),) * SAMPLES) for i, run in enumerate(runs))

    return Instruments(lambda device: BlocksWin(), timer, 0.0)


def is_result(run: Run) -> bool:
    """Whether this is what ``fx_rewrite`` returned, not one of its own trials."""
    return getattr(run.model, RECORD, None) is not None


CPU = torch.device("cpu")
