"""Element types and shapes of a model's values, inferred without copying its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import onnx
from onnx import (
    GraphProto,
    ModelProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
    helper,
    shape_inference,
)

from dwr_rewrite.equivalence.samples import Declared, InputError, Shapes
from dwr_rewrite.passes.onnx.fold import dtype_name
from dwr_rewrite.passes.onnx.weights import Types

SMALL = 1024
"""Elements up to which a tensor stays in the skeleton: shapes and axes that inference reads."""


def infer(model: ModelProto, shapes: Shapes | None = None) -> Types:
    """Types of the main graph's and the bodies' values; empty where inference fails.

    Args:
        model: a model, which is not changed.
        shapes: of its inputs, where they are fixed.
    """
    try:
        skeleton = _skeleton(model)
        _fix(skeleton.graph, shapes or {})
        inferred = shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # noqa: BLE001  a custom operator may make the C++ code throw anything
        inferred = onnx.ModelProto(graph=GraphProto(value_info=model.graph.value_info))
    types: dict[str, tuple[str, tuple[int | None, ...]]] = {}
    pending = [inferred.graph]
    while pending:
        graph = pending.pop()
        for values in (graph.value_info, graph.input, graph.output):
            for name, found in _types(values).items():
                # Two bodies may use one name for different values: then nothing is known of it.
                types[name] = found if types.get(name, found) == found else ("", ())
        pending += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return types


def declared(model: ModelProto) -> Iterator[tuple[str, Declared]]:
    """What has to be fed, by name: the graph inputs that are no initializers.

    Raises:
        InputError: one is no tensor.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in stored:
            continue
        if not value.type.HasField("tensor_type"):
            raise InputError(f"the input {value.name!r} is no tensor, and only tensors can be fed")
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value or None for d in tensor.shape.dim)
        yield (
            value.name,
            Declared(dtype_name(tensor.elem_type), shape if tensor.HasField("shape") else None),
        )


def _types(values: Iterable[ValueInfoProto]) -> Types:
    return {
        value.name: (
            dtype_name(value.type.tensor_type.elem_type),
            tuple(
                d.dim_value if d.HasField("dim_value") else None
                for d in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
    }


def _fix(graph: GraphProto, shapes: Shapes) -> None:
    """Writes the lengths of the inputs into a graph, wherever their names stand.

    What the model notes of values between is taken away: it was noted for open lengths.
    """
    if not shapes:
        return
    for value in graph.input:
        if value.name in shapes:
            dims = [TensorShapeProto.Dimension(dim_value=length) for length in shapes[value.name]]
            value.type.tensor_type.shape.CopyFrom(TensorShapeProto(dim=dims))
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _skeleton(model: ModelProto) -> ModelProto:
    """The model with its large tensors replaced by inputs of the same type."""
    graph = model.graph
    bare = GraphProto(name=graph.name, input=graph.input, output=graph.output)
    bare.value_info.extend(graph.value_info)
    known = {value.name for value in graph.input}
    for node in graph.node:
        tensors = [a.t for a in node.attribute if a.HasField("t")]
        if node.op_type == "Constant" and tensors and _is_large(tensors[0]):
            bare.input.append(_as_input(tensors[0], node.output[0]))
        else:
            bare.node.append(node)
    for tensor in graph.initializer:
        if not _is_large(tensor):
            bare.initializer.append(tensor)
        elif tensor.name not in known:
            bare.input.append(_as_input(tensor, tensor.name))
    skeleton = ModelProto(ir_version=model.ir_version, graph=bare)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    return skeleton


def _is_large(tensor: TensorProto) -> bool:
    return prod(tensor.dims) > SMALL


def _as_input(tensor: TensorProto, name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
