"""``dwr.fx_rewrite``: one call for modules, traced graphs and exported programs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from dwr_rewrite import cost
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.lowerings import KEEP, lower
from dwr_rewrite.passes.fx import attributes, exported, graph, modules
from dwr_rewrite.passes.fx.decide import FormPolicy, Options, options
from dwr_rewrite.passes.fx.notes import note, record, runtime
from dwr_rewrite.passes.fx.observe import functional_calls
from dwr_rewrite.passes.fx.tune import auto
from dwr_rewrite.passes.fx.tune.auto import Instruments, Outcome, choose
from dwr_rewrite.passes.fx.tune.request import Wish, request_for
from dwr_rewrite.passes.fx.tune.whole import Step
from dwr_rewrite.passes.fx.verify.calling import as_arguments
from dwr_rewrite.planner import AUTO, Chooser
from dwr_rewrite.planner.auto import Sites
from dwr_rewrite.report import SiteReport

__all__ = ["fx_rewrite", "record", "restore", "runtime", "survey"]

Model = TypeVar("Model", nn.Module, GraphModule, ExportedProgram)


def fx_rewrite(
    model: Model,
    example_inputs: Any = None,
    *,
    policy: FormPolicy = AUTO,
    target: str | None = None,
    budget: float = 60.0,
    min_speedup: float = 1.02,
    step: Step | None = None,
    compiled: bool = False,
    weights: Literal["precomputed", "linked"] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_growth: int = 256 << 20,
    inplace: bool = False,
) -> Model:
    """Rewrites the depthwise convolutions of a torch model in a form that is faster.

    They become diagonal standard convolutions, or are run by kernels of our own.

    By default every convolution takes the form that is measured to be fastest on the GPU that the
    model is on, and what does not make the whole model faster is taken back. Where nothing is known
    to be faster, the model is returned as it is; the logger ``dwr_rewrite`` says why at INFO.

    Args:
        model: a module (rewritten where it is, without tracing), a traced GraphModule, or an
            ExportedProgram.
        example_inputs: arguments of its forward, as it is going to be used: a tensor, a sequence,
            or a dict by name. ``auto`` measures with their sizes; an ExportedProgram brings its
            own. With any policy, a module is run on them once after the rewrite, in eval mode, so
            that convolutions which its code calls as functions are reported too.
        policy: ``auto``; or ``blocks:N``, ``dense``, ``keep``, ``kernel`` or ``kernel:TILE`` for
            all; or a mapping with one of these for each of ``forward``, ``grad_input`` and
            ``grad_weight`` (linked weights only; default keep).
        target: what the model is to be fast on, where that is not the GPU that it is on: ``cpu``,
            or the name of a GPU that is not here (``H200``), for which recorded answers or the cost
            model decide.
        budget: seconds for measuring convolutions, besides trials of the whole model.
        min_speedup: how many times faster a form, and the whole model, has to be.
        step: runs the model that it is given once, as it is going to be used, for instance a whole
            training step. By default an inference for precomputed weights; for linked ones forward,
            backward from the mean squares of the outputs, and a step of SGD.
        compiled: both models are timed as ``torch.compile`` makes them.
        weights: ``precomputed`` stores diagonal weights in ordinary convolutions; ``linked`` keeps
            the compact parameters, their names and their gradients, as a kernel always does. By
            default linked in training mode and precomputed in eval mode and for exported programs.
        include: only sites whose name one of these regular expressions finds.
        exclude: no site whose name one of these finds.
        max_growth: bytes that one packed weight may have more than its compact one.
        inplace: change ``model`` itself and return it.

    Returns:
        The same kind of model. :func:`record` tells what was done to it, :func:`runtime` what was
        timed.

    Raises:
        DwrError: an argument is wrong.
    """
    if weights not in (None, "precomputed", "linked"):
        raise DwrError(f"weights {weights!r}: precomputed, linked or None expected")
    given: Any = model
    if not isinstance(given, nn.Module | ExportedProgram):
        raise DwrError(
            f"a torch.nn.Module, GraphModule or ExportedProgram expected, not "
            f"{type(given).__name__}"
        )
    training = isinstance(given, nn.Module) and given.training
    linked = weights == "linked" or (weights is None and training)
    chosen = options(policy, linked, include, exclude, max_growth)
    wish = Wish(target, budget, min_speedup, step, compiled)
    if policy != AUTO and wish != Wish():
        raise DwrError(f"target, budget, min_speedup, step and compiled are for policy='auto', and "
                       f"the policy is {policy!r}")  # fmt: skip
    return perform(model, example_inputs, chosen, wish if policy == AUTO else None, inplace)


def survey(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    step: Step | None = None,
    weights: Literal["precomputed", "linked"] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_growth: int = 256 << 20,
) -> Sites:
    """The convolutions that ``auto`` would weigh, with the sizes at which they run.

    Its ``questions`` are what :func:`dwr_rewrite.tune.share` shares out over several GPUs; what is
    answered there is not measured again by :func:`fx_rewrite`, whose arguments these are.

    Raises:
        DwrError: an argument is wrong, or the model does not run.
    """
    linked = weights == "linked" or (weights is None and getattr(model, "training", False))
    chosen = options(AUTO, linked, include, exclude, max_growth)
    request = request_for(model, example_inputs, chosen, Wish(step=step))

    def rewrite(other: Any, chooser: Chooser) -> None:
        list(_rewrite(other, chosen.by(chooser)))

    return auto.survey(model, request, rewrite)


def rewrite_noted(
    model: GraphModule,
    example_inputs: Sequence[Any],
    *,
    policy: FormPolicy = AUTO,
    target: str | None = None,
    budget: float = 60.0,
    min_speedup: float = 1.02,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_growth: int = 256 << 20,
) -> GraphModule:
    """Rewrites a graph of Dynamo's with linked weights; arguments as those of :func:`fx_rewrite`.

    ``auto`` measures single convolutions with the sizes that Dynamo noted, and not the whole model,
    which is only a graph of its operators here.
    """
    chosen = options(policy, True, include, exclude, max_growth)
    wish = Wish(target, budget, min_speedup, noted=True) if policy == AUTO else None
    return perform(model, example_inputs, chosen, wish, inplace=False)


def perform(
    model: Model,
    example_inputs: Any,
    chosen: Options,
    wish: Wish | None,
    inplace: bool,
    instruments: Instruments | None = None,
) -> Model:
    """Rewrites a model as :func:`fx_rewrite` was asked to.

    Args:
        model: the model.
        example_inputs: arguments of its forward, or None.
        chosen: what to do with every site; ``auto`` puts its plan in place of the choosers.
        wish: what ``auto`` is to reach; None for another policy.
        inplace: change ``model`` itself.
        instruments: what measures.
    """
    outcome = None
    if wish is not None:
        request = request_for(model, example_inputs, chosen, wish)

        def rewrite(other: Any, chooser: Chooser) -> None:
            list(_rewrite(other, chosen.by(chooser)))

        outcome = choose(model, request, rewrite, instruments or Instruments())
        chosen = chosen.by(outcome.plan)
    result: Any = model if inplace else _copy(model)
    reports = [_weighed(site, outcome) for site in _rewrite(result, chosen)]
    if outcome is not None and outcome.layout is not None:
        result.to(memory_format=outcome.layout)
    runs = isinstance(model, nn.Module) and not (wish and wish.noted)
    if example_inputs is not None and runs:
        args, named = as_arguments(example_inputs)
        reports += functional_calls(result, args, named, (site.name for site in reports))
    note(result, reports, None if outcome is None else outcome.runtime)
    return result


def _weighed(site: SiteReport, outcome: Outcome | None) -> SiteReport:
    """A report with what was weighed, and with the size at which it ran."""
    choices = () if outcome is None else outcome.plan.choices.get(site.name, ())
    if not choices:
        return site
    forward = choices[0]
    spec, before = forward.workload.spec, cost.macs(forward.workload.spec)
    taken = lower(spec, forward.form if site.changed else KEEP)
    assert not isinstance(taken, Rejection)  # it was measured, or is the convolution itself
    macs = (before, cost.macs(spec, taken.packing.width))
    return replace(site, choices=choices, spec=spec, macs=macs)


def _copy(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # the old weight_norm keeps a tensor that torch does not copy
        raise DwrError(f"the model cannot be copied: {error}; pass inplace=True") from error


def _rewrite(model: nn.Module | ExportedProgram, chosen: Options) -> Iterator[SiteReport]:
    if isinstance(model, ExportedProgram):
        yield from exported.rewrite(model, chosen)
        return
    yield from modules.rewrite(model, chosen, attributes.tensors_read(model))
    yield from graph.rewrite(model, chosen)


def restore(model: Model, *, inplace: bool = False) -> Model:
    """Gives a rewritten torch model its depthwise convolutions back.

    Args:
        model: what :func:`fx_rewrite` returned, possibly trained since.
        inplace: change ``model`` itself and return it.
    """
    result: Any = model if inplace else _copy(model)
    note(result, list(_restore(result)))
    return result


def _restore(model: nn.Module | ExportedProgram) -> Iterator[SiteReport]:
    if isinstance(model, ExportedProgram):
        yield from exported.restore(model)
        return
    yield from modules.restore(model)
    yield from graph.restore(model)
