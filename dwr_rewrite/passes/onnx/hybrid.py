"""The reference with some of the candidate's changes, to find out which of them matter."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from onnx import FunctionProto, ModelProto

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.definitions import Place
from dwr_rewrite.passes.onnx.graft import Graft
from dwr_rewrite.passes.onnx.graphs import Scope, label
from dwr_rewrite.passes.onnx.signature import opsets
from dwr_rewrite.passes.onnx.structure import Structure, compare, computing


@dataclass(frozen=True)
class _Change:
    """What is taken over from the candidate together.

    Attributes:
        values: of the main graph, which are then computed as in the candidate.
        function: the local function that takes the place of the reference's.
    """

    values: frozenset[str] = frozenset()
    function: FunctionProto | None = None


class Changes:
    """In what a candidate differs from its reference, as changes that can be made one by one.

    A change is a node of the main graph that computes the same values otherwise: another operator,
    other attributes or operands, another value stored for it, or something else in one of its
    bodies. A local function is one change. An output that is a node's result in one model and
    stored in the other is one too.
    """

    def __init__(
        self, reference: ModelProto, candidate: ModelProto, found: Structure | None = None
    ) -> None:
        """Compares two models that use the same names for the same values.

        Args:
            reference: the original.
            candidate: the model in question.
            found: their comparison, where it was made already.

        Raises:
            DwrError: a model cannot be read, or a tensor of it.
        """
        self._models = reference, candidate
        self._found = found or compare(reference, candidate)
        self._changes = dict(_unique(_changes(self._found)))

    @property
    def names(self) -> tuple[str, ...]:
        """The changes, in the reference's order of nodes: each has the name of its node."""
        return tuple(self._changes)

    def apply(self, names: Collection[str]) -> ModelProto:
        """The reference with some of the changes.

        What a changed node reads is the reference's, as far as that has it: a value that both
        models compute, an input, a stored value with the same bits. What only the candidate has
        comes along. Nodes and stored values that are then not needed for any output stay behind.

        Args:
            names: of changes; the name of a site in a body or function stands for the node or
                function around it. With none the reference itself is copied.

        Raises:
            DwrError: there is no such change, or it cannot be made alone: the models use different
                operator sets, or the candidate reads an input that the reference has not.
        """
        chosen = [self._changes[self._find(name)] for name in names]
        if not chosen:
            copy = ModelProto()
            copy.CopyFrom(self._models[0])
            return copy
        self._check_opsets()
        taken = frozenset[str]().union(*(change.values for change in chosen))
        functions = [change.function for change in chosen if change.function is not None]
        return Graft(self._found.values, taken).model(functions)

    def _find(self, name: str) -> str:
        """The change that a name means: itself, or the longest that it lies in."""
        around = [known for known in self._changes if name == known or name.startswith(f"{known}/")]
        if not around:
            raise DwrError(f"there is no change {name!r} between the two models")
        return max(around, key=len)

    def _check_opsets(self) -> None:
        before, after = (opsets(model.opset_import) for model in self._models)
        for domain in before:
            if after.get(domain, before[domain]) != before[domain]:
                raise DwrError(
                    f"the models use the opsets {before[domain]} and {after[domain]} of "
                    f"{domain or 'ai.onnx'}, whose nodes cannot stand in one graph; convert one of "
                    f"them with onnx.version_converter"
                )


def _unique(changes: Iterator[tuple[str, _Change]]) -> Iterator[tuple[str, _Change]]:
    """Numbers behind names that occur again."""
    taken = set[str]()
    for name, change in changes:
        count, unique = 1, name
        while unique in taken:
            count += 1
            unique = f"{name}#{count}"
        taken.add(unique)
        yield unique, change


def _changes(found: Structure) -> Iterator[tuple[str, _Change]]:
    before, after = found.values.reference, found.values.candidate
    r, c = before.scopes[0], after.scopes[0]
    roots, theirs = _roots(found), dict(computing(c))
    for output, place in computing(r):
        if place in roots and output in theirs:
            yield label(place.node), _Change(_outputs(theirs[output]))
    for place in found.added:  # one that computes what is a further output of another node
        shared = any(isinstance(before.find(r, name), Place) for name in _outputs(place))
        if shared and place.scope is c:
            yield label(place.node), _Change(_outputs(place))
    for name in (value.name for value in before.model.graph.output):
        if after.find(c, name) and found.values.difference(r, name, c, name):
            yield name, _Change(frozenset((name,)))
    for key, scope in before.functions.items():
        other = after.functions.get(key)
        if scope in roots and other and isinstance(other.proto, FunctionProto):
            yield scope.path[:-1], _Change(function=other.proto)


def _roots(found: Structure) -> set[Place | Scope | None]:
    """For every difference the node of the main graph, or the function, that it lies in."""
    scopes = [place.scope for place in found.removed]
    scopes += [found.scopes[place.scope] for place in found.added]
    scopes += [scope for scope, _ in found.others]
    places = (changed.reference for changed in found.changed)
    return {
        *(_root(place.scope, place.index) for place in places),
        *(_root(scope, None) for scope in scopes),
    }


def _root(scope: Scope, index: int | None) -> Place | Scope | None:
    """None for what belongs to the main graph as a whole."""
    while scope.parent is not None and scope.holder is not None:
        scope, index = scope.parent, scope.holder[0]
    if scope.path:
        return scope
    return None if index is None else Place(scope, index)


def _outputs(place: Place) -> frozenset[str]:
    return frozenset(name for name in place.node.output if name)
