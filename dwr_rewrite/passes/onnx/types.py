"""Element types and shapes of a model's values, inferred without copying its weights."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, shape_inference

from dwr_rewrite.passes.onnx.fold import dtype_name
from dwr_rewrite.passes.onnx.weights import Types

SMALL = 1024
"""Elements up to which a tensor stays in the skeleton: shapes and axes that inference reads."""


def infer(model: ModelProto) -> Types:
    """Types of the main graph's and the bodies' values; empty where inference fails."""
    try:
        inferred = shape_inference.infer_shapes(_skeleton(model), data_prop=True)
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
