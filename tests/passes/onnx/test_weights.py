"""Every place that a weight can come from, and the caller's right to override it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.passes.onnx.helpers import (
    assert_equal,
    feeds_for,
    forms,
    parse,
    reasons,
    rewritten,
    run,
)

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n'
W = np.random.default_rng(1).standard_normal((8, 1, 3, 3)).astype("f4")


def graph(
    body: str, weight: np.ndarray | None = W, name: str = "w", inputs: str = ""
) -> ModelProto:
    """A model from "x" to "y" around the text of some nodes, with ``weight`` as an initializer."""
    model = parse(f"{HEADER}g (float[1,8,7,6] x{inputs}) => (float[N,M,H,K] y) {{ {body} }}")
    if weight is not None:
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def constant_model(weight: np.ndarray, **value) -> ModelProto:
    node = helper.make_node("Constant", [], ["w"], **value)
    model = graph("y = Conv <group = 8> (x, w)", None)
    model.graph.node.insert(0, node)
    return model


def sparse_model(linear: bool) -> ModelProto:
    """Three of every four taps of the weight are zero and not stored."""
    dense = np.where(np.arange(W.size).reshape(W.shape) % 4, 0, W)
    indices = np.flatnonzero(dense) if linear else np.argwhere(dense)
    values = numpy_helper.from_array(dense[dense != 0], "v")
    proto = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), W.shape)
    return constant_model(W, sparse_value=proto)


FLAT = W.reshape(-1)
SOURCES = {
    "initializer": graph("y = Conv <group = 8> (x, w)"),
    "constant": constant_model(W, value=numpy_helper.from_array(W)),
    "value-floats": graph(
        "v = Constant <value_floats = [" + ",".join(repr(float(v)) for v in FLAT) + "]> ()"
        "s = Constant <value_ints = [8, 1, 3, 3]> () w = Reshape (v, s) "
        "y = Conv <group = 8> (x, w)",
        None,
    ),
    "sparse-value": sparse_model(linear=True),
    "sparse-value-rows": sparse_model(linear=False),
    "identity": graph("i = Identity (w) y = Conv <group = 8> (x, i)"),
    "cast": graph("i = Cast <to = 1> (w) y = Conv <group = 8> (x, i)", W.astype("f2")),
    "reshape": graph(
        "s = Constant <value = int64[4] {0, 1, -1, 3}> () i = Reshape (w, s)"
        "y = Conv <group = 8> (x, i)", W.reshape(8, 9)[:, None],
    ),
    "transpose": graph(
        "i = Transpose <perm = [3, 2, 1, 0]> (w) y = Conv <group = 8> (x, i)",
        np.ascontiguousarray(W.transpose(3, 2, 1, 0)),
    ),
    "squeeze": graph(
        "a = Constant <value = int64[1] {1}> () i = Squeeze (w, a) j = Unsqueeze (i, a)"
        "y = Conv <group = 8> (x, j)",
    ),
    "constant-of-shape": graph(
        "s = Constant <value = int64[4] {8, 1, 3, 3}> ()"
        "w = ConstantOfShape <value = float[1] {0.25}> (s) y = Conv <group = 8> (x, w)", None,
    ),
    "fused-conv": graph(
        'y = com.microsoft.FusedConv <group = 8, activation = "Relu"> (x, w)'
    ),
    "run-time": graph(
        "i = Mul (w, f) y = Conv <group = 8> (x, i)", inputs=", float f"
    ),
    "weight-input": graph(
        "y = Conv <group = 8> (x, w)", None, inputs=", float[8,1,3,3] w"
    ),
}  # fmt: skip
COMPUTED = {"run-time", "weight-input"}


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_rewritten(name, weights):
    model = SOURCES[name]
    result, (site,) = rewritten(model, policy="blocks:4", weights=weights)
    assert site.form == "blocks:4"
    assert site.weights == ("linked" if name in COMPUTED else weights)
    assert_equal(model, result, feeds_for(model))
    if weights == "precomputed" and name not in COMPUTED:
        left = {node.op_type for node in result.graph.node}
        assert left <= {"Conv", "FusedConv"}, "the chain that nobody reads is gone"
        assert "w" not in {tensor.name for tensor in result.graph.initializer}


def test_a_weight_of_unknown_shape_is_refused_with_the_remedy():
    model = graph("i = Custom.Op (x) y = Conv <group = 8> (x, i)", None)
    model.opset_import.append(helper.make_opsetid("Custom", 1))
    copy, (site,) = rewritten(model)
    assert site.reason.code == "runtime-weight"
    assert "run shape inference" in site.reason.reason
    assert copy == model


def test_an_absurd_constant_of_shape_is_not_allocated():
    model = graph(
        "s = Constant <value = int64[4] {1099511627776, 1, 1024, 1024}> ()"
        "w = ConstantOfShape (s) y = Conv <group = 1099511627776> (x, w)",
        None,
    )
    copy = ModelProto()
    copy.CopyFrom(model)
    from dwr_rewrite.passes.onnx.rewrite import Options, rewrite

    (site,) = rewrite(copy, Options(policy="dense"))
    assert site.form == "keep"
    assert copy == model


SHARED = "a = Conv <group = 8, pads = [1,1,1,1]> (x, w) y = Conv <group = 8> (a, w)"


def test_a_shared_weight_is_packed_once():
    model = graph(SHARED)
    result, sites = rewritten(model, policy="dense")
    assert [site.growth for site in sites] == [7 * W.nbytes, 0]
    assert len(result.graph.initializer) == 1
    assert_equal(model, result, feeds_for(model), depth=2)


@pytest.mark.parametrize(("reader", "extra"), [("z = Relu (w)", "z"), ("z = Identity (x)", "w")])
def test_the_compact_weight_stays_while_somebody_reads_it(reader, extra):
    model = graph(f"{SHARED} {reader}")
    model.graph.output.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, [*"abcd"]))
    result, _ = rewritten(model, policy="dense")
    assert "w" in {tensor.name for tensor in result.graph.initializer}
    assert_equal(model, result, feeds_for(model), depth=2)


def overridable(ir_version: int = 8, body: str = "y = Conv <group = 8> (x, w)") -> ModelProto:
    model = graph(body)
    model.ir_version = ir_version
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    return model


@pytest.mark.parametrize("body", [
    "y = Conv <group = 8> (x, w)",
    "i = Identity (w) y = Conv <group = 8> (x, i)",
])  # fmt: skip
def test_an_override_has_the_same_effect_after_the_rewrite(body):
    model = overridable(body=body)
    result, (site,) = rewritten(model, policy="dense")
    assert site.weights == "linked"
    assert [i.name for i in result.graph.input] == ["x", "w"]
    feeds = feeds_for(model)
    default = run(result, feeds)["y"]
    feeds["w"] = np.flip(W, 2).copy()
    overridden = run(result, feeds)["y"]
    assert np.abs(overridden - default).max() > 0.1, "the override changes the output"
    assert_equal(model, result, feeds)


def test_frozen_weights_are_baked_and_no_inputs_any_more():
    model = overridable()
    result, (site,) = rewritten(model, policy="dense", freeze_weights=True)
    assert site.weights == "precomputed"
    assert [i.name for i in result.graph.input] == ["x"]
    assert_equal(model, result, feeds_for(model))


def test_before_ir_4_an_initializer_is_constant_although_it_is_an_input():
    model = overridable(ir_version=3)
    result, (site,) = rewritten(model, policy="dense")
    assert site.weights == "precomputed"
    assert len(result.graph.input) == 2, "IR 3 lists every initializer as an input"
    assert_equal(model, result, feeds_for(model))


def quantized_model(
    dtype: str, axis: int | None, zero_point: bool, transposed: bool = False, multiplier: int = 1
) -> ModelProto:
    """Conv or ConvTranspose of a DequantizeLinear of random integers."""
    rng = np.random.default_rng(2)
    shape = (8, multiplier, 3, 3) if transposed else (8 * multiplier, 1, 3, 3)
    info = np.iinfo(dtype)
    length = () if axis is None else (shape[axis],)
    tensors = {
        "q": rng.integers(info.min, info.max + 1, shape).astype(dtype),
        "scale": rng.uniform(0.005, 0.01, length).astype("f4"),
        "zero": rng.integers(info.min // 2, info.max // 2, length).astype(dtype),
    }
    if not zero_point:
        del tensors["zero"]
    op = "ConvTranspose" if transposed else "Conv"
    attribute = "" if axis is None else f"<axis = {axis}>"
    model = graph(
        f"w = DequantizeLinear {attribute} ({', '.join(tensors)}) y = {op} <group = 8> (x, w)", None
    )
    for name, array in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


QUANTIZED = [
    # dtype, axis, zero point, transposed, multiplier
    ("int8", None, True, False, 1),
    ("uint8", None, True, False, 1),
    ("int8", None, False, False, 1),
    ("uint8", 0, True, False, 1),
    ("int8", 0, True, False, 2),
    ("int8", -4, False, False, 1),
    ("int8", 2, True, False, 1),
    ("uint8", None, True, True, 1),
    ("uint8", 0, True, True, 2),
    ("uint8", 1, True, True, 2),
    ("int8", 1, False, True, 3),
]


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("case", QUANTIZED, ids=str)
def test_quantized_weights_are_packed_as_integers(case, weights):
    model = quantized_model(*case)
    result, (site,) = rewritten(model, policy="blocks:4", weights=weights)
    assert (site.form, site.weights) == ("blocks:4", "precomputed")
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    assert stored["q_dwr4"].data_type == model.graph.initializer[0].data_type
    assert [node.op_type for node in result.graph.node] == [
        "DequantizeLinear",
        model.graph.node[1].op_type,
    ]
    # Dequantized, the off-diagonal is exactly zero: then the models agree without optimization.
    feeds = feeds_for(model)
    before, after = (run(m, feeds, optimize=False)["y"] for m in (model, result))
    assert np.abs(before - after).max() <= 2 * 11 * 2.0**-24 * 9 * 2.6 * 5
    restored, (undone,) = rewritten(result, restore=True)
    assert undone.reason is None
    assert_same_but_for_order(restored, model)


def assert_same_but_for_order(restored: ModelProto, model: ModelProto) -> None:
    by_name = lambda m: {t.name: numpy_helper.to_array(t).tobytes() for t in m.graph.initializer}  # noqa: E731
    assert by_name(restored) == by_name(model)
    inputs = lambda m: [(n.op_type, list(n.input)) for n in m.graph.node]  # noqa: E731
    assert inputs(restored) == inputs(model)


def test_quantized_weights_that_do_not_fit_are_refused():
    computed = graph(
        "q = Cast <to = 3> (x8) w = DequantizeLinear (q, scale) y = Conv <group = 8> (x, w)",
        np.float32(0.1), "scale", ", float[8,1,3,3] x8",
    )  # fmt: skip
    assert reasons(rewritten(computed)[1]) == {"y": "quantized-weight"}
    free = quantized_model("int8", None, True)
    free.graph.input.append(helper.make_tensor_value_info("q", TensorProto.INT8, (8, 1, 3, 3)))
    assert reasons(rewritten(free)[1]) == {"y": "overridable-quantized-weight"}
    assert forms(rewritten(free, freeze_weights=True)[1]) == {"y": "dense"}


def test_a_corrupt_initializer_is_named():
    from dwr_rewrite.errors import DwrError
    from dwr_rewrite.passes.onnx.rewrite import Options, rewrite

    model = graph("y = Conv <group = 8> (x, w)")
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(DwrError, match=r"'w' of shape \[8, 1, 3, 3\] is corrupt"):
        rewrite(model, Options(policy="blocks:32"))


def test_sparse_initializers_are_left_alone():
    model = graph("y = Conv <group = 8> (x, w)", None)
    values = numpy_helper.from_array(np.ones(2, "f4"), "w")
    indices = numpy_helper.from_array(np.array([0, 5], np.int64), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8, 1, 3, 3]))
    copy = ModelProto()
    copy.CopyFrom(model)
    from dwr_rewrite.passes.onnx.rewrite import Options, rewrite

    (site,) = rewrite(copy, Options(policy="blocks:32"))
    assert site.form == "keep"
    assert onnx.ModelProto.SerializeToString(copy) == model.SerializeToString()
