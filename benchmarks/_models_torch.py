"""A network in torch: as it is, under every free setting, and as `fx_rewrite` makes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from benchmarks._auto import AS_GIVEN, rewritten
from benchmarks._layers_work import DType
from benchmarks._records import Record
from benchmarks._run import give_up, refusal, still_there
from benchmarks._steps import numbers
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.tune.auto import Instruments
from dwr_rewrite.passes.fx.tune.settings import possible
from dwr_rewrite.passes.fx.tune.whole import Run, Setting, Work
from models.entry import Entry

FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, DwrError)
"""What a network, a setting or a compiler may fail with; the study goes on."""

STATUS = {torch.OutOfMemoryError: "out of memory"}
ORIGINAL, REWRITTEN = "original", "rewritten"


@dataclass(frozen=True)
class Asked:
    """What is timed: a network in one mode (``inference`` or ``training``), batch and dtype."""

    network: Entry
    mode: str
    batch: int
    dtype: DType
    compiled: bool = False


@dataclass(frozen=True)
class Torch:
    """torch on a device.

    Attributes:
        device: where.
        budget: seconds that ``fx_rewrite`` may measure for one plan.
        seconds: for timing all ways of a network.
        instruments: what measures.
    """

    device: torch.device
    budget: float
    seconds: float
    instruments: Instruments = field(default_factory=Instruments)

    def __call__(self, asked: Asked) -> list[Record]:
        """An entry for the original under every setting, and one for the rewritten model."""
        torch.compiler.reset()
        entries: list[Record] = []
        try:
            model, work = self.model(asked), self.work(asked)
            within = partial(numbers, asked.dtype, "default", self.device)
            runs = self._settings(Run(copy.deepcopy(model), work, within), entries)
            self._rewritten(model, work, within, runs, entries)
            self._time(runs, entries)
        except FAILURES as error:
            give_up(entries, error, STATUS, ORIGINAL)
            del error
            still_there(self.device, entries)
        return entries

    def model(self, asked: Asked) -> nn.Module:
        training = asked.mode == "training"
        module = asked.network.build().module.to(self.device)
        return module.train(training).requires_grad_(training)

    def work(self, asked: Asked) -> Work:
        generator = torch.Generator().manual_seed(1)
        shapes = [(asked.batch * shape[0], *shape[1:]) for shape in asked.network.shapes]
        inputs = tuple(torch.randn(s, generator=generator).to(self.device) for s in shapes)
        return Work(inputs, training=asked.mode == "training", compiled=asked.compiled)

    def _settings(self, base: Run, entries: list[Record]) -> dict[int, Run]:
        """The original's runs by the index of their entry, those that run at all."""
        runs: dict[int, Run] = {}
        frees = [AS_GIVEN, *(free for free in possible(base, self.device) if free.rounds_alike)]
        for free in frees:
            name = free.name or "as given"
            entry: Record = {"way": f"{ORIGINAL}, {name}", "role": ORIGINAL, "setting": free.name,
                             "how": free.how}  # fmt: skip
            entries.append(entry)
            self._try(partial(free.of, base), runs, entries)
        return runs

    def _rewritten(
        self, model: nn.Module, work: Work, within: Setting, runs: dict[int, Run],
        entries: list[Record],
    ) -> None:  # fmt: skip
        tuned = rewritten(model, work, self.device, self.budget, within, self.instruments)
        entry: Record = {"way": REWRITTEN, "role": REWRITTEN, "setting": tuned.setting.name,
                         "plan": tuned.facts}  # fmt: skip
        entries.append(entry)
        if not tuned.sites:
            entry.update(status="same", same_as=f"{ORIGINAL}, as given")
            return
        run = Run(tuned.model, work, within)
        self._try(partial(tuned.setting.of, run), runs, entries)

    def _try(self, make: Callable[[], Run], runs: dict[int, Run], entries: list[Record]) -> None:
        try:
            run = make()
            run()
            runs[len(entries) - 1] = run
        except FAILURES as error:
            entries[-1].update(refusal(error, STATUS))
            del error
            still_there(self.device, entries)

    def _time(self, runs: dict[int, Run], entries: list[Record]) -> None:
        if runs:
            timings = self.instruments.timer(list(runs.values()), self.seconds)
            for index, timing in zip(runs, timings, strict=True):
                us = [float(f"{1e6 * each:.5g}") for each in timing.samples]
                entries[index].update(status="timed", us=us)
