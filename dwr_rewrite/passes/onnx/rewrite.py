"""The pass itself: match, plan, emit. Knows nothing of files, processes or terminals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import onnx
from onnx import ModelProto

from dwr_rewrite import cost
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.passes.onnx.emit import LINKED_SINCE_OPSET, Emitter
from dwr_rewrite.passes.onnx.graphs import (
    OVERRIDABLE_SINCE_IR,
    Scope,
    opset,
    quiet,
    scopes,
)
from dwr_rewrite.passes.onnx.match import Context, Left, Match, match
from dwr_rewrite.passes.onnx.restore import restore
from dwr_rewrite.passes.onnx.types import infer
from dwr_rewrite.planner import AUTO, Chooser, Decision, Policy, Selection, decide
from dwr_rewrite.report import SiteReport

OLDEST_OPSET, OLDEST_IR = 6, 3


@dataclass(frozen=True)
class Options:
    """What the pass is asked to do; the command line has one flag for each field.

    Attributes:
        policy: ``auto`` (every site takes the form that is fastest), ``keep``, ``dense``,
            ``blocks`` or ``blocks:N``.
        weights: ``precomputed`` stores the diagonal weight; ``linked`` keeps the compact one and
            builds the diagonal in the graph.
        freeze_weights: initializers that are also graph inputs stop being inputs.
        include: only sites whose name one of these regular expressions finds; empty for all.
        exclude: no site whose name one of these finds.
        max_growth: weight bytes that may be added in all.
        restore: undo an earlier rewrite instead.
    """

    policy: str = AUTO
    weights: Literal["precomputed", "linked"] = "precomputed"
    freeze_weights: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    max_growth: int = 256 << 20
    restore: bool = False


Results = tuple[list[Scope], list[Match | Left]]
"""The scopes of a model, and every convolution that was seen in them."""


def find(model: ModelProto, options: Options) -> Results:
    """The convolutions of a model, which is not changed, in graph order.

    Raises:
        DwrError: an option is wrong, or the model cannot be read.
    """
    check_options(options)
    selection = Selection.parse(options.include, options.exclude)
    _check_versions(model)
    found = scopes(model)
    fed = frozenset[str]() if options.freeze_weights else overridable(model)
    context = Context(selection, fed, cache(lambda: infer(model)))
    return found, [_linkable(r, options) for scope in found for r in match(scope, context)]


def check_options(options: Options) -> None:
    """Refuses what cannot be asked for.

    Raises:
        DwrError: says what.
    """
    if options.policy != AUTO and Policy.parse(options.policy).is_kernel:
        raise DwrError(
            f"policy {options.policy!r}: kernel is for torch models, which can call our "
            f"Triton kernels; for an ONNX model use auto, keep, dense or blocks:N"
        )
    if options.weights not in ("precomputed", "linked"):
        raise DwrError(f"weights {options.weights!r}: precomputed or linked expected")
    Selection.parse(options.include, options.exclude)


def rewrite(model: ModelProto, options: Options, plan: Chooser | None = None) -> list[SiteReport]:
    """Rewrites ``model`` in place; returns what was seen, in graph order.

    Args:
        model: the model.
        options: what is asked.
        plan: gives each site its form; the policy of the options by default.

    Raises:
        DwrError: an option is wrong, or the model cannot be read.
    """
    check_options(options)
    with quiet():
        if options.restore:
            _check_versions(model)
            selection = Selection.parse(options.include, options.exclude)
            return _restore(model, scopes(model), selection)
        if options.freeze_weights:
            freeze(model)
        found, results = find(model, options)
        sites = [result.site for result in results if isinstance(result, Match)]
        chooser = Policy.parse(options.policy) if plan is None else plan
        decisions = iter(decide(sites, chooser, options.max_growth))
        emitter, reports = Emitter(model, found), list[SiteReport]()
        for result in results:
            if isinstance(result, Left):
                reports.append(SiteReport(result.name, result.op, "keep", result.rejection))
                continue
            decision = next(decisions)
            linked = _is_linked(result, options)
            if decision.recipe is not None:
                emitter.rewrite(result, decision, linked)
            reports.append(_report(result, decision, linked))
        emitter.finish()
    return reports


def _report(match: Match, decision: Decision, linked: bool) -> SiteReport:
    spec, recipe = match.site.spec, decision.recipe
    return SiteReport(
        match.site.name,
        match.site.op,
        decision.form,
        reason=decision.kept,
        spec=spec,
        output=match.node.outputs[0].name,
        weights=None if recipe is None else "linked" if linked else "precomputed",
        growth=decision.growth,
        macs=(cost.macs(spec), cost.macs(spec, recipe.packing.width if recipe else 1)),
    )


def _restore(model: ModelProto, found: list[Scope], selection: Selection) -> list[SiteReport]:
    """Undoes earlier rewrites; the geometry is read off the restored model."""
    restored = restore(model, found, selection)
    context = Context(Selection(), frozenset(), cache(lambda: infer(model)))
    results = [result for scope in scopes(model) for result in match(scope, context)]
    matches = {result.site.name: result for result in results if isinstance(result, Match)}
    reports: list[SiteReport] = []
    for r in restored:
        now = matches.get(r.name)
        spec, output = (now.site.spec, now.node.outputs[0].name) if now else (None, "")
        form = "keep" if r.rejection is None else r.form
        reports.append(SiteReport(r.name, r.op, form, r.rejection, spec, output, undone=r.form))
    return reports


def _check_versions(model: ModelProto) -> None:
    version, newest = opset(model), onnx.defs.onnx_opset_version()
    if model.ir_version < OLDEST_IR:
        raise DwrError(
            f"the model has IR version {model.ir_version}; {OLDEST_IR} or newer expected"
        )
    if version and not OLDEST_OPSET <= version <= newest:
        raise DwrError(
            f"the model uses opset {version}; {OLDEST_OPSET} to {newest} are supported: convert it "
            f"with onnx.version_converter, or install a newer onnx"
        )


def overridable(model: ModelProto) -> frozenset[str]:
    """Initializers that the caller may feed another value for."""
    if model.ir_version < OVERRIDABLE_SINCE_IR:
        return frozenset()
    inputs = {value.name for value in model.graph.input}
    return frozenset(t.name for t in model.graph.initializer if t.name in inputs)


def freeze(model: ModelProto) -> None:
    """Makes what callers could override constant."""
    names = overridable(model)
    free = [value for value in model.graph.input if value.name not in names]
    kept = onnx.GraphProto(input=free)
    del model.graph.input[:]
    model.graph.input.MergeFrom(kept.input)


def _is_linked(match: Match, options: Options) -> bool:
    """A weight that is not fixed can only be linked; a quantized one only be stored."""
    weight = match.weight
    return weight.load is None or (options.weights == "linked" and weight.quantized is None)


def _linkable(result: Match | Left, options: Options) -> Match | Left:
    if not isinstance(result, Match) or not _is_linked(result, options):
        return result
    if result.scope.opset >= LINKED_SINCE_OPSET:
        return result
    reason = Rejection(
        "linked-opset",
        f"its weight must be built in the graph, which takes opset {LINKED_SINCE_OPSET}; the model "
        f"has {result.scope.opset}",
    )
    return Left(result.site.name, result.site.op, reason)
