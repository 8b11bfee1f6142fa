"""Every floating-point tensor of a model as float64, wherever a model can mention its type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
)
from onnx.external_data_helper import uses_external_data

from dwr_rewrite.errors import DwrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

NARROW = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT})
"""Element types that become float64. The 8-bit floats are storage formats and stay."""

_TYPE_ATTRIBUTES = frozenset(
    {"to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "precision"}
)
"""Integer attributes that name an element type."""

_TYPE_DEFAULTS = {
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "SequenceEmpty": "dtype",
    "HannWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "BlackmanWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    # A function whose body casts to it: float32 statistics behind float64 tensors. The stash_type
    # of LayerNormalization and RMSNormalization is left alone: their kernels compute in the
    # element type of the input whatever it says, and onnx.reference refuses any other value.
    "GroupNormalization": "stash_type",
}
"""Operators whose type attribute is float32 when it is left out (or, above, when it is given)."""


def widen(model: ModelProto) -> ModelProto:
    """A copy in which float16, bfloat16 and float32 tensors are float64, in every scope.

    Integer tensors and float attributes (``alpha``, ``epsilon``: float32 values by definition) stay
    as they are, and so does what each value is: widening is exact.

    An operator whose schema does not admit float64 at some input still gets it there (the
    ``scales`` of Resize, of DequantizeLinear before opset 23): the result is for
    :class:`~dwr_rewrite.passes.onnx.float64.Float64Evaluator`, which narrows such an input again;
    a checker or a runtime may refuse it.

    Raises:
        DwrError: a tensor's values are in an external file that was not loaded.
    """
    wide = ModelProto()
    wide.CopyFrom(model)
    _widen_graph(wide.graph)
    for function in wide.functions:
        _widen_function(function)
    return wide


def take_weights(graph: GraphProto) -> dict[str, np.ndarray]:
    """Takes the floating-point initializers out of a graph and gives them as float64, by name.

    A model of 1 GiB would otherwise be copied four times on the way through its protobuf.

    Raises:
        DwrError: a tensor's values are in an external file that was not loaded.
    """
    taken: dict[str, np.ndarray] = {}
    kept: list[TensorProto] = []
    while graph.initializer:
        tensor = graph.initializer.pop()
        if tensor.data_type in NARROW and len(tensor.dims) >= 2:
            taken[tensor.name] = _float64(tensor)
        else:
            kept.append(tensor)
    graph.initializer.extend(reversed(kept))
    return taken


def widen_function(function: FunctionProto) -> FunctionProto:
    """:func:`widen` for the body of a function, as a schema defines one."""
    wide = FunctionProto()
    wide.CopyFrom(function)
    _widen_function(wide)
    return wide


def widen_node(node: NodeProto) -> NodeProto:
    """:func:`widen` for one node, with its subgraphs."""
    wide = NodeProto()
    wide.CopyFrom(node)
    _widen_node(wide)
    return wide


def widen_array(value: np.ndarray) -> np.ndarray:
    """The value as float64 if it is a float of 16 or 32 bits, else the value itself."""
    return value.astype(np.float64) if value.dtype.name in _NARROW_NAMES else value


_NARROW_NAMES = frozenset({"float16", "bfloat16", "float32"})


def spell_out_defaults(model: ModelProto) -> None:
    """Writes the default attributes of local functions at their calls, in place.

    ``onnx.reference`` passes a call's attributes on only if the function lists them without a
    default (``FunctionProto.attribute``, not ``attribute_proto``).
    """
    functions = {(f.domain, f.name): f for f in model.functions}
    scopes = [model.graph.node, *(f.node for f in model.functions)]
    for node in (node for scope in scopes for node in _nodes(scope)):
        if (callee := functions.get((node.domain, node.op_type))) is None:
            continue
        given = {a.name for a in node.attribute}
        node.attribute.extend(a for a in callee.attribute_proto if a.name not in given)
    for function in model.functions:
        function.attribute.extend(a.name for a in function.attribute_proto)
        del function.attribute_proto[:]


def _nodes(scope: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes of a scope and of every subgraph in it."""
    for node in scope:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _widen_graph(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(value.type)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        _widen_tensor(tensor)
    for node in graph.node:
        _widen_node(node)


def _widen_function(function: FunctionProto) -> None:
    for value in function.value_info:
        _widen_type(value.type)
    for attribute in function.attribute_proto:
        _widen_attribute(attribute)
    for node in function.node:
        _widen_node(node)


def _widen_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        _widen_attribute(attribute)
    if node.domain not in ("", "ai.onnx"):
        return
    if node.op_type == "Constant":
        _widen_constant(node)
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1))
        node.attribute.append(helper.make_attribute("value", zero))
    if (name := _TYPE_DEFAULTS.get(node.op_type)) is not None:
        _set_default_type(node, name)


def _widen_constant(node: NodeProto) -> None:
    """``value_float`` and ``value_floats`` are float32 by definition: they become ``value``."""
    for attribute in node.attribute:
        if attribute.name in ("value_float", "value_floats") and not attribute.ref_attr_name:
            value = np.asarray(helper.get_attribute_value(attribute), np.float64)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))


def _set_default_type(node: NodeProto, name: str) -> None:
    given = next((a for a in node.attribute if a.name == name), None)
    if given is None:
        node.attribute.append(helper.make_attribute(name, int(TensorProto.DOUBLE)))
    elif given.i in NARROW:
        given.i = TensorProto.DOUBLE


def _widen_attribute(attribute: AttributeProto) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.i in NARROW:
        attribute.i = TensorProto.DOUBLE
    visit: dict[int, Callable[[], None]] = {
        AttributeProto.TENSOR: lambda: _widen_tensor(attribute.t),
        AttributeProto.SPARSE_TENSOR: lambda: _widen_tensor(attribute.sparse_tensor.values),
        AttributeProto.GRAPH: lambda: _widen_graph(attribute.g),
        AttributeProto.TYPE_PROTO: lambda: _widen_type(attribute.tp),
    }
    if attribute.type in visit and not attribute.ref_attr_name:
        visit[attribute.type]()
    for tensor in (*attribute.tensors, *(sparse.values for sparse in attribute.sparse_tensors)):
        _widen_tensor(tensor)
    for graph in attribute.graphs:
        _widen_graph(graph)
    for value_type in attribute.type_protos:
        _widen_type(value_type)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in NARROW or uses_external_data(tensor):
        tensor.CopyFrom(numpy_helper.from_array(_float64(tensor), tensor.name))


def _float64(tensor: TensorProto) -> np.ndarray:
    if uses_external_data(tensor):
        raise DwrError(
            f"tensor {tensor.name!r} lies in an external file that was not loaded;"
            " pass the model's path, or load it with onnx.load"
        )
    return numpy_helper.to_array(tensor).astype(np.float64)


def _widen_type(value: TypeProto) -> None:
    kind = value.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(value, kind)
        if tensor.elem_type in NARROW:
            tensor.elem_type = TensorProto.DOUBLE
    elif kind in ("sequence_type", "optional_type"):
        _widen_type(getattr(value, kind).elem_type)
    elif kind == "map_type":
        _widen_type(value.map_type.value_type)


def bind(node: NodeProto, values: Mapping[str, Any]) -> NodeProto:
    """The node with its function's attributes put in; one that is None is left out.

    Raises:
        DwrError: the function was called without an attribute that the node takes.
    """
    bound = NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name not in values:
            raise DwrError(
                f"{node.op_type} with output {node.output[0]!r} takes {attribute.name!r} from an"
                f" attribute {attribute.ref_attr_name!r} that its function was not called with"
            )
        elif (value := values[attribute.ref_attr_name]) is not None:
            if isinstance(value, np.ndarray):
                value = numpy_helper.from_array(value)
            bound.attribute.append(
                helper.make_attribute(attribute.name, value, attr_type=attribute.type)
            )
    return bound
