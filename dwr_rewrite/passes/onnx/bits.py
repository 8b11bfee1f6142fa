"""Stored values held against each other, bit for bit, whatever field of the file they lie in."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import AttributeProto, SparseTensorProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.fold import Array, to_array

Content = TensorProto | SparseTensorProto | AttributeProto
"""A stored value: an initializer, or what a Constant node holds."""


def difference(reference: Content, candidate: Content) -> str:
    """How two stored values differ, for a sentence; empty where every bit is the same.

    Raises:
        DwrError: a tensor is corrupt, or lies in a file that was not loaded.
    """
    if isinstance(reference, SparseTensorProto) and isinstance(candidate, SparseTensorProto):
        return _sparse(reference, candidate)
    if isinstance(reference, SparseTensorProto) or isinstance(candidate, SparseTensorProto):
        return "one of the two is sparse"
    outer = [c.ref_attr_name for c in (reference, candidate) if isinstance(c, AttributeProto)]
    if any(outer):
        same = len(outer) == 2 and outer[0] == outer[1]
        return "" if same else "one of the two is an attribute of the function around it"
    return "" if _same_raw(reference, candidate) else unequal(array(reference), array(candidate))


def array(content: TensorProto | AttributeProto) -> Array:
    """The array of a dense stored value; text as an array of bytes.

    Raises:
        DwrError: a tensor is corrupt, or lies in a file that was not loaded.
    """
    if isinstance(content, AttributeProto):
        element = {
            AttributeProto.FLOAT: "f4", AttributeProto.FLOATS: "f4",
            AttributeProto.INT: "i8", AttributeProto.INTS: "i8",
        }.get(content.type, "O")  # fmt: skip
        return np.array(helper.get_attribute_value(content), element)
    if uses_external_data(content):
        raise DwrError(
            f"the tensor {content.name!r} lies in an external file that was not loaded; give the "
            f"model's path, or load it with onnx.load"
        )
    if content.data_type == TensorProto.STRING:
        return np.array([*content.string_data], "O").reshape([*content.dims])
    return to_array(content)


def unequal(reference: Array, candidate: Array) -> str:
    """How two arrays differ, for a sentence; empty where type, shape and every bit are the same."""
    if (reference.dtype, reference.shape) != (candidate.dtype, candidate.shape):
        return f"it is {describe(candidate)}, expected {describe(reference)}"
    wrong = unlike(reference, candidate)
    if not wrong.any():
        return ""
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    found, expected = texts(candidate[index], reference[index])
    return (
        f"element {list(index)} is {found}, expected {expected} ({int(wrong.sum())} of "
        f"{wrong.size} differ)"
    )


def unlike(one: Array, other: Array) -> Array:
    """Where two arrays of the same type and shape differ in a bit, as booleans of that shape."""
    if one.dtype.kind == "O":
        return np.asarray(one != other)
    size = one.dtype.itemsize
    word = f"u{size}" if size in (1, 2, 4, 8) else f"V{size}"
    left, right = (np.asarray(array, order="C").view(word) for array in (one, other))
    return np.asarray(left != right)


def texts(found: Any, expected: Any) -> tuple[str, str]:
    """Two values that differ in a bit as texts that differ; NaNs show their bits."""
    if str(found) != str(expected):
        return str(found), str(expected)
    return f"{found} (0x{_hex(found)})", f"{expected} (0x{_hex(expected)})"


def serialized(attribute: AttributeProto) -> bytes:
    """An attribute as bytes, without its doc string."""
    bare = AttributeProto()
    bare.CopyFrom(attribute)
    bare.ClearField("doc_string")
    return bare.SerializeToString(deterministic=True)


def _same_raw(reference: Content, candidate: Content) -> bool:
    return (
        isinstance(reference, TensorProto)
        and isinstance(candidate, TensorProto)
        and reference.HasField("raw_data")
        and candidate.HasField("raw_data")
        and reference.data_type == candidate.data_type
        and reference.dims == candidate.dims
        and reference.raw_data == candidate.raw_data
    )


def _sparse(reference: SparseTensorProto, candidate: SparseTensorProto) -> str:
    if reference.dims != candidate.dims:
        return f"it has shape {list(candidate.dims)}, expected {list(reference.dims)}"
    indices = unequal(array(reference.indices), array(candidate.indices))
    values = unequal(array(reference.values), array(candidate.values))
    return f"its indices: {indices}" if indices else f"its values: {values}" if values else ""


def _hex(value: Any) -> str:
    return value.tobytes()[::-1].hex()


def describe(array: Array) -> str:
    """Element type and shape, for a sentence."""
    return f"{array.dtype} {list(array.shape)}"
