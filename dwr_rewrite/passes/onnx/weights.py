"""Where a convolution's weight comes from: stored, folded from constants, quantized, computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.passes.onnx.graphs import Scope
from dwr_rewrite.spec import DTYPES

Array = NDArray[Any]
Types = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Element type and shape of values by name, as far as shape inference knows them."""

FOLD_LIMIT = 1 << 26
"""Elements above which a chain of constants is not folded (a few bytes can ask for terabytes)."""


@dataclass(frozen=True)
class Quantized:
    """The operands of a DequantizeLinear whose result is the weight.

    Attributes:
        node: the DequantizeLinear.
        integers: the stored int8 / uint8 weight.
        scale: scalar, or one entry along ``axis``.
        zero_point: like ``scale``; zeros where the node has none.
        axis: axis of the weight along which scale and zero-point run; None when per-tensor.
    """

    node: gs.Node
    integers: TensorProto
    scale: Array
    zero_point: Array
    axis: int | None


@dataclass(frozen=True)
class Weight:
    """What a convolution reads as its weight.

    Attributes:
        value: the value, in graphsurgeon.
        shape: its shape, all known.
        dtype: its element type, a key of ``DTYPES``.
        load: gives the array; None for a value that is computed at run time, or that the caller
            may override.
        owner: the scope that holds its initializer; None when it has none.
        overridable: the caller may feed another value in its place.
        quantized: set when it comes out of a DequantizeLinear.
    """

    value: gs.Tensor
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array] | None
    owner: Scope | None = None
    overridable: bool = False
    quantized: Quantized | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one stored element."""
        return 1 if self.quantized else DTYPES[self.dtype]


def resolve(
    value: gs.Tensor, scope: Scope, overridable: frozenset[str], types: Callable[[], Types]
) -> Weight | Rejection:
    """Traces a weight back to where it is stored.

    Args:
        value: the weight input of a convolution.
        scope: where the convolution stands.
        overridable: initializers of the main graph that the caller may feed.
        types: inferred types, computed only when they are needed.

    Raises:
        DwrError: a stored tensor is corrupt.
    """
    stored = scope.find_initializer(value.name)
    if stored is not None:
        owner, tensor = stored
        dtype = dtype_name(tensor.data_type)
        if dtype not in DTYPES:
            return _unsupported(value.name, dtype)
        free = owner.path == "" and value.name in overridable
        load = None if free else lambda: to_array(tensor)
        return Weight(value, tuple(tensor.dims), dtype, load, owner, overridable=free)
    producer = next(iter(value.inputs), None)
    if producer is not None and producer.op == "DequantizeLinear":
        return _quantized(value, producer, scope, overridable)
    folded = fold(value, scope)
    if isinstance(folded, np.ndarray):
        if folded.dtype.name not in DTYPES:
            return _unsupported(value.name, folded.dtype.name)
        free = depends_on(value, overridable)
        load = None if free else lambda: folded
        return Weight(value, folded.shape, folded.dtype.name, load, overridable=free)
    return _computed(value, folded, types)


def _unsupported(name: str, dtype: str) -> Rejection:
    return Rejection("weight-type", f"its weight {name!r} is {dtype}; {', '.join(DTYPES)} expected")


def _computed(value: gs.Tensor, why: Rejection, types: Callable[[], Types]) -> Weight | Rejection:
    dtype, shape = types().get(value.name, ("", ()))
    lengths = tuple(n for n in shape if n is not None)
    if not shape or len(lengths) != len(shape):
        return Rejection(
            "runtime-weight",
            f"its weight {value.name!r} is computed at run time ({why.reason}) and its shape is "
            f"not known; run shape inference on the model first",
        )
    if dtype not in DTYPES:
        return _unsupported(value.name, dtype)
    return Weight(value, lengths, dtype, None)


def _quantized(
    value: gs.Tensor, node: gs.Node, scope: Scope, overridable: frozenset[str]
) -> Weight | Rejection:
    """An integer initializer behind a DequantizeLinear (opset 10 on), per tensor or per axis."""
    stored = scope.find_initializer(node.inputs[0].name)
    if stored is None or node.attrs.get("block_size", 0):
        return Rejection(
            "quantized-weight",
            f"its weight is dequantized from {node.inputs[0].name!r}, which is not a whole "
            f"initializer with one scale per tensor or channel",
        )
    owner, integers = stored
    if integers.data_type not in (TensorProto.INT8, TensorProto.UINT8):
        name = dtype_name(integers.data_type)
        return Rejection("quantized-weight", f"its weight is stored as {name}; int8 or uint8 fit")
    operands = [tensor for tensor in node.inputs if tensor.name]
    if any(depends_on(tensor, overridable) for tensor in operands):
        return Rejection(
            "overridable-quantized-weight",
            f"its quantized weight {integers.name!r} can be overridden by the caller; "
            f"fix it with --freeze-weights",
        )
    values = [fold(tensor, scope) for tensor in operands[1:]]
    if not values or any(isinstance(array, Rejection) for array in values):
        return Rejection("quantized-weight", "its weight's scale or zero-point is not constant")
    scale = values[0]
    assert isinstance(scale, np.ndarray)
    zero_point = values[1] if len(values) > 1 else np.zeros(scale.shape, to_array(integers).dtype)
    assert isinstance(zero_point, np.ndarray)
    axis = None
    if scale.size > 1:
        axis = int(node.attrs.get("axis", 1)) % len(integers.dims)
        if scale.shape != (integers.dims[axis],) or zero_point.shape != scale.shape:
            return Rejection("quantized-weight", "its weight's scale does not fit its axis")
    quantized = Quantized(node, integers, scale, zero_point, axis)
    return Weight(
        value,
        tuple(integers.dims),
        scale.dtype.name,
        lambda: to_array(integers),
        owner,
        quantized=quantized,
    )


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
    "Identity": _identity,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}  # fmt: skip


def along(array: Array, axis: int | None, rank: int) -> Array:
    """A per-axis vector in the shape that broadcasts along ``axis`` of a tensor of this rank."""
    return array.reshape([-1 if i == axis else 1 for i in range(rank)] if axis is not None else ())


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
