"""Stored values are compared bit for bit, and what differs is shown."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from dwr_rewrite.passes.onnx import bits

TYPES = ["f2", "f4", "f8", "i1", "u1", "i8", "?", ml_dtypes.bfloat16, "c8", "c16"]


@st.composite
def values(draw) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, max_side=4))
    content = draw(st.binary(min_size=8, max_size=8))
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(content * (count // 8 + 1), "u1")[:count]
    return (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(shape)


@given(values(), st.data())
@settings(deadline=None)
def test_a_stored_value_is_its_bits(array, data):
    """Any bits, NaNs of every kind among them; one flipped bit is found where it is."""
    tensor = numpy_helper.from_array(array, "t")
    assert bits.difference(tensor, numpy_helper.from_array(array.copy(), "u")) == ""
    index = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    flipped = array.copy()
    one = np.frombuffer(flipped[index].tobytes(), "u1").copy()
    one[data.draw(st.integers(0, len(one) - 1))] ^= 1
    flipped[index] = one.view(array.dtype)[0]
    text = bits.difference(tensor, numpy_helper.from_array(flipped, "t"))
    assert text.startswith(f"element {list(index)} is ")
    assert text.endswith(f"(1 of {array.size} differ)")
    shown = text.removesuffix(f" (1 of {array.size} differ)").split(" is ")[1].split(", expected ")
    assert shown[0] != shown[1], "a reader sees what differs"


@pytest.mark.parametrize(("one", "other", "words"), [
    (np.zeros(2, "f4"), np.zeros(2, "f2"), "it is float16 [2], expected float32 [2]"),
    (np.zeros(2, "f4"), np.zeros(2, "i4"), "it is int32 [2], expected float32 [2]"),
    (np.zeros(2, "f4"), np.zeros((1, 2), "f4"), "it is float32 [1, 2], expected float32 [2]"),
    (np.zeros(1, "f4"), -np.zeros(1, "f4"), "element [0] is -0.0, expected 0.0"),
    (np.array(["a", "b"]), np.array(["a", "c"]), "element [1] is b'c', expected b'b'"),
])  # fmt: skip
def test_how_stored_values_differ(one, other, words):
    tensors = [numpy_helper.from_array(np.asarray(array), "t") for array in (one, other)]
    assert words in bits.difference(*tensors)
