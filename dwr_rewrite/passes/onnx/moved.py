"""Traces every element of a weight back to the value that the graph moves it from.

The chain that a parameter-linked weight is built by only moves elements: Reshape, a selection by
constant booleans between them and zero, and a Cast to a wider type and back, which is exact. So
what stands where follows from the positions alone, whatever the value holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.onnx.fold import Array, dtype_name, fold
from dwr_rewrite.passes.onnx.graphs import Scope
from dwr_rewrite.passes.onnx.match import STANDARD

WIDER = {"float16": ("float32", "float64"), "bfloat16": ("float32", "float64"),
         "float32": ("float64",)}  # fmt: skip
"""Types that hold every value of another one."""


@dataclass(frozen=True)
class Source:
    """A value that elements come from.

    Attributes:
        name: of the value.
        shape: of the value.
        dtype: its element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Moved:
    """Where the elements of a value come from.

    Attributes:
        origin: for each element 1 + the position in the flattened source; 0 for a positive zero.
        dtype: the element type that it is held in.
        source: the value that they come from.
    """

    origin: Array
    dtype: str
    source: gs.Tensor


class _UnknownError(Exception):
    """An operator that may do more than move elements."""


def trace(value: gs.Tensor, scope: Scope, source: Source) -> Moved | Rejection:
    """Where the elements of a value come from, or why that cannot be told.

    Args:
        value: what the graph builds.
        scope: where it is read.
        source: what it is built from.
    """
    try:
        return _trace(value, scope, source)
    except _UnknownError as unknown:
        return Rejection("runtime", str(unknown))
    except (ValueError, TypeError, IndexError, KeyError) as error:
        return Rejection("runtime", f"{value.name!r} is not built from valid nodes: {error}")


def _trace(value: gs.Tensor, scope: Scope, source: Source) -> Moved:
    if value.name == source.name:
        count = prod(source.shape)
        positions = np.arange(1, count + 1, dtype=np.int32 if count < 1 << 31 else np.int64)
        return Moved(positions.reshape(source.shape), source.dtype, value)
    node = next(iter(value.inputs), None)
    rule = _RULES.get(node.op) if node and (node.domain or "") in STANDARD else None
    if node is None or rule is None:
        what = f"comes out of {node.op}" if node else f"is not built from {source.name!r}"
        raise _UnknownError(f"{value.name!r} {what}")
    if any(isinstance(attribute, gs.Node.AttributeRef) for attribute in node.attrs.values()):
        raise _UnknownError(f"{node.op} takes an attribute of the function around it")
    return rule(node, scope, source)


def _cast(node: gs.Node, scope: Scope, source: Source) -> Moved:
    moved, to = _trace(node.inputs[0], scope, source), dtype_name(node.attrs["to"])
    if to not in (moved.dtype, source.dtype, *WIDER.get(moved.dtype, ())):
        raise _UnknownError(f"a Cast from {moved.dtype} to {to} rounds")
    return replace(moved, dtype=to)


def _reshape(node: gs.Node, scope: Scope, source: Source) -> Moved:
    moved, shape = _trace(node.inputs[0], scope, source), _constant(node.inputs[1], scope)
    lengths = tuple(int(n) for n in shape)
    return replace(moved, origin=moved.origin.reshape(lengths))


def _where(node: gs.Node, scope: Scope, source: Source) -> Moved:
    moved = _trace(node.inputs[1], scope, source)
    chosen, zero = (_constant(node.inputs[i], scope) for i in (0, 2))
    if any(zero.tobytes()):
        raise _UnknownError("a Where selects between it and something else than zero")
    nothing = np.zeros(zero.shape, moved.origin.dtype)
    return replace(moved, origin=np.where(chosen, moved.origin, nothing))


def _constant(value: gs.Tensor, scope: Scope) -> Array:
    folded = fold(value, scope)
    if isinstance(folded, Rejection):
        raise _UnknownError(folded.reason)
    return folded


_RULES: dict[str, Callable[[gs.Node, Scope, Source], Moved]] = {
    "Cast": _cast,
    "Reshape": _reshape,
    "Where": _where,
}
