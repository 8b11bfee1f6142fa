"""What can be told about a rewritten model without running it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from onnx import ModelProto, NodeProto

from dwr_rewrite.equivalence.evidence import Lemma, Proof
from dwr_rewrite.passes.onnx.definitions import Definitions, Place
from dwr_rewrite.passes.onnx.graphs import quiet
from dwr_rewrite.passes.onnx.lemma import examine
from dwr_rewrite.passes.onnx.metadata import read
from dwr_rewrite.passes.onnx.structure import Changed, Structure, compare
from dwr_rewrite.passes.onnx.types import infer


def prove(
    reference: ModelProto, candidate: ModelProto, found: Structure | None = None
) -> Proof | None:
    """Compares two models node by node, and every marked convolution by the lemma.

    Args:
        reference: the original.
        candidate: the model in question, its tensors loaded.
        found: their comparison, where it was made already.

    Returns:
        None where the models differ and the candidate bears no mark of this tool: then nothing is
        claimed about its structure.

    Raises:
        DwrError: a model cannot be read, or a tensor of it.
    """
    found = found or compare(reference, candidate)
    if found.same:
        return Proof((), found.identical)
    if not any(_form(node) for scope in found.values.candidate.scopes for node in scope.proto.node):
        return None
    types = cache(lambda: infer(reference))
    marked = [changed for changed in found.changed if _form(changed.candidate.node)]
    with quiet():
        lemmas = [examine(changed, types) for changed in marked]
    lemmas += [_alone(place) for place in found.added if _form(place.node)]
    helpers = sum("role" in read(place.node) for place in found.added)
    return Proof(tuple(lemmas), found.identical, helpers, tuple(_differences(found, marked)))


def _form(node: NodeProto) -> str:
    """The form that a node is marked with; empty for a node without the mark."""
    return read(node).get("form", "")


def _alone(place: Place) -> Lemma:
    notes, output = read(place.node), place.node.output[0]
    detail = f"the reference computes no {output!r}"
    return Lemma(place.name, notes["form"], notes.get("weights", ""), "unproved", detail)


def _differences(found: Structure, marked: list[Changed]) -> Iterator[str]:
    """Everything that is not a matter of the lemmas, one sentence each."""
    for changed in found.changed:
        if not _form(changed.candidate.node):
            yield from (f"{changed.candidate}: {d.detail}" for d in changed.differences)
    for place in found.added:
        if not {"role", "form"} & read(place.node).keys():
            yield f"{place} is only in the candidate"
    explained = _replaced(found, marked)
    for place in found.removed:
        if place not in explained:
            yield f"{place} is only in the reference"
    yield from (text for _, text in found.others)


def _replaced(found: Structure, marked: list[Changed]) -> set[Place]:
    """Removed nodes that only the weights of the marked convolutions were computed by."""
    weights = {(changed.reference, 1) for changed in marked}
    before, replaced = found.values.reference, set(found.removed)
    while True:
        kept = {place for place in replaced if _feeds(before, place, weights, replaced)}
        if kept == replaced:
            return kept
        replaced = kept


def _feeds(
    reference: Definitions, place: Place, weights: set[tuple[Place, int]], replaced: set[Place]
) -> bool:
    """Whether all that reads a node's results is a weight operand or a replaced node."""
    readers = [r for name in place.node.output for r in reference.readers(place.scope, name)]
    leaves = any((place.scope, name) in reference.leaving for name in place.node.output)
    replacing = (reader in weights or reader[0] in replaced for reader in readers)
    return bool(readers) and not leaves and all(replacing)
