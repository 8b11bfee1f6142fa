"""The policy ``auto`` for a torch model: what its forms and what the whole of it take, measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dwr_rewrite import cost
from dwr_rewrite.cost import load_model
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.tune.bench import TorchBench
from dwr_rewrite.passes.fx.tune.places import is_here, place, plain, recorded
from dwr_rewrite.passes.fx.tune.profile import Survey, survey_notes, survey_run
from dwr_rewrite.passes.fx.tune.request import Request
from dwr_rewrite.passes.fx.tune.settings import try_settings
from dwr_rewrite.passes.fx.tune.trial import Trial
from dwr_rewrite.passes.fx.tune.whole import Model, Run, Timer, Work, copied, runnable, time_runs
from dwr_rewrite.passes.fx.verify.running import eager, seeded
from dwr_rewrite.planner import Basis, Chooser, Plan, settle
from dwr_rewrite.planner.auto import Sites, measured, modelled, nothing
from dwr_rewrite.timing import Runtime
from dwr_rewrite.tuning import Bench
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.recorded import Recorded

log = logging.getLogger("dwr_rewrite")

Rewrite = Callable[[Any, Chooser], object]
"""Rewrites a model where it is, with the forms that a chooser gives."""

NO_SIZES = (
    "without example_inputs (or a step) nothing is known of the sizes of its convolutions: pass "
    "them, or name a form as the policy ('blocks:32'); every convolution is kept"
)
NO_TARGET = (
    "the model is on the CPU, and nothing says what it is to be fast on, so that nothing is known "
    "to be faster: every convolution is kept. Move it to a GPU to measure there, name one "
    "(target='H200'), or say target='cpu'"
)
NO_PLACE = (
    "the model and its inputs lie on several devices, and forms are measured on one: every "
    "convolution is kept. Move them to one, or name a form as the policy ('blocks:32')"
)


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
    """

    plan: Plan
    runtime: Runtime | None = None


def choose(model: Model, request: Request, rewrite: Rewrite, instruments: Instruments) -> Outcome:
    """Chooses by measurement where the target is here, else by what is known of it.

    Args:
        model: stays as it is.
        request: what is asked.
        rewrite: the pass.
        instruments: what measures.

    Raises:
        DwrError: the model does not run, cannot be copied, or is not on the target.
    """
    outcome = _choose(model, request, rewrite, instruments)
    log.info("%s", sentence(outcome))
    return outcome


def sentence(outcome: Outcome) -> str:
    """What came out, for a person."""
    plan = outcome.plan
    if plan.basis.source == "nothing":
        return plan.basis.sentence
    count = f"{len(plan.gains)} of {len(plan.choices) + len(plan.left)} convolutions"
    if plan.gains:
        return f"rewrote {count}, {plan.basis.sentence}"
    where = "is known" if outcome.runtime is None else f"on {outcome.runtime.device}"
    return f"kept the original: no faster form {where} ({plan.basis.sentence})"


def _choose(model: Model, request: Request, rewrite: Rewrite, instruments: Instruments) -> Outcome:
    work, target = request.work, request.target
    if work is None:
        return Outcome(nothing(NO_SIZES))
    survey = Survey()
    rewrite(model, survey)
    if not survey.specs:
        return Outcome(nothing("it has no depthwise convolution that can be rewritten"))
    device = place(model, work)
    if device is None:
        return Outcome(nothing(NO_PLACE))
    if target is None and device.type == "cpu":
        return Outcome(nothing(NO_TARGET))
    if target is not None and not is_here(device, target):
        return _elsewhere(model, request, survey, target)
    if device.type not in ("cpu", "cuda"):
        return Outcome(nothing(f"forms are not measured on {device.type} devices"))
    if request.noted:
        sites, bench = _noted(model, request, survey, device), instruments.bench(device)
        return Outcome(_forms(sites, request, bench))
    with torch.inference_mode(mode=False), seeded(runnable(model)):
        return _whole(model, request, work, survey, rewrite, device, instruments)


def _whole(
    model: Model, request: Request, work: Work, survey: Survey, rewrite: Rewrite,
    device: torch.device, instruments: Instruments,
) -> Outcome:  # fmt: skip
    """The free settings, the forms under the best of them, and the whole model until it is faster.

    Everything is measured under that setting; what is rewritten has to be faster as it was given
    too.
    """

    def rewritten(plan: Plan) -> nn.Module:
        result = copied(model)
        rewrite(result, plan)
        return runnable(result)

    original = Run(runnable(copied(model)), work)
    original.check()
    seconds = min(instruments.seconds, request.budget / 4)
    settings, best = try_settings(original, device, instruments.timer, seconds)
    reference = best.of(original)
    with best.setting():
        bench = instruments.bench(device)
        plan = _forms(_ran(reference, request, survey, device), request, bench)
    trial = Trial(original, reference, best, rewritten, instruments.timer, seconds)
    settled = settle(plan, trial, request.min_speedup)
    runtime = trial.runtime(bench.device, settings, settled.attempts, device)
    return Outcome(_told(settled.plan, runtime), runtime)


def _told(plan: Plan, runtime: Runtime) -> Plan:
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
    return replace(plan, basis=replace(plan.basis, sentence=text))


def _forms(sites: Sites, request: Request, bench: Bench) -> Plan:
    """The forms of single convolutions, from the database or measured."""
    count, budget = len(sites.questions), request.budget
    log.info("measuring %d convolutions on %s, for up to %g s", count, bench.device, budget)
    with Database.open() as database:
        return _measured(sites, bench, database, request)


def _measured(sites: Sites, bench: Bench, database: Database | None, request: Request) -> Plan:
    return measured(
        sites, bench, database, budget=request.budget, min_speedup=request.min_speedup,
        model=_expectation(bench.device.name),
    )  # fmt: skip


def _expectation(name: str) -> cost.Model | None:
    """The cost model of a device, to be shown beside its times; None where it has none."""
    try:
        return load_model(name)
    except DwrError:
        return None


def _elsewhere(model: Model, request: Request, survey: Survey, target: str) -> Outcome:
    """By what a device that is not here has answered before, or by the cost model."""
    work = request.work
    assert work is not None
    if plain(target) == "cpu":
        raise DwrError("target='cpu', but the model is not on the CPU: move it there")
    gpu = torch.device("cuda", 0)
    if request.noted:
        sites = _noted(model, request, survey, gpu)
    else:
        with torch.inference_mode(mode=False), seeded(runnable(model)):
            sites = _ran(Run(runnable(copied(model)), work), request, survey, gpu)
    with Database.open() as database:
        device = recorded(database.devices(), target)
        if device is not None:
            bench = Recorded(database, device)
            plan = _measured(sites, bench, None, request)
            if plan.choices:
                text = f"as {device} answered before; the whole model was not timed"
                return Outcome(replace(plan, basis=Basis("measured", text)))
    return Outcome(modelled(sites, load_model(target)))


def _ran(run: Run, request: Request, survey: Survey, device: torch.device) -> Sites:
    plain_run = replace(run, work=replace(run.work, compiled=False))  # compiled, it has no hooks
    gpu = device.type == "cuda"
    with eager():
        return survey_run(run.model, survey, plain_run.check, gpu, request.max_growth)


def _noted(model: Model, request: Request, survey: Survey, device: torch.device) -> Sites:
    assert isinstance(model, torch.fx.GraphModule)
    return survey_notes(model, survey, device.type == "cuda", request.max_growth)
