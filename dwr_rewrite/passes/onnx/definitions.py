"""Where each value of a model comes from and who reads it, scope by scope."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from dwr_rewrite.passes.onnx.bits import Content
from dwr_rewrite.passes.onnx.graphs import Scope, label, scopes
from dwr_rewrite.passes.onnx.match import STANDARD


@dataclass(frozen=True)
class Place:
    """A node and where it stands."""

    scope: Scope
    index: int

    @property
    def node(self) -> NodeProto:
        """The node itself."""
        return self.scope.proto.node[self.index]

    @property
    def name(self) -> str:
        """Unique and readable: the scope's path and the node's (or its output's) name."""
        return self.scope.path + label(self.node)

    def __str__(self) -> str:
        """Its name and operator."""
        return f"node {self.name!r} ({self.node.op_type})"


@dataclass(frozen=True)
class Stored:
    """A value that the model holds.

    Attributes:
        content: the value.
        place: the Constant node that holds it; None for an initializer.
    """

    content: Content
    place: Place | None = None


@dataclass(frozen=True)
class Fed:
    """A value that comes in from outside: an input of the graph, the body or the function."""


Definition = Place | Stored | Fed


class Definitions:
    """The values of one model.

    Attributes:
        model: the model.
        scopes: its graph, its functions and their bodies.
        functions: the scope of each local function, by domain, name and overload.
        bodies: the body that an attribute of a node holds.
        leaving: values that are outputs of a scope, with the scope that defines them.
    """

    def __init__(self, model: ModelProto) -> None:
        """Indexes every scope.

        Raises:
            DwrError: the model cannot be read.
        """
        self.model = model
        self.scopes = scopes(model)
        found = model.functions
        self.functions = {
            (function.domain, function.name, function.overload): scope
            for function, scope in zip(found, self.scopes[1 : len(found) + 1], strict=True)
        }
        self.bodies = {
            (scope.parent, *scope.holder): scope for scope in self.scopes if scope.holder
        }
        self._tables = {scope: dict(_definitions(scope)) for scope in self.scopes}
        self._readers: dict[tuple[Scope, str], list[tuple[Place, int]]] = defaultdict(list)
        self.leaving: set[tuple[Scope, str]] = set()
        for scope in self.scopes:
            for index, node in enumerate(scope.proto.node):
                for position, name in enumerate(node.input):
                    self._readers[self.owner(scope, name), name].append(
                        (Place(scope, index), position)
                    )
            self.leaving.update((self.owner(scope, name), name) for name in scope.outputs)

    def owner(self, scope: Scope, name: str) -> Scope:
        """The scope, this one or one around it, that defines a name; this one where none does."""
        found: Scope | None = scope
        while found is not None and name not in self._tables[found]:
            found = found.parent
        return found or scope

    def find(self, scope: Scope, name: str) -> Definition | None:
        """What a name stands for in a scope; None where nothing defines it."""
        return self._tables[self.owner(scope, name)].get(name)

    def own(self, scope: Scope, name: str) -> Definition | None:
        """What a scope itself defines under a name."""
        return self._tables[scope].get(name)

    def stored(self, scope: Scope) -> Iterator[str]:
        """Names of the values that a scope stores."""
        return (name for name, found in self._tables[scope].items() if isinstance(found, Stored))

    def readers(self, scope: Scope, name: str) -> list[tuple[Place, int]]:
        """The nodes at any depth that read a value of a scope, and at which operand."""
        return self._readers.get((scope, name), [])

    def is_read(self, scope: Scope, name: str) -> bool:
        """Whether a node reads a value of a scope, or it is an output."""
        return bool(self.readers(scope, name)) or (scope, name) in self.leaving


def is_constant(node: NodeProto) -> bool:
    """Whether a node only stores a value."""
    return node.op_type == "Constant" and node.domain in STANDARD and len(node.attribute) == 1


def _definitions(scope: Scope) -> Iterator[tuple[str, Definition]]:
    proto = scope.proto
    if isinstance(proto, GraphProto):
        yield from ((value.name, Fed()) for value in proto.input)
        yield from ((sparse.values.name, Stored(sparse)) for sparse in proto.sparse_initializer)
        yield from ((tensor.name, Stored(tensor)) for tensor in proto.initializer)
    else:
        yield from ((name, Fed()) for name in proto.input)
    for index, node in enumerate(proto.node):
        if is_constant(node):
            yield node.output[0], Stored(_value(node.attribute[0]), Place(scope, index))
        else:
            yield from ((name, Place(scope, index)) for name in node.output if name)


def _value(attribute: AttributeProto) -> Content:
    """The tensor of a Constant node, or the attribute that holds numbers or text instead."""
    if attribute.ref_attr_name:
        return attribute
    if attribute.type == AttributeProto.TENSOR:
        return attribute.t
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return attribute.sparse_tensor
    return attribute
