"""Where a convolution's weight comes from: stored, folded from constants, quantized, computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.onnx.fold import Array, depends_on, dtype_name, fold, to_array
from dwr_rewrite.passes.onnx.graphs import Scope
from dwr_rewrite.spec import DTYPES

Types = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Element type and shape of values by name, as far as shape inference knows them."""


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


def along(array: Array, axis: int | None, rank: int) -> Array:
    """A per-axis vector in the shape that broadcasts along ``axis`` of a tensor of this rank."""
    return array.reshape([-1 if i == axis else 1 for i in range(rank)] if axis is not None else ())
