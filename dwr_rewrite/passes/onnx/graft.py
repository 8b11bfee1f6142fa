"""One model grown together from two: some of its values are computed as the candidate does."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
)

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.correspondence import Correspondence
from dwr_rewrite.passes.onnx.definitions import Definition, Fed, Place, Stored
from dwr_rewrite.passes.onnx.graphs import OVERRIDABLE_SINCE_IR, FreshNames
from dwr_rewrite.passes.onnx.reads import reads, rename
from dwr_rewrite.passes.onnx.signature import opsets

Value = tuple[bool, str]
"""A value of a main graph: whether it is the candidate's, and its name there."""

Node = tuple[bool, Place]
"""A node of a main graph, and whether it is the candidate's."""

_Proto = TypeVar("_Proto", ModelProto, GraphProto)


class Graft:
    """Everything that the reference's outputs need when some values are the candidate's.

    Args:
        values: of both models.
        taken: names of the values that are computed as in the candidate.

    Raises:
        DwrError: the candidate reads an input that the reference has not.
    """

    def __init__(self, values: Correspondence, taken: frozenset[str]) -> None:
        """Walks from the outputs to all that they are computed from."""
        self.values, self.taken = values, taken
        self.definitions = values.reference, values.candidate
        self.models = values.reference.model, values.candidate.model
        self.ir_version = max(model.ir_version for model in self.models)
        self.fresh = FreshNames(values.reference.scopes)
        for name in taken:
            self.fresh.claim(name)
        self._names: dict[str, str] = {}
        self.nodes: dict[Node, list[Node]] = {}
        self.stored: dict[Value, Stored] = {}
        graph = self.models[0].graph
        self._collect([self._read(output.name, False) for output in graph.output])
        if self.ir_version >= OVERRIDABLE_SINCE_IR:  # what can be fed stays, read or not
            self._collect([(False, value.name) for value in graph.input])

    def _collect(self, pending: list[Value]) -> None:
        while pending:
            value = pending.pop()
            found, theirs = self._find(value), value[0]
            if isinstance(found, Stored):
                self.stored[value] = found
            elif isinstance(found, Fed) and theirs:
                raise DwrError(
                    f"the candidate reads the input {value[1]!r}, which is none of the reference"
                )
            elif isinstance(found, Place) and (theirs, found) not in self.nodes:
                operands = [self._read(name, theirs) for name in reads(found.node)]
                places = ((operand[0], self._find(operand)) for operand in operands)
                self.nodes[theirs, found] = [(t, p) for t, p in places if isinstance(p, Place)]
                pending += operands

    def _read(self, name: str, inside: bool) -> Value:
        """What a name stands for, read by a node of the candidate (inside) or the reference."""
        theirs = name in self.taken or (inside and not self._corresponds(name))
        return theirs, name

    def _corresponds(self, name: str) -> bool:
        r, c = (definitions.scopes[0] for definitions in self.definitions)
        return not self.values.difference(r, name, c, name)

    def _find(self, value: Value) -> Definition | None:
        definitions = self.definitions[value[0]]
        return definitions.find(definitions.scopes[0], value[1])

    def model(self, functions: Collection[FunctionProto] = ()) -> ModelProto:
        """The grown model.

        Args:
            functions: of the candidate, which stand in for the reference's of their names.

        Raises:
            DwrError: a value would have to be computed from itself.
        """
        reference, candidate = self.models
        model = _shell(reference, ("graph", "functions"))
        model.ir_version = self.ir_version
        known = opsets(reference.opset_import)
        for domain, version in opsets(candidate.opset_import).items():
            if domain not in known:
                model.opset_import.append(helper.make_opsetid(domain, version))
        chosen = {_key(function): function for function in functions}
        ours = {_key(function): function for function in reference.functions}
        theirs = {_key(function): function for function in candidate.functions}
        model.functions.extend((theirs | ours | chosen).values())
        shell = ("node", "initializer", "sparse_initializer", "input", "value_info")
        model.graph.MergeFrom(_shell(reference.graph, shell))
        self._fill(model.graph)
        return model

    def _fill(self, graph: GraphProto) -> None:
        """Everything but the outputs."""
        reference = self.models[0].graph
        stored = {tensor.name for tensor in reference.initializer}
        graph.input.extend(
            value for value in reference.input
            if value.name not in stored or (False, value.name) in self.stored
        )  # fmt: skip
        for value, found in self.stored.items():
            if found.place is None:
                self._add_tensor(graph, found.content, self._name(value), value[0])
        graph.node.extend(self._nodes())
        kept = {name for node in graph.node for name in node.output} - self.taken
        graph.value_info.extend(value for value in reference.value_info if value.name in kept)

    def _add_tensor(self, graph: GraphProto, content: object, name: str, theirs: bool) -> None:
        if isinstance(content, SparseTensorProto):
            sparse = graph.sparse_initializer.add()
            sparse.CopyFrom(content)
            sparse.values.name = name
        elif isinstance(content, TensorProto):
            tensor = graph.initializer.add()
            tensor.CopyFrom(content)
            tensor.name = name
            if theirs and self.ir_version < OVERRIDABLE_SINCE_IR:  # had to be an input as well
                info = helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
                graph.input.append(info)

    def _nodes(self) -> Iterator[NodeProto]:
        """Constants first, then what computes, each node after those that it reads from."""
        constants = [(v[0], s.place) for v, s in self.stored.items() if s.place is not None]
        try:
            ordered = [*constants, *TopologicalSorter(self.nodes).static_order()]
        except CycleError:
            raise DwrError("the candidate computes some of these values in another order, so that "
                           "they cannot be changed without others") from None  # fmt: skip
        names = {place.node.name for theirs, place in ordered if not theirs} - {""}
        for theirs, place in ordered:
            node = NodeProto()
            node.CopyFrom(place.node)
            node.output[:] = [self._output(name, theirs) for name in node.output]
            if theirs:
                operands = {name: self._read(name, True) for name in reads(node)}
                rename(node, {name: self._name(value) for name, value in operands.items()})
                if node.name in names:
                    node.name = self.fresh(node.name)
            yield node

    def _output(self, name: str, theirs: bool) -> str:
        """What a node's result is called; another node may compute the value of its name."""
        if not name or self._read(name, theirs)[0] == theirs:
            return name and self._name((theirs, name))
        return self.fresh(name)

    def _name(self, value: Value) -> str:
        theirs, name = value
        if not theirs or name in self.taken:
            return name
        if name not in self._names:
            self._names[name] = self.fresh(name)
        return self._names[name]


def _key(function: FunctionProto) -> tuple[str, str, str]:
    return function.domain, function.name, function.overload


def _shell(message: _Proto, without: Collection[str]) -> _Proto:
    """A copy without some fields."""
    shell = type(message)()
    for field, value in message.ListFields():
        if field.name in without:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(shell, field.name, value)
        else:
            getattr(shell, field.name).MergeFrom(value)
    return shell
