"""Arrays behind stored tensors and chains of constants and layout operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.passes.onnx.graphs import Scope

Array = NDArray[Any]

FOLD_LIMIT = 1 << 26
"""Elements above which a chain of constants is not folded (a few bytes can ask for terabytes)."""


def depends_on(value: gs.Tensor, names: frozenset[str]) -> bool:
    """Whether a value is, or is computed from, one of these."""
    pending, seen = [value], set[int]()
    while pending and names:
        tensor = pending.pop()
        if tensor.name in names:
            return True
        if id(tensor) not in seen:
            seen.add(id(tensor))
            pending += [operand for node in tensor.inputs for operand in node.inputs]
    return False


def fold(value: gs.Tensor, scope: Scope, depth: int = 0) -> Array | Rejection:
    """The array behind a chain of constants and layout operators, or why it has none."""
    stored = scope.find_initializer(value.name)
    if stored is not None:
        return to_array(stored[1])
    node = next(iter(value.inputs), None)
    if node is None:
        return Rejection("runtime", f"{value.name!r} is an input")
    rule = _FOLD.get(node.op)
    if rule is None or node.domain not in (None, "", "ai.onnx") or depth > 32:
        return Rejection("runtime", f"{value.name!r} comes out of {node.op}")
    if any(isinstance(attribute, gs.Node.AttributeRef) for attribute in node.attrs.values()):
        return Rejection("runtime", f"{node.op} takes an attribute of the function around it")
    operands: list[Array] = []
    for tensor in node.inputs:
        operand = fold(tensor, scope, depth + 1) if tensor.name else np.array([])
        if isinstance(operand, Rejection):
            return operand
        operands.append(operand)
    attributes = node.attrs
    if node.op == "Constant" and not attributes:  # graphsurgeon leaves sparse tensors out
        home, index = scope.locate(node)
        attributes = {a.name: a.sparse_tensor for a in home.proto.node[index].attribute}
    try:
        return rule(attributes, *operands)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        return Rejection("runtime", f"{node.op} cannot be folded: {error}")


def _constant(attributes: dict[str, Any]) -> Array:
    for key, element in (("value_float", "f4"), ("value_floats", "f4"), ("value_int", "i8"),
                         ("value_ints", "i8")):  # fmt: skip
        if key in attributes:
            return np.array(attributes[key], element)
    if "sparse_value" in attributes:
        return _dense(attributes["sparse_value"])
    return attributes["value"].values


def _dense(sparse: SparseTensorProto) -> Array:
    """The array of a sparse tensor, whose indices are linear or one row for each value."""
    values, indices = to_array(sparse.values), to_array(sparse.indices)
    shape = tuple(sparse.dims)
    if prod(shape) > FOLD_LIMIT:
        raise ValueError(f"{shape} has more than {FOLD_LIMIT} elements")
    dense = np.zeros(shape, values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _constant_of_shape(attributes: dict[str, Any], shape: Array) -> Array:
    lengths = tuple(int(n) for n in shape)
    if prod(lengths) > FOLD_LIMIT:
        raise ValueError(f"{lengths} has more than {FOLD_LIMIT} elements")
    value = attributes["value"].values if "value" in attributes else np.zeros(1, "f4")
    return np.full(lengths, value.reshape(-1)[0], value.dtype)


def _eye_like(attributes: dict[str, Any], x: Array) -> Array:
    dtype = attributes.get("dtype")
    element = x.dtype if dtype is None else helper.tensor_dtype_to_np_dtype(dtype)
    return np.eye(*x.shape, k=attributes.get("k", 0), dtype=element)


def _where(_attributes: dict[str, Any], condition: Array, x: Array, y: Array) -> Array:
    shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
    if prod(shape) > FOLD_LIMIT:
        raise ValueError(f"{shape} has more than {FOLD_LIMIT} elements")
    return np.where(condition, x, y)


def _identity(_attributes: dict[str, Any], x: Array) -> Array:
    return x


def _cast(attributes: dict[str, Any], x: Array) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _transpose(attributes: dict[str, Any], x: Array) -> Array:
    return np.transpose(x, attributes.get("perm"))


def _reshape(attributes: dict[str, Any], x: Array, shape: Array) -> Array:
    keep = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[i] if n == 0 and keep else int(n) for i, n in enumerate(shape)])


def _squeeze(attributes: dict[str, Any], x: Array, axes: Array | None = None) -> Array:
    chosen = attributes.get("axes") if axes is None else axes
    return np.squeeze(x) if chosen is None else np.squeeze(x, tuple(int(a) for a in chosen))


def _unsqueeze(attributes: dict[str, Any], x: Array, axes: Array | None = None) -> Array:
    chosen = attributes["axes"] if axes is None else axes
    return np.expand_dims(x, tuple(int(a) for a in chosen))


_FOLD: dict[str, Callable[..., Array]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "Identity": _identity,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}  # fmt: skip


def to_array(tensor: TensorProto) -> Array:
    """The array that a TensorProto stores.

    Raises:
        DwrError: its data does not fill its shape, or its type is not known.
    """
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:
        raise DwrError(
            f"the tensor {tensor.name!r} of shape {list(tensor.dims)} is corrupt: {error}"
        ) from error


@cache
def dtype_name(data_type: int) -> str:
    """``TensorProto.FLOAT`` -> ``float32``."""
    try:
        return helper.tensor_dtype_to_np_dtype(data_type).name
    except (KeyError, ValueError):
        return f"element type {data_type}"
