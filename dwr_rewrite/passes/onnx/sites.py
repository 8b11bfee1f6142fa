"""The depthwise convolutions of a reference, and what a candidate has in their place."""

from __future__ import annotations

from functools import cache

from onnx import ModelProto, NodeProto

from dwr_rewrite import cost
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.passes.onnx.graphs import Scope, quiet, scopes
from dwr_rewrite.passes.onnx.match import Context, Match, match
from dwr_rewrite.passes.onnx.metadata import read
from dwr_rewrite.passes.onnx.types import infer
from dwr_rewrite.planner import Policy, Selection
from dwr_rewrite.recipe import Packing
from dwr_rewrite.report import SiteReport

Nodes = dict[tuple[str, str], NodeProto]
"""Nodes by scope and first output."""


def compare_sites(reference: ModelProto, candidate: ModelProto) -> list[SiteReport]:
    """Every depthwise convolution of the reference, in graph order, with its form in the candidate.

    A candidate that this tool has restored is told the other way round: its reference holds the
    rewritten nodes.

    Raises:
        DwrError: a model cannot be read.
    """
    with quiet():
        before, after = scopes(reference), scopes(candidate)
        theirs = _nodes(after)
        sites = [_site(found, theirs) for found in _matches(reference, before)]
        ours = {key: read(node) for key, node in _nodes(before).items()}
        sites += [
            _restored(found, form)
            for found in _matches(candidate, after)
            if (form := ours.get(_key(found), {}).get("form"))
        ]
    return sites


def _matches(model: ModelProto, found: list[Scope]) -> list[Match]:
    context = Context(Selection(), frozenset(), cache(lambda: infer(model)))
    results = [result for scope in found for result in match(scope, context)]
    return [result for result in results if isinstance(result, Match)]


def _nodes(found: list[Scope]) -> Nodes:
    return {
        (scope.path, node.output[0]): node
        for scope in found
        for node in scope.proto.node
        if node.output
    }


def _key(found: Match) -> tuple[str, str]:
    return found.scope.path, found.node.outputs[0].name


def _site(found: Match, theirs: Nodes) -> SiteReport:
    site, spec = found.site, found.site.spec
    node = theirs.get(_key(found))
    notes = {} if node is None else read(node)
    output, macs = found.node.outputs[0].name, cost.macs(spec)
    packing = _packing(found, notes.get("form", ""))
    if node is None or packing is None:
        reason = (
            Rejection("not-there", "the candidate has no value of this name")
            if node is None
            else Rejection("unmarked", "not marked as rewritten by this tool")
        )
        return SiteReport(site.name, site.op, "keep", reason, spec, output, macs=(macs, macs))
    return SiteReport(
        site.name, site.op, notes["form"], spec=spec, output=output,
        weights=notes.get("weights"), growth=packing.growth * site.weight_bytes,
        macs=(macs, cost.macs(spec, packing.width)),
    )  # fmt: skip


def _packing(found: Match, form: str) -> Packing | None:
    """The packing of a form as the metadata names it; None where it names none."""
    try:
        policy = Policy.parse(form)
    except DwrError:
        return None
    recipe = policy.recipe(found.site.name, found.site.spec, "forward")
    return None if policy.is_kernel or isinstance(recipe, Rejection) else recipe.packing


def _restored(found: Match, form: str) -> SiteReport:
    site, output = found.site, found.node.outputs[0].name
    return SiteReport(site.name, site.op, "keep", None, site.spec, output, undone=form)
