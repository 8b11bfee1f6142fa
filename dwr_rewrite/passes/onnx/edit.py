"""Collects what changes in a scope and writes it into its proto in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from dwr_rewrite.passes.onnx.graphs import OVERRIDABLE_SINCE_IR, Scope
from dwr_rewrite.passes.onnx.weights import Array


@dataclass
class Edit:
    """What changes in one scope; applied in one go, so that the cost stays linear.

    Attributes:
        tensors: new tensors by name, made only when they are written.
        slots: compact initializer -> the new tensor that may take its place in the file.
        before: new nodes by the index of the node that they precede.
        dead: indices of nodes that nothing reads any more.
        dropped: initializers that nothing reads any more.
    """

    tensors: dict[str, Callable[[], Array]] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    before: dict[int, list[NodeProto]] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)


def apply(model: ModelProto, scope: Scope, edit: Edit) -> None:
    """Writes an edit into its scope's proto."""
    proto = scope.proto
    if isinstance(proto, GraphProto):
        _apply_tensors(proto, edit, listed_as_inputs=model.ir_version < OVERRIDABLE_SINCE_IR)
    if not edit.before and not edit.dead:
        return
    gone = {name for index in edit.dead for name in proto.node[index].output}
    nodes: list[NodeProto] = []
    for index, node in enumerate(proto.node):
        nodes += edit.before.get(index, ())
        if index not in edit.dead:
            nodes.append(node)
    rebuilt = type(proto)(node=nodes)
    del proto.node[:]
    proto.node.MergeFrom(rebuilt.node)
    _remove_named(proto.value_info, gone)


def _apply_tensors(graph: GraphProto, edit: Edit, listed_as_inputs: bool) -> None:
    places = {t.name: t for t in graph.initializer if t.name in edit.dropped}
    taken = {name: places[slot] for slot, name in edit.slots.items() if slot in places}
    # Last, as filling a place destroys the compact weight that another form may be made from.
    for name, make in sorted(edit.tensors.items(), key=lambda item: item[0] in taken):
        fill(taken[name] if name in taken else graph.initializer.add(), name, make)
    _remove_named(graph.initializer, edit.dropped)
    _remove_named(graph.value_info, edit.dropped)
    if listed_as_inputs:
        _remove_named(graph.input, edit.dropped)
        for tensor in graph.initializer:
            if tensor.name in edit.tensors:
                graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )


def _remove_named(entries: Any, names: set[str]) -> None:
    """Deletes the entries of a repeated field with these names."""
    for index in reversed([i for i, entry in enumerate(entries) if entry.name in names]):
        del entries[index]


def fill(tensor: TensorProto, name: str, make: Callable[[], Array]) -> TensorProto:
    """Gives a TensorProto a new name and content; its doc string and metadata stay."""
    array = make()  # before anything is cleared: it may be made from this very tensor
    for data in ("float_data", "int32_data", "string_data", "int64_data", "double_data",
                 "uint64_data", "external_data", "data_location", "segment"):  # fmt: skip
        tensor.ClearField(data)
    tensor.name = name
    tensor.dims[:] = array.shape
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    del array  # so that two copies of a large weight are alive at a time, and not three
    tensor.raw_data = content
    return tensor
