"""The float64 yardstick against torch in double and onnxruntime in float32.

U32 and U64 are unit roundoffs. A sum of n products, in any order, differs from the exact one by at
most gamma_n(u) (|w| * |x|), gamma_n(u) = n u / (1 - n u) (Higham, section 3.1); `magnitude` is that
|w| * |x| + |b|, always computed by the oracle and not by the code under test.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.float64 import Evaluation, Float64Evaluator
from dwr_rewrite.passes.onnx.widen import widen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

U32, U64 = 2.0**-24, 2.0**-53
TORCH_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCH_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def gamma(n: int, u: float) -> float:
    return n * u / (1 - n * u)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def single(
    op: str,
    *inputs: np.ndarray | None,
    opset: int = 20,
    domain: str = "",
    outputs: int = 1,
    **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one operator, and its feeds."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    feeds = {n: v for n, v in zip(names, inputs, strict=True) if v is not None}
    results = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, domain=domain, **attrs)],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), None)
            for n, v in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in results],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds


def runtime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def evaluate(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output, of a run that must be float64 throughout."""
    result = Float64Evaluator(model).run(feeds)
    assert result.single_precision == ()
    return next(iter(result.outputs.values()))


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    assert actual.shape == expected.shape
    excess = np.abs(actual - expected.astype(np.float64)) - bound
    assert excess.max(initial=-1) <= 0, f"off by {np.abs(actual - expected).max():.2e}"


# --- convolutions ---------------------------------------------------------------------------------


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    geometry = {
        "transposed": draw(st.booleans()), "kernel": each(1, 3), "stride": each(1, 3),
        "dilation": each(1, 2), "pads": each(0, 2), "groups": draw(st.integers(1, 3)),
        "per_group": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "batch": draw(st.integers(1, 2)), "bias": draw(st.booleans()),
    }  # fmt: skip
    # torch wants output_padding < stride or dilation, and at least one output element
    geometry["extra"] = tuple(draw(st.integers(0, s - 1)) for s in geometry["stride"])
    geometry["size"] = tuple(
        draw(st.integers(d * (k - 1) + 1 + 2 * p, 9 + 2 * p))
        for d, k, p in zip(geometry["dilation"], geometry["kernel"], geometry["pads"], strict=True)
    )
    return geometry


@settings(max_examples=150, deadline=None)
@given(geometries(), st.integers(0, 9))
def test_convolution_equals_torch_in_double(geometry: dict[str, Any], seed: int) -> None:
    g, rank = geometry, len(geometry["kernel"])
    groups, (c, m) = g["groups"], g["per_group"]
    x = normal(g["batch"], groups * c, *g["size"], seed=seed)
    shape = (groups * c, m) if g["transposed"] else (groups * m, c)
    w = normal(*shape, *g["kernel"], seed=seed + 1)
    b = normal(groups * m, seed=seed + 2) if g["bias"] else None
    attrs = {
        "strides": g["stride"], "dilations": g["dilation"], "group": groups, "pads": g["pads"] * 2,
    }  # fmt: skip
    options = {
        "stride": g["stride"], "padding": g["pads"], "dilation": g["dilation"], "groups": groups,
    }  # fmt: skip
    if g["transposed"]:
        attrs["output_padding"] = options["output_padding"] = g["extra"]
    oracle = (TORCH_TRANSPOSED if g["transposed"] else TORCH_CONV)[rank]
    doubles = [None if v is None else torch.from_numpy(v).double() for v in (x, w, b)]
    expected = oracle(*doubles, **options).numpy()
    magnitude = oracle(*[None if v is None else v.abs() for v in doubles], **options).numpy()
    model, feeds = single("ConvTranspose" if g["transposed"] else "Conv", x, w, b, **attrs)
    # both sides sum n products and a bias in float64, each within gamma_{n+1} of the exact sum
    bound = 2 * gamma(math.prod(g["kernel"]) * c + 1, U64) * magnitude
    assert_within(evaluate(model, feeds), expected, bound)


AUTO_PAD: list[tuple[str, dict[str, Any]]] = [
    (op, {"auto_pad": rule, "strides": [s], **extra})
    for op, extras in (("Conv", [{}]), ("ConvTranspose", [{}, {"output_padding": [1]}]))
    for rule in ("SAME_UPPER", "SAME_LOWER", "VALID")
    for s in (2, 3)
    for extra in extras
]
OUTPUT_SHAPE: list[tuple[str, dict[str, Any]]] = [
    ("ConvTranspose", {"strides": [2], "output_shape": [length], **extra})
    for length in (10, 11, 12, 13)
    for extra in (
        {}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_padding": [1]},
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "attrs", "taps"),
    [
        (op, attrs, taps)
        for op, attrs in AUTO_PAD + OUTPUT_SHAPE
        for taps in (2, 3, 4)
        if max(attrs.get("output_shape", [0])) <= 10 + taps  # onnxruntime refuses a longer output
    ],
)
def test_padding_rules_follow_onnxruntime(op: str, attrs: dict[str, Any], taps: int) -> None:
    inputs = (normal(2, 4, 6), normal(4, 2 if op == "Conv" else 3, taps, seed=1), normal(4, seed=2))
    if op == "ConvTranspose":
        inputs = (*inputs[:2], normal(6, seed=2))
    model, feeds = single(op, *inputs, group=2, **attrs)
    (expected,) = runtime(model, feeds)
    (magnitude,) = runtime(model, {name: np.abs(v) for name, v in feeds.items()})
    # onnxruntime sums at most 2 * taps products and a bias in float32; the magnitude itself carries
    # the same error, which is of second order: the factor 1.01
    bound = 1.01 * gamma(2 * taps + 1, U32) * magnitude
    assert_within(evaluate(model, feeds), expected, bound)


def test_same_padding_counts_dilation() -> None:
    """onnxruntime refuses dilation beside SAME; torch's "same" is SAME_UPPER."""
    x, w = normal(1, 4, 9), normal(4, 1, 4, seed=1)
    model, feeds = single("Conv", x, w, group=4, dilations=[2], auto_pad="SAME_UPPER")
    # a reach of 7 and a stride of 1: 6 zeros in all
    expected = F.conv1d(
        torch.from_numpy(x).double(), torch.from_numpy(w).double(),
        groups=4, dilation=2, padding="same",
    )  # fmt: skip
    # at most 4 products of values below 4
    assert_within(evaluate(model, feeds), expected.numpy(), 2 * gamma(4, U64) * 4 * 16)


ACTIVATIONS = [
    ("Relu", []), ("LeakyRelu", [0.125]), ("Tanh", []), ("Sigmoid", []), ("Clip", [-0.5, 0.5]),
    ("HardSigmoid", [0.25, 0.5]),
]  # fmt: skip


@pytest.mark.parametrize("summand", [False, True])
@pytest.mark.parametrize(("name", "params"), ACTIVATIONS)
def test_fused_convolution_follows_onnxruntime(
    name: str, params: list[float], summand: bool
) -> None:
    x, w, b, z = normal(2, 4, 5, 5), normal(4, 1, 3, 3), normal(4), normal(2, 4, 3, 3, seed=3)
    inputs = (x, w, b, z) if summand else (x, w, b)
    options = {"activation_params": params} if params else {}
    model, feeds = single(
        "FusedConv", *inputs, domain="com.microsoft", group=4, activation=name, **options
    )
    (expected,) = runtime(model, feeds)
    plain, _ = single("Conv", x, w, b, group=4)
    (magnitude,) = runtime(plain, {n: np.abs(v) for n, v in feeds.items() if n != "x3"})
    # 9 products, bias and summand; all activations are 1-Lipschitz. Tanh and Sigmoid are rational
    # approximations in onnxruntime: 4 units in the last place of values up to 1.
    bound = 1.01 * gamma(11, U32) * (magnitude + (np.abs(z) if summand else 0)) + 8 * U32
    assert_within(evaluate(model, feeds), expected, bound)


# --- other operators ------------------------------------------------------------------------------


def test_erf_and_gelu_are_double() -> None:
    x = np.linspace(-6, 6, 1001).reshape(7, 11, 13)
    exact = np.vectorize(math.erf, otypes=[np.float64])(x)
    assert np.array_equal(evaluate(*single("Erf", x)), exact)
    for approximate in ("none", "tanh"):
        expected = F.gelu(torch.from_numpy(x), approximate=approximate).numpy()
        # a handful of roundings of values up to |x| <= 6; below x = -5 erf and -1 cancel
        assert_within(evaluate(*single("Gelu", x, approximate=approximate)), expected, 48 * U64)
    assert_within(
        evaluate(*single("Gelu", x, domain="com.microsoft")),
        F.gelu(torch.from_numpy(x)).numpy(),
        48 * U64,
    )


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 3), dilation=st.integers(1, 2),
    before=st.integers(0, 3), after=st.integers(0, 3), size=st.integers(7, 12),
    ceil=st.booleans(), count=st.booleans(),
)  # fmt: skip
def test_average_pool_follows_onnxruntime(
    kernel: int, stride: int, dilation: int, before: int, after: int, size: int,
    ceil: bool, count: bool,
) -> None:  # fmt: skip
    before, after = min(before, kernel - 1), min(after, kernel - 1)
    model, feeds = single(
        "AveragePool", normal(2, 3, size, 8), kernel_shape=[kernel, 2], strides=[stride, 1],
        dilations=[dilation, 1], pads=[before, 0, after, 1], ceil_mode=int(ceil),
        count_include_pad=int(count), opset=19,
    )  # fmt: skip
    (expected,) = runtime(model, feeds)
    # a mean of at most 8 values below 5 in float32
    assert_within(evaluate(model, feeds), expected, gamma(9, U32) * 5)


def test_average_pool_over_a_huge_window() -> None:
    """transformers' EfficientNet pools over windows as long as its channel count."""
    x = normal(1, 3, 7, 7)
    model, feeds = single(
        "AveragePool", x, kernel_shape=[1280, 1280], strides=[1280, 1280], pads=[0] * 4,
        ceil_mode=1, count_include_pad=1,
    )  # fmt: skip
    mean = x.astype(np.float64).mean((2, 3), keepdims=True)
    assert_within(runtime(model, feeds)[0], mean, gamma(50, U32) * 5)
    assert_within(evaluate(model, feeds), mean, 2 * gamma(50, U64) * 5)


@pytest.mark.parametrize(
    ("x", "scale", "zero", "attrs"),
    [
        (np.arange(-6, 6, dtype=np.int8).reshape(2, 6), np.float32(0.1), np.int8(3), {}),
        (
            np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
            normal(3),
            np.arange(3, dtype=np.uint8),
            {},
        ),
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), normal(4), None, {"axis": -1}),
        (
            np.arange(24, dtype=np.int8).reshape(4, 6),
            normal(2, 6),
            None,
            {"axis": 0, "block_size": 2},
        ),
        (np.array([2**31 - 1, -5], np.int32), np.float32(0.3), None, {}),
    ],
)
def test_dequantize_linear(x: np.ndarray, scale: Any, zero: Any, attrs: dict[str, Any]) -> None:
    scale, zero = np.asarray(scale), None if zero is None else np.asarray(zero)
    model, feeds = single("DequantizeLinear", x, scale, zero, opset=21, **attrs)
    (expected,) = runtime(model, feeds)
    actual = evaluate(model, feeds)
    # float32: one rounding of x (exact below 2**24) and one of the product
    assert_within(actual, expected, 2.01 * U32 * np.abs(actual))
    if x.dtype == np.int32:  # exact to float64, where float32 would lose 7 bits
        assert_within(actual, x.astype(np.float64) * float(scale), U64 * np.abs(actual))


@pytest.mark.parametrize("nearest", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("sizes", [[2, 3, 14, 5], [2, 3, 3, 21]])
@pytest.mark.parametrize("transformation", ["asymmetric", "half_pixel", "align_corners"])
def test_nearest_resize_chooses_as_onnxruntime(
    nearest: str, sizes: list[int], transformation: str
) -> None:
    model, feeds = single(
        "Resize", normal(2, 3, 6, 7), None, None, np.array(sizes), mode="nearest",
        nearest_mode=nearest, coordinate_transformation_mode=transformation,
    )  # fmt: skip
    assert np.array_equal(evaluate(model, feeds), runtime(model, feeds)[0])


def test_linear_resize_equals_torch_in_double() -> None:
    x = normal(2, 3, 6, 7)
    model, feeds = single("Resize", x, None, np.array([1, 1, 2, 4], np.float32), mode="linear")
    expected = F.interpolate(torch.from_numpy(x).double(), scale_factor=(2, 4), mode="bilinear")
    # four products of exact coefficients (multiples of 1/64) with values below 5
    assert_within(evaluate(model, feeds), expected.numpy(), 2 * gamma(4, U64) * 5)


@pytest.mark.parametrize("given", ["scales", "sizes"])
@pytest.mark.parametrize("length", [3, 6, 8, 13])
@pytest.mark.parametrize(
    "rule",
    ["half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric"],
)
def test_linear_resize_follows_onnxruntime(rule: str, length: int, given: str) -> None:
    x = normal(2, 3, 6, 7)
    if given == "scales":
        lengths = (None, np.array([1, 1, (length + 0.25) / 6, 1], np.float32))
    else:
        lengths = (None, None, np.array([2, 3, length, 7]))
    model, feeds = single("Resize", x, *lengths, mode="linear", coordinate_transformation_mode=rule)
    # a position up to 7 after four roundings in float32, times a slope below 10; values below 5
    bound = 4 * U32 * 7 * 10 + gamma(4, U32) * 5
    assert_within(evaluate(model, feeds), runtime(model, feeds)[0], bound)


def test_cubic_resize_is_left_to_the_reference() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    model, feeds = single("Resize", normal(1, 1, 3, 3), None, scales, mode="cubic")
    # 16 products of coefficients below 1.5 with values below 5, positions as above
    bound = 16 * 8 * U32 * 1.5 * 5
    assert_within(evaluate(model, feeds), runtime(model, feeds)[0], bound)


SMOOTH: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    *((op, [(2, 4, 6)], {}) for op in (
        "Celu", "Elu", "Erf", "Exp", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish",
        "LeakyRelu", "LogSoftmax", "LpNormalization", "Mish", "Selu", "Sigmoid", "Softmax",
        "Softplus", "Softsign", "Tanh",
    )),
    ("Swish", [(2, 4, 6)], {"opset": 24}),
    ("LRN", [(2, 4, 6, 6)], {"size": 3}),
    ("LayerNormalization", [(2, 4, 6), (6,), (6,)], {}),
    ("RMSNormalization", [(2, 4, 6), (6,)], {"opset": 23}),
    ("GroupNormalization", [(2, 4, 6), (4,), (4,)], {"opset": 21, "num_groups": 2}),
    ("GroupNormalization", [(2, 4, 6), (2,), (2,)], {"opset": 18, "num_groups": 2}),
    ("InstanceNormalization", [(2, 4, 6), (4,), (4,)], {}),
    ("BatchNormalization", [(2, 4, 6), (4,), (4,), (4,), (4,)], {}),
    ("MatMul", [(2, 4, 6), (6, 3)], {}),
    ("Gemm", [(4, 6), (6, 3), (3,)], {"alpha": 0.5}),
    ("Einsum", [(2, 4, 6), (2, 4, 6)], {"equation": "bij,bkj->bik"}),
    ("PRelu", [(2, 4, 6), (6,)], {}),
    ("Attention", [(2, 2, 5, 8)] * 3, {"opset": 23}),
    ("Attention", [(2, 2, 5, 8)] * 3, {"opset": 23, "softmax_precision": 1}),
    ("AveragePool", [(2, 4, 6)], {"kernel_shape": [3]}),
    ("MaxPool", [(2, 4, 6)], {"kernel_shape": [3]}),
    ("Conv", [(2, 4, 6), (4, 1, 3)], {"group": 4}),
    ("LSTM", [(3, 2, 4), (1, 20, 4), (1, 20, 5)], {"hidden_size": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "shapes", "attrs"), SMOOTH)
def test_no_operator_hides_single_precision(
    op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any]
) -> None:
    """A step of 2**-34 at the input, far below float32, moves the output, and linearly.

    In float64 the second difference is rounding, about 2**-53, to a first difference of 2**-34;
    with a float32 anywhere inside, the output stands still or jumps by 2**-24.
    """
    inputs = [np.abs(normal(*shape, seed=i)) + 0.1 for i, shape in enumerate(shapes)]
    inputs[0] -= 1
    model, feeds = single(op, *(v.astype(np.float64) for v in inputs), **attrs)
    evaluator = Float64Evaluator(model)
    direction = np.cos(np.arange(inputs[0].size)).reshape(inputs[0].shape)
    a, b, c = (
        evaluator.run({**feeds, "x0": feeds["x0"] + k * 2.0**-34 * direction}).outputs["y0"]
        for k in range(3)
    )
    assert np.abs(b - a).max() > 2.0**-40
    assert np.abs(c - 2 * b + a).max() < 1e-3 * np.abs(b - a).max()


# --- what is widened ------------------------------------------------------------------------------

FLOATS = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16]


def constant(dtype: int) -> onnx.TensorProto:
    return helper.make_tensor("c", dtype, [2], [1.5, -2.0])


NODES: dict[str, Callable[[int], onnx.NodeProto]] = {
    "Constant value": lambda t: helper.make_node("Constant", [], ["y"], value=constant(t)),
    "Constant value_float": lambda _: helper.make_node("Constant", [], ["y"], value_float=0.5),
    "Constant value_floats": lambda _: helper.make_node("Constant", [], ["y"], value_floats=[0.5]),
    "ConstantOfShape": lambda _: helper.make_node("ConstantOfShape", ["s"], ["y"]),
    "ConstantOfShape value": lambda t: helper.make_node(
        "ConstantOfShape", ["s"], ["y"], value=helper.make_tensor("v", t, [1], [0.5])
    ),
    "Cast": lambda t: helper.make_node("Cast", ["s"], ["y"], to=t),
    "EyeLike": lambda t: helper.make_node("EyeLike", ["e"], ["y"], dtype=t),
    "RandomNormal": lambda _: helper.make_node("RandomNormal", [], ["y"], shape=[2]),
    "RandomUniform dtype": lambda t: helper.make_node(
        "RandomUniform", [], ["y"], shape=[2], dtype=t
    ),
    "CastLike": lambda _: helper.make_node("CastLike", ["s", "w"], ["y"]),
    "HannWindow": lambda _: helper.make_node("HannWindow", ["n"], ["y"]),
    "Identity of an initializer": lambda _: helper.make_node("Identity", ["w"], ["y"]),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=["float", "float16", "bfloat16"])
@pytest.mark.parametrize("place", NODES)
def test_every_place_of_a_float_type_is_widened(place: str, dtype: int) -> None:
    graph = helper.make_graph(
        [NODES[place](dtype)],
        "g",
        [
            helper.make_tensor_value_info("s", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("e", TensorProto.INT64, [2, 2]),
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", dtype, None)],
        [helper.make_tensor("w", dtype, [1], [0.5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    before = model.SerializeToString(deterministic=True)
    wide = widen(model)
    assert model.SerializeToString(deterministic=True) == before
    assert wide.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE
    assert wide.graph.initializer[0].data_type == TensorProto.DOUBLE
    inferred = onnx.shape_inference.infer_shapes(widen_without_output_type(wide), strict_mode=True)
    assert inferred.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE
    feeds = {"s": np.array([2]), "e": np.zeros((2, 2), np.int64), "n": np.array(4)}
    assert evaluate(model, feeds).dtype == np.float64


def widen_without_output_type(wide: onnx.ModelProto) -> onnx.ModelProto:
    """The same with its output's type forgotten, so that inference has to find it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(wide)
    bare.graph.output[0].ClearField("type")
    return bare


def test_widening_leaves_integers_and_keeps_values() -> None:
    values = [normal(5).astype(np.float16), np.arange(3, dtype=np.int8)]
    tensors = [numpy_helper.from_array(v, f"w{i}") for i, v in enumerate(values)]
    graph = helper.make_graph([], "g", [], [], tensors)
    wide = [numpy_helper.to_array(t) for t in widen(helper.make_model(graph)).graph.initializer]
    assert [w.dtype for w in wide] == [np.float64, np.int8]
    assert all(np.array_equal(w, v) for w, v in zip(wide, values, strict=True))


def test_types_of_sequences_optionals_and_values_are_widened() -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT16, [1])
    kinds = {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "tensor": tensor,
    }
    infos = [helper.make_value_info(name, kind) for name, kind in kinds.items()]
    graph = helper.make_graph([], "g", infos, [], value_info=infos)
    text = str(widen(helper.make_model(graph)))
    assert "elem_type: 11" in text
    assert "elem_type: 10\n" not in text


def test_external_data_that_was_not_loaded_is_refused(tmp_path: Path) -> None:
    x, w = normal(1, 4, 6), normal(4, 1, 3)
    model, _ = single("Conv", x, w, group=4)
    del model.graph.input[1]
    model.graph.initializer.append(numpy_helper.from_array(w, "x1"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(DwrError, match="external file"):
        Float64Evaluator(onnx.load(path, load_external_data=False))
    assert Float64Evaluator(path).run({"x0": x}).outputs["y0"].shape == (1, 4, 4)


def test_quantized_model_keeps_its_integers() -> None:
    """QDQ: the quantized values are onnxruntime's, the scales and what follows are float64."""
    text = """<ir_version: 9, opset_import: ["": 17]>
    g (float[1,4,6] x, float s, int8 z, int8[4,1,3] w) => (float[1,4,4] y) {
      q = QuantizeLinear(x, s, z)
      d = DequantizeLinear(q, s, z)
      v = DequantizeLinear(w, s)
      y = Conv <group = 4> (d, v)
    }"""
    model = parser.parse_model(text)
    weight = np.arange(-6, 6, dtype=np.int8).reshape(4, 1, 3)
    feeds = {"x": normal(1, 4, 6), "s": np.array(0.05, np.float32), "z": np.array(3, np.int8),
             "w": weight}  # fmt: skip
    actual = evaluate(model, feeds)
    magnitude = 3 * 0.05 * 6 * 5
    # three products and, for each factor, a rounding of its dequantization
    assert_within(actual, runtime(model, feeds)[0], gamma(6, U32) * magnitude)


# --- scopes ---------------------------------------------------------------------------------------

IF = """<ir_version: 9, opset_import: ["": 17]>
g (bool c, float[1,4,6] x, float[4,1,3] w) => (float y) {
  y = If (c) <
    then_branch = t () => (float a) { a = Conv <group = 4, pads = [1,1]> (x, w) },
    else_branch = e () => (float b) { b = Neg(x) }
  >
}"""
LOOP = """<ir_version: 9, opset_import: ["": 17]>
g (int64 n, float[1,4,6] x, float[4,1,3] w) => (float y, float s) {
  y, s = Loop (n, , x) <
    body = b (int64 i, bool c, float[1,4,6] v) => (bool k, float[1,4,6] a, float[1,4,6] o) {
      k = Identity(c)
      a = Conv <group = 4, pads = [1,1]> (v, w)
      o = Identity(a)
    }
  >
}"""
SCAN = """<ir_version: 9, opset_import: ["": 17]>
g (float[3,1,4,6] xs, float[4,1,3] w) => (float s) {
  s = Scan <num_scan_inputs = 1,
    body = b (float[1,4,6] v) => (float[1,4,6] a) {
      a = Conv <group = 4, pads = [1,1]> (v, w)
    }
  > (xs)
}"""
FUNCTION = """<ir_version: 9, opset_import: ["": 17, "local": 1]>
g (float[1,4,6] x, float[4,1,3] w) => (float y) {
  y = local.blur <pads: ints = [1,1]> (x, w)
}
<domain: "local", opset_import: ["": 17]>
blur <pads, group: int = 4> (v, f) => (r) {
  a = Conv <group: int = @group, pads: ints = @pads> (v, f)
  r = Relu(a)
}"""
CASES: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "If": (IF, {"c": np.array(True), "x": normal(1, 4, 6)}),
    "Loop": (LOOP, {"n": np.array(3), "x": normal(1, 4, 6)}),
    "Scan": (SCAN, {"xs": normal(3, 1, 4, 6)}),
    "function": (FUNCTION, {"x": normal(1, 4, 6)}),
}


@pytest.mark.parametrize("scope", CASES)
def test_sites_in_every_scope_are_reached(scope: str) -> None:
    text, feeds = CASES[scope]
    model, feeds = parser.parse_model(text), {**feeds, "w": normal(4, 1, 3, seed=1) / 3}
    evaluator = Float64Evaluator(model, sites={"a"})
    plain = evaluator.run(feeds)
    perturbed = evaluator.run(feeds, np.random.default_rng(0))
    assert set(plain.peak) == {"a"}
    assert plain.single_precision == ()
    first = feeds["xs" if scope == "Scan" else "x"]
    assert plain.peak["a"] >= float(np.abs(first).max())
    for actual, expected in zip(plain.outputs.values(), runtime(model, feeds), strict=True):
        # at most three convolutions in a row, of three products each; |w| sums to less than 4
        assert_within(actual, expected, 3 * gamma(3, U32) * 4**3 * 5)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(plain.outputs.values(), perturbed.outputs.values(), strict=True)
    )


def test_a_branch_that_is_not_taken_is_not_reached() -> None:
    feeds = {"c": np.array(False), "x": normal(1, 4, 6), "w": normal(4, 1, 3)}
    result = Float64Evaluator(parser.parse_model(IF), sites={"a"}).run(feeds)
    assert result.peak == {}
    assert np.array_equal(result.outputs["y"], -feeds["x"].astype(np.float64))


# --- perturbation ---------------------------------------------------------------------------------


def depthwise(**attrs: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    return single("Conv", normal(2, 8, 20, 20), normal(8, 1, 3, 3), normal(8), group=8, **attrs)


def moved(rounding: Rounding, seed: int = 0) -> tuple[np.ndarray, Evaluation]:
    model, feeds = depthwise()
    evaluator = Float64Evaluator(model, rounding, {"y0"})
    plain = evaluator.run(feeds)
    error = evaluator.run(feeds, np.random.default_rng(seed)).outputs["y0"] - plain.outputs["y0"]
    return error, plain


def test_a_perturbation_is_the_bound_with_random_signs() -> None:
    rounding = Rounding(U32, 2.0**-22)
    error, plain = moved(rounding)
    model, feeds = depthwise()
    magnitude = runtime(model, {name: np.abs(v) for name, v in feeds.items()})[0]
    sums, stored = rounding.gamma(10) * magnitude, rounding.store * np.abs(plain.outputs["y0"])
    # the stored value is the perturbed one: a difference of second order, 2**-22 of the first
    near = lambda bound: np.isclose(np.abs(error), bound, rtol=2.0**-20, atol=2.0**-40)  # noqa: E731
    assert np.all(near(sums + stored) | near(np.abs(sums - stored)))
    # 5184 signs: the mean of independent ones has a standard deviation of 1 / 72
    signs = np.sign(error)
    assert abs(signs.mean()) < 5 / math.sqrt(signs.size)
    assert plain.peak == {"y0": float(np.abs(feeds["x0"]).max())}


def test_a_perturbation_covers_the_error_of_a_real_runtime() -> None:
    error, plain = moved(Rounding())
    actual = runtime(*depthwise())[0] - plain.outputs["y0"]
    assert 0 < np.abs(actual).max() <= np.abs(error).max()


def test_a_perturbation_repeats_with_the_seed() -> None:
    assert np.array_equal(moved(Rounding())[0], moved(Rounding())[0])
    assert not np.array_equal(moved(Rounding())[0], moved(Rounding(), seed=1)[0])


@pytest.mark.parametrize("n", [4, 64])
@pytest.mark.parametrize(("op", "attributes"), [
    ("MatMul", {}), ("Gemm", {}), ("Gemm", {"transA": 1, "alpha": -2.0}),
])  # fmt: skip
def test_a_matrix_product_moves_by_its_own_bound(op: str, attributes: dict, n: int) -> None:
    a = normal(n, 5) if attributes else normal(5, n)
    model, feeds = single(op, a, normal(n, 7), **attributes)
    rounding = Rounding(U32, 0.0)
    evaluator = Float64Evaluator(model, rounding)
    error = evaluator.run(feeds, np.random.default_rng(0)).outputs["y0"]
    error -= evaluator.run(feeds).outputs["y0"]
    magnitude = runtime(model, {name: np.abs(v) for name, v in feeds.items()})[0]
    # the magnitude itself is a float32 sum of n products
    assert np.allclose(np.abs(error), rounding.gamma(n) * np.abs(magnitude), rtol=2 * n * U32)


def test_shapes_and_constants_do_not_move() -> None:
    """A length computed in floating point must stay the whole number that it is."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,6,5] x) => (float[a,b,c] y) {
      s = Shape (x) f = Cast <to = 1> (s) h = Constant <value = float[3] {1, 0.5, 1}> ()
      p = Mul (f, h) q = Floor (p) t = Cast <to = 7> (q)
      z = Constant <value = int64[3] {0, 0, 0}> () y = Slice (x, z, t) }"""
    model, feeds = parser.parse_model(text), {"x": normal(2, 6, 5)}
    for seed in range(8):
        moved_y = Float64Evaluator(model).run(feeds, np.random.default_rng(seed)).outputs["y"]
        assert moved_y.shape == (2, 3, 5)
        # one rounding of a Slice's result
        assert_within(moved_y, feeds["x"][:, :3], U32 * 5)


def test_float64_rounding_is_a_rounding_of_float64() -> None:
    error, plain = moved(Rounding(U64, U64))
    # gamma_10 of at most 9 * 5 * 5 + 5, and one stored rounding
    assert 0 < np.abs(error).max() <= gamma(10, U64) * 230 + U64 * np.abs(plain.outputs["y0"]).max()


def test_a_wrong_weight_is_seen() -> None:
    """The yardstick's twin: one weight off by 1e-5 stands far above the rounding."""
    model, feeds = depthwise()
    evaluator = Float64Evaluator(model, Rounding(U64, U64))
    right = evaluator.run(feeds).outputs["y0"]
    noise = np.abs(evaluator.run(feeds, np.random.default_rng(0)).outputs["y0"] - right).max()
    weight = feeds["x1"].copy()
    weight[3, 0, 1, 1] += 1e-5
    wrong = evaluator.run({**feeds, "x1": weight}).outputs["y0"]
    assert np.abs(wrong - right).max() > 1e6 * noise
    assert np.array_equal(np.flatnonzero(np.abs(wrong - right).max((0, 2, 3))), [3])


# --- networks -------------------------------------------------------------------------------------


def test_small_network_equals_torch_in_double(tmp_path: Path) -> None:
    """Every float attribute is a power of two: ONNX keeps them in float32, torch does not."""
    from models.entry import Entry, Network
    from models.export import export

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 16, 3, 2, 1)
            self.depthwise = torch.nn.Conv2d(16, 16, 5, 1, 2, groups=16)
            self.pointwise = torch.nn.Conv2d(16, 32, 1)
            self.up = torch.nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=32)
            self.norm = torch.nn.LayerNorm(32, eps=2.0**-16)
            self.head = torch.nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu6(self.depthwise(F.relu(self.stem(x))))
            x = F.avg_pool2d(F.silu(self.pointwise(x)), 3, 2, 1)
            x = F.max_pool2d(F.leaky_relu(self.up(x), 2.0**-6), 3, 2, 1)
            x = self.norm(
                F.interpolate(x, scale_factor=2, mode="bilinear").flatten(2).transpose(1, 2)
            )
            x = F.softmax(x @ x.transpose(1, 2) / 8, -1) @ F.gelu(x)
            return self.head(x.mean(1))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 3, 32, 32)
    path = tmp_path / "net.onnx"
    shapes = ((2, 3, 32, 32),)
    entry = Entry(name="net", architecture=lambda: net, shapes=shapes, depthwise=2)
    network = Network(net, (x,), ("x",), ("y",))
    model = onnx.load(export(entry, path, "torchscript", opset=20, network=network))
    with torch.no_grad():
        expected = net.double()(x.double()).numpy()
    actual = evaluate(model, {model.graph.input[0].name: x.numpy()})
    # about 15 layers that sum at most 256 terms each: 15 gamma_256(2**-53) = 4e-13 were every
    # rounding to go the same way
    assert np.abs(actual - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["hf_convnext", "hf_segformer", "hf_mobilevit"])
def test_transformers_network_equals_torch_in_double(name: str, tmp_path: Path) -> None:
    """Exported in double, since an exporter rounds the constants that it folds."""
    from models.export import export
    from models.zoo import ZOO

    network = ZOO[name].build(0)
    network = replace(
        network, module=network.module.double(), inputs=tuple(x.double() for x in network.inputs)
    )
    path = export(ZOO[name], tmp_path / "m.onnx", "torchscript", network=network)
    expected = network.module(*network.inputs).numpy()
    evaluator = Float64Evaluator(path)
    feeds = dict(zip(network.input_names, (x.numpy() for x in network.inputs), strict=True))
    result = evaluator.run(feeds)
    assert result.single_precision == ()
    (actual,) = result.outputs.values()
    # epsilon of a normalization is a float32 attribute: 1e-5 * 2**-25 = 3e-13 of a variance of 1,
    # in some ten normalizations; rounding is far below
    assert np.abs(actual - expected).max() <= 1e-11 * np.abs(expected).max()


# --- refusals -------------------------------------------------------------------------------------


def test_single_precision_is_recorded() -> None:
    model, feeds = single("LpPool", normal(1, 2, 6), kernel_shape=[3])
    result = Float64Evaluator(model).run(feeds)
    assert result.single_precision == ("LpPool",)
    assert np.array_equal(result.outputs["y0"], runtime(model, feeds)[0].astype(np.float64))


def test_an_operator_that_nothing_evaluates_is_named() -> None:
    model, feeds = single("Nonsense", normal(2), domain="com.microsoft")
    with pytest.raises(DwrError, match=r"com\.microsoft::Nonsense .*'y0'"):
        Float64Evaluator(model).run(feeds)


def test_an_unknown_site_and_a_missing_input_are_named() -> None:
    model, feeds = depthwise()
    with pytest.raises(DwrError, match="'nowhere'"):
        Float64Evaluator(model, sites={"nowhere"})
    del feeds["x0"]
    with pytest.raises(DwrError, match="'x0'"):
        Float64Evaluator(model).run(feeds)


def test_an_impossible_convolution_is_named() -> None:
    model, feeds = single("Conv", normal(1, 4, 6), normal(5, 3, 3))
    with pytest.raises(DwrError, match=r"nothing evaluates Conv .*'y0'"):
        Float64Evaluator(model).run(feeds)


def test_torch_is_not_imported() -> None:
    code = "import sys, dwr_rewrite.passes.onnx.float64; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_an_operator_that_needs_several_attempts_keeps_no_values_alive():
    """onnxruntime has no GlobalAveragePool for float64: the answer is kept, and nothing else."""
    evaluator = Float64Evaluator(
        parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,8,64,64] x) => (float[1,8,1,1] y) {
      a = Exp (x) y = GlobalAveragePool (a) }""")
    )
    feeds = {"x": np.zeros((1, 8, 64, 64), np.float32)}
    evaluator.run(feeds)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(4):
            evaluator.run(feeds)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < feeds["x"].size * 8, "less than one activation for four runs"
