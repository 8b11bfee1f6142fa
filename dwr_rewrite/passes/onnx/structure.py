"""Two models held against each other node by node, without running them.

Values correspond by name, nodes by the first value that they compute, bodies by the node and
attribute that hold them, functions by domain, name and overload. The order of nodes, their names
and all that is only for people (doc strings, metadata, inferred types) is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from dwr_rewrite.passes.onnx.attributes import attribute_differences
from dwr_rewrite.passes.onnx.correspondence import ANOTHER, Correspondence
from dwr_rewrite.passes.onnx.definitions import Definitions, Place, is_constant
from dwr_rewrite.passes.onnx.graphs import Scope, quiet
from dwr_rewrite.passes.onnx.match import STANDARD
from dwr_rewrite.passes.onnx.signature import (
    body_differences,
    function_differences,
    model_differences,
)

_CONVOLUTION = ("input", "weight", "bias")
_OPERANDS = {"Conv": _CONVOLUTION, "ConvTranspose": _CONVOLUTION, "FusedConv": _CONVOLUTION}
"""What the operands of these operators are called in a sentence."""


@dataclass(frozen=True)
class Difference:
    """One thing in which two corresponding nodes differ.

    Attributes:
        kind: of thing.
        key: name of the attribute, position of the operand.
        detail: a sentence on the candidate: "its pads are [1, 1], the reference has [0, 1]".
        certain: the values themselves are known to differ, not only what computes them.
    """

    kind: Literal["operator", "outputs", "attribute", "operand"]
    key: str | int
    detail: str
    certain: bool = True


@dataclass(frozen=True)
class Changed:
    """Two corresponding nodes that differ."""

    reference: Place
    candidate: Place
    differences: tuple[Difference, ...]


@dataclass
class Structure:
    """What two models have in common and what not.

    Attributes:
        values: of both.
        identical: nodes that are the same in both.
        changed: nodes that correspond and differ.
        removed: nodes that only the reference has.
        added: nodes that only the candidate has.
        others: anything else, one sentence each, with the scope of the reference in which it lies.
        scopes: the reference's scope for each of the candidate's that has one.
    """

    values: Correspondence
    identical: int = 0
    changed: list[Changed] = field(default_factory=list[Changed])
    removed: list[Place] = field(default_factory=list[Place])
    added: list[Place] = field(default_factory=list[Place])
    others: list[tuple[Scope, str]] = field(default_factory=list[tuple[Scope, str]])
    scopes: dict[Scope, Scope] = field(default_factory=dict[Scope, Scope])

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not (self.changed or self.removed or self.added or self.others)


def compare(reference: ModelProto, candidate: ModelProto) -> Structure:
    """Holds two models against each other.

    Raises:
        DwrError: a model cannot be read, or a tensor of it.
    """
    with quiet():
        found = Structure(Correspondence(Definitions(reference), Definitions(candidate)))
        _Comparison(found).run()
    return found


class _Comparison:
    """Fills in a structure, scope by scope."""

    def __init__(self, found: Structure) -> None:
        self.found, self.values = found, found.values
        self.before, self.after = found.values.reference, found.values.candidate

    def run(self) -> None:
        main, theirs = self.before.scopes[0], dict(self.after.functions)
        for text in model_differences(self.before.model, self.after.model):
            self.note(main, text)
        self.scope(main, self.after.scopes[0])
        for key, scope in self.before.functions.items():
            if key in theirs:
                self.scope(scope, theirs.pop(key))
            else:
                self.note(main, f"the function {scope.path[:-1]!r} is only in the reference")
        for scope in theirs.values():
            self.note(main, f"the function {scope.path[:-1]!r} is only in the candidate")

    def note(self, scope: Scope, text: str) -> None:
        self.found.others.append((scope, text))

    def scope(self, r: Scope, c: Scope) -> None:
        """Everything in two corresponding scopes."""
        self.found.scopes[c] = r
        for text in _signature_differences(r, c):
            self.note(r, text)
        theirs = dict(computing(c))
        for output, place in computing(r):
            if output in theirs:
                self.nodes(place, theirs.pop(output))
            else:
                self.found.removed.append(place)
        self.found.added += theirs.values()
        for name in sorted(r.outputs & c.outputs):
            if text := self.values.difference(r, name, c, name):
                self.note(r, f"the output {name!r} {text}")
        self.stored_values(r, c)

    def nodes(self, r: Place, c: Place) -> None:
        """Two corresponding nodes and their bodies."""
        differences = (*_form_differences(r.node, c.node), *self.operands(r, c))
        if differences:
            self.found.changed.append(Changed(r, c, differences))
        else:
            self.found.identical += 1
        for attribute in r.node.attribute:
            body = self.before.bodies.get((r.scope, r.index, attribute.name))
            other = self.after.bodies.get((c.scope, c.index, attribute.name))
            if body and other:
                self.scope(body, other)

    def operands(self, r: Place, c: Place) -> Iterator[Difference]:
        """What two nodes read."""
        roles = _OPERANDS.get(c.node.op_type, ())
        operands = zip_longest(r.node.input, c.node.input, fillvalue="")
        for position, (expected, name) in enumerate(operands):
            role = roles[position] if position < len(roles) else f"operand {position}"
            certain = True
            if not name and expected:
                detail = f"it has no {role}, the reference reads {expected!r}"
            elif name and not expected:
                detail = f"its {role} is {name!r}, the reference has none"
            elif text := self.values.difference(r.scope, expected, c.scope, name):
                detail, certain = f"its {role} {name!r} {text}", text.startswith(ANOTHER)
            else:
                continue
            yield Difference("operand", position, detail, certain)

    def stored_values(self, r: Scope, c: Scope) -> None:
        """Constants, and the stored values that no two corresponding nodes read."""
        before, after = set(self.before.stored(r)), set(self.after.stored(c))
        removed, added = _constants(r), _constants(c)
        for name in sorted(before & after):
            told = self.values.is_compared(r, c, name)
            text = self.values.difference(r, name, c, name)
            if text and not told:
                self.note(r, f"the stored value {name!r} {text}")
            self.found.identical += not text and name in added
        self.found.removed += [place for name, place in removed.items() if name not in after]
        self.found.added += [place for name, place in added.items() if name not in before]
        for name in sorted(before - after - removed.keys()):
            if not self.before.is_read(r, name):
                self.note(r, f"the stored value {name!r} is only in the reference")
        for name in sorted(after - before - added.keys()):
            if not self.after.is_read(c, name):
                self.note(r, f"the stored value {name!r} is only in the candidate")


def _signature_differences(r: Scope, c: Scope) -> Iterator[str]:
    if isinstance(r.proto, FunctionProto) and isinstance(c.proto, FunctionProto):
        yield from function_differences(r.proto, c.proto, r.path[:-1])
    elif r.parent and isinstance(r.proto, GraphProto) and isinstance(c.proto, GraphProto):
        yield from body_differences(r.proto, c.proto, r.path[:-1])


def computing(scope: Scope) -> Iterator[tuple[str, Place]]:
    """The nodes that compute something, by the first value."""
    for index, node in enumerate(scope.proto.node):
        output = next((name for name in node.output if name), "")
        if output and not is_constant(node):
            yield output, Place(scope, index)


def _constants(scope: Scope) -> dict[str, Place]:
    nodes = enumerate(scope.proto.node)
    return {node.output[0]: Place(scope, i) for i, node in nodes if is_constant(node)}


def _form_differences(reference: NodeProto, candidate: NodeProto) -> Iterator[Difference]:
    """Operator, outputs and attributes of two nodes."""
    expected, found = _operator(reference), _operator(candidate)
    if found != expected:
        yield Difference("operator", "", f"it is {found}, the reference has {expected}", False)
    before, after = (_stripped([*node.output]) for node in (reference, candidate))
    if after != before:
        detail = f"its outputs are {after}, the reference has {before}"
        yield Difference("outputs", "", detail, False)
    for name, text in attribute_differences(reference, candidate):
        yield Difference("attribute", name, text)


def _stripped(names: list[str]) -> list[str]:
    """Without the empty names at the end, which stand for values that are not wanted."""
    while names and not names[-1]:
        names = names[:-1]
    return names


def _operator(node: NodeProto) -> str:
    domain = "" if node.domain in STANDARD else f"{node.domain}::"
    return f"{domain}{node.op_type}{node.overload and f':{node.overload}'}"
