"""The policy ``auto`` for a torch model: what its forms and what the whole of it take, measured."""

from __future__ import annotations

from dataclasses import replace

import torch

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.tune.device import describe
from dwr_rewrite.passes.fx.tune.here import (
    Here,
    Instruments,
    Outcome,
    Rewrite,
    by_answers,
    forms,
    log,
    ran,
)
from dwr_rewrite.passes.fx.tune.kernels import asked_of, heuristic
from dwr_rewrite.passes.fx.tune.places import is_here, place, recorded
from dwr_rewrite.passes.fx.tune.profile import Survey, survey_notes
from dwr_rewrite.passes.fx.tune.request import Request
from dwr_rewrite.passes.fx.tune.whole import Model, Run, copied, runnable
from dwr_rewrite.passes.fx.verify.running import seeded
from dwr_rewrite.planner import Basis
from dwr_rewrite.planner.auto import Sites, modelled, nothing
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.models import model_of
from dwr_rewrite.tuning.recorded import Recorded

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
        return Outcome(forms(sites, request, bench))
    with torch.inference_mode(mode=False), seeded(runnable(model)):
        return Here(model, request, work, survey, rewrite, device, instruments).outcome()


def _elsewhere(model: Model, request: Request, survey: Survey, target: str) -> Outcome:
    """By what a device that is not here has answered before, or by the cost model."""
    work = request.work
    assert work is not None
    if target.strip().lower() == "cpu":
        raise DwrError("target='cpu', but the model is not on the CPU: move it there")
    gpu = torch.device("cuda", 0)
    if request.noted:
        sites = _noted(model, request, survey, gpu)
    else:
        with torch.inference_mode(mode=False), seeded(runnable(model)):
            sites = ran(Run(runnable(copied(model)), work), request, survey, gpu)
    with Database.open() as database:
        device = recorded(database.devices(), target)
        if device is not None:
            bench = Recorded(database, device)
            plan = by_answers(sites, bench, database, request, remember=False)
            if plan.choices:
                text = f"as {device} answered before; the whole model was not timed"
                return Outcome(replace(plan, basis=Basis("measured", text)))
        sites = replace(sites, kernels=heuristic)
        return Outcome(modelled(sites, model_of(target, database)))


def survey(model: Model, request: Request, rewrite: Rewrite) -> Sites:
    """The sites of a model with the sizes at which they run, whatever is to become of them.

    Raises:
        DwrError: no inputs are known, or the model does not run, or lies on several devices.
    """
    if request.work is None:
        raise DwrError("sizes are known from a run only: pass example_inputs or a step")
    device = place(model, request.work)
    if device is None:
        raise DwrError("the model and its inputs lie on several devices: move them to one")
    found = Survey()
    rewrite(model, found)
    with torch.inference_mode(mode=False), seeded(runnable(model)):
        sites = ran(Run(runnable(copied(model)), request.work), request, found, device)
    return replace(sites, kernels=asked_of(describe(device)))


def _noted(model: Model, request: Request, survey: Survey, device: torch.device) -> Sites:
    assert isinstance(model, torch.fx.GraphModule)
    return survey_notes(model, survey, device.type == "cuda", request.max_growth)
