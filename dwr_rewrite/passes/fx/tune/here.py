"""On a device that is here: free settings, forms, and the whole model until it is faster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dwr_rewrite.cost import Model as CostModel
from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.passes.fx.tune.bench import TorchBench
from dwr_rewrite.passes.fx.tune.kernels import asked_of
from dwr_rewrite.passes.fx.tune.profile import Survey, survey_run
from dwr_rewrite.passes.fx.tune.request import Request
from dwr_rewrite.passes.fx.tune.settings import Free, laid_out, try_settings
from dwr_rewrite.passes.fx.tune.trial import Trial
from dwr_rewrite.passes.fx.tune.whole import Model, Run, Timer, Work, copied, runnable, time_runs
from dwr_rewrite.passes.fx.verify.running import eager
from dwr_rewrite.planner import Chooser, Plan, settle
from dwr_rewrite.planner.auto import Sites, measured
from dwr_rewrite.timing import FreeSetting, Runtime
from dwr_rewrite.tuning import Bench
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.models import model_of

log = logging.getLogger("dwr_rewrite")

Rewrite = Callable[[Any, Chooser], object]
"""Rewrites a model where it is, with the forms that a chooser gives."""


@dataclass(frozen=True)
class Instruments:
    """What measures.

    Attributes:
        bench: makes what times single convolutions on a device.
        timer: times whole models.
        seconds: at most, for one trial of the whole model, and for the free settings together.
    """

    bench: Callable[[torch.device], Bench] = TorchBench
    timer: Timer = time_runs
    seconds: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """What was chosen.

    Attributes:
        plan: for every site.
        runtime: what was timed; None where nothing was.
        layout: that the rewritten model is given, with which its forms were measured; None for
            the one that it has.
    """

    plan: Plan
    runtime: Runtime | None = None
    layout: torch.memory_format | None = None

    @property
    def speedup(self) -> float:
        """Of the whole model; 0 where nothing is rewritten."""
        if self.runtime is None or not self.plan.gains:
            return 0.0
        return self.runtime.trials[-1].speedup.median


@dataclass(frozen=True)
class Here:
    """Measures a model.

    Attributes:
        model: stays as it is.
        request: what is asked.
        work: what is run.
        survey: the sites.
        rewrite: the pass.
        device: that the model is on.
        instruments: what measures.
    """

    model: Model
    request: Request
    work: Work
    survey: Survey
    rewrite: Rewrite
    device: torch.device
    instruments: Instruments

    def outcome(self) -> Outcome:
        """What makes the whole model faster.

        The forms are weighed under the best free setting, and, where a model is not laid out as
        channels_last by then, in that layout too, in which block forms may be at their best while
        the depthwise ones are not: weights that lie so carry the layout through the whole model.

        Raises:
            DwrError: the model does not run, or cannot be copied.
        """
        original = Run(runnable(copied(self.model)), self.work)
        original.check()
        settings, best = try_settings(original, self.device, self.instruments.timer, self._seconds)
        grounds = [best, *self._layouts(original, best, settings)]
        budget = self.request.budget / len(grounds)
        found = [self._on(ground, original, best, settings, budget) for ground in grounds]
        return max(found, key=lambda outcome: outcome.speedup)  # the first where none is faster

    @property
    def _seconds(self) -> float:
        return min(self.instruments.seconds, self.request.budget / 4)

    def _layouts(
        self, original: Run, best: Free, settings: Sequence[FreeSetting]
    ) -> Iterator[Free]:
        """The best setting with the other layout, where a module can be laid out so."""
        ran = {setting.name for setting in settings if setting.speedup is not None}
        if isinstance(self.model, nn.Module) and best.layout is None:
            for last in laid_out(original):
                if last.name in ran:
                    yield replace(
                        best, name=", ".join(filter(None, (best.name, last.name))),
                        how="; ".join(filter(None, (best.how, last.how))), layout=last.layout,
                    )  # fmt: skip

    def _on(
        self, ground: Free, original: Run, best: Free, settings: Sequence[FreeSetting],
        budget: float,
    ) -> Outcome:  # fmt: skip
        """What a plan makes of the model that was measured on this ground."""
        layout = ground.layout if ground is not best else None

        def rewritten(plan: Plan) -> nn.Module:
            result = copied(self.model)
            self.rewrite(result, plan)
            module: Any = runnable(result)
            return module if layout is None else module.to(memory_format=layout)

        with ground.setting():
            bench = self.instruments.bench(self.device)
            sites = ran(ground.of(original), self.request, self.survey, self.device)
            plan = forms(sites, replace(self.request, budget=budget), bench)
        if layout is not None and not _is_checked(plan, sites):
            plan = plan.without(plan.choices)
        trial = Trial(
            original, best.of(original), best, ground, rewritten, self.instruments.timer,
            self._seconds,
        )  # fmt: skip
        settled = settle(plan, trial, self.request.min_speedup)
        runtime = trial.runtime(bench.device, settings, settled.attempts, self.device)
        return Outcome(_told(settled.plan, runtime, layout), runtime, layout)


def _is_checked(plan: Plan, sites: Sites) -> bool:
    """Whether the depthwise convolution of every site ran, and was right, as it was measured."""
    return all(
        any(option.form == KEEP and option.time is not None for option in choice.options)
        for name in sites.workloads
        for choice in plan.choices.get(name, ())
    ) and set(sites.workloads) <= set(plan.choices)


def _told(plan: Plan, runtime: Runtime, layout: torch.memory_format | None) -> Plan:
    """The plan with a sentence about what became of it."""
    text = plan.basis.sentence
    if plan.dropped and not plan.gains:
        text += "; with every choice of faster forms the whole model was no faster"
    if plan.gains:
        speedup = runtime.trials[-1].speedup
        text += (f"; the whole model is {speedup.median:.2f} times faster (95 % interval "
                 f"{speedup.low:.2f} to {speedup.high:.2f})")  # fmt: skip
    if runtime.setting:
        text += f", with {runtime.setting} for both models"
    if plan.gains and layout is not None:
        text += f"; the rewritten model is laid out as {layout}"
    return replace(plan, basis=replace(plan.basis, sentence=text))


def forms(sites: Sites, request: Request, bench: Bench) -> Plan:
    """The forms of single convolutions, from the database or measured."""
    count, budget = len(sites.questions), request.budget
    log.info("measuring %d convolutions on %s, for up to %g s", count, bench.device, budget)
    with Database.open() as database:
        return by_answers(sites, bench, database, request, remember=True)


def by_answers(
    sites: Sites, bench: Bench, database: Database, request: Request, remember: bool
) -> Plan:
    """A plan that rests on what a bench answers.

    Args:
        sites: what there is to choose for.
        bench: what answers; about our kernels, too, where they run on its device.
        database: where it is stored.
        request: budget and margin.
        remember: look there first, and keep what is answered.
    """
    sites = replace(sites, kernels=asked_of(bench.device))
    return measured(
        sites, bench, database if remember else None, budget=request.budget,
        min_speedup=request.min_speedup, model=_expectation(bench.device.name, database),
    )  # fmt: skip


def _expectation(name: str, database: Database) -> CostModel | None:
    """The cost model of a device, to be shown beside its times; None where it has none."""
    try:
        return model_of(name, database)
    except DwrError:
        return None


def ran(run: Run, request: Request, survey: Survey, device: torch.device) -> Sites:
    """The sites of a model with the sizes at which they run."""
    plain_run = replace(run, work=replace(run.work, compiled=False))  # compiled, it has no hooks
    gpu = device.type == "cuda"
    with eager():
        return survey_run(run.model, survey, plain_run.check, gpu, request.max_growth)
