"""Every geometry, element type, opset and form of one convolution."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from models.handmade import conv_model
from tests.passes.onnx.helpers import assert_equal, feeds_for, forms, rewritten, run

GEOMETRIES = {
    "2d": dict(pads=[1, 1, 1, 1]),
    "no-attributes": dict(kernel_shape=False),
    "1d": dict(kernel=[5], spatial=[20], pads=[2, 2]),
    "1d-causal": dict(kernel=[4], spatial=[20], pads=[3, 0], bias=False),
    "3d": dict(kernel=[3, 3, 3], spatial=[5, 6, 7], strides=[1, 2, 2], pads=[1] * 6),
    "strided-dilated": dict(strides=[2, 1], dilations=[2, 3], pads=[2, 3, 2, 3]),
    "asymmetric": dict(kernel=[3, 2], pads=[0, 1, 2, 0]),
    "multiplier": dict(multiplier=3),
    "same-upper": dict(kernel=[4, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "same-lower": dict(kernel=[4, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    "valid": dict(auto_pad="VALID"),
    "dynamic": dict(batch="n", spatial=["h", "w"], pads=[1, 1, 1, 1]),
    "unknown": dict(batch=None, spatial=[None, None], pads=[1, 1, 1, 1]),
    "transposed": dict(transposed=True, kernel=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1]),
    "transposed-multiplier": dict(transposed=True, multiplier=2, strides=[2, 3]),
    "transposed-output-padding": dict(
        transposed=True, strides=[2, 2], dilations=[1, 2], output_padding=[1, 1], bias=False
    ),
    "transposed-output-shape": dict(transposed=True, strides=[2, 2], output_shape=[20, 18]),
    "transposed-1d": dict(transposed=True, kernel=[4], spatial=[11], strides=[2]),
    "transposed-3d": dict(transposed=True, kernel=[2, 2, 2], spatial=[3, 4, 5], strides=[1, 2, 2]),
    "transposed-same": dict(transposed=True, strides=[2, 2], auto_pad="SAME_UPPER"),
}
LENGTHS = dict(n=2, h=9, w=8)


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("policy", ["dense", "blocks:2", "blocks:4"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_rewritten_convolution_is_the_same_function(name, policy, weights):
    model = conv_model(**GEOMETRIES[name])
    result, sites = rewritten(model, policy=policy, weights=weights)
    width = 8 if policy == "dense" else int(policy[-1])
    assert forms(sites) == {"conv": policy}
    (conv,) = (n for n in result.graph.node if n.op_type in ("Conv", "ConvTranspose"))
    assert {a.name: a for a in conv.attribute}["group"].i == 8 // width
    feeds = {"x": feeds_for(model, **LENGTHS)["x"]}
    if None in GEOMETRIES[name].get("spatial", ()):
        feeds["x"] = np.random.default_rng(0).standard_normal((2, 8, 9, 8)).astype("f4")
    assert_equal(model, result, feeds)


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_element_types(dtype, weights, transposed):
    model = conv_model(dtype=dtype, opset=22, ir_version=10, transposed=transposed, spatial=(6, 5))
    result, sites = rewritten(model, policy="blocks:4", weights=weights)
    assert forms(sites) == {"conv": "blocks:4"}
    stored = {t.name: t for t in result.graph.initializer}
    kept = stored["w"] if weights == "linked" else next(
        t for name, t in stored.items() if name.startswith("w_dwr")
    )  # fmt: skip
    assert kept.data_type == model.graph.initializer[0].data_type
    assert_equal(model, result, feeds_for(model))


@pytest.mark.parametrize("opset", range(6, onnx.defs.onnx_opset_version() + 1))
@pytest.mark.parametrize("transposed", [False, True])
def test_every_opset(opset, transposed):
    """From opset 6 at IR 3 to the newest at the IR version that came with it."""
    ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model = conv_model(opset=opset, ir_version=ir_version, transposed=transposed)
    result, sites = rewritten(model, policy="dense")
    assert forms(sites) == {"conv": "dense"}
    assert_equal(model, result, feeds_for(model))
    linked, sites = rewritten(model, policy="dense", weights="linked")
    if opset < 9:
        assert sites[0].reason.code == "linked-opset"
        assert "opset 9" in sites[0].reason.reason
    else:
        assert forms(sites) == {"conv": "dense"}
        assert_equal(model, linked, feeds_for(model))


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
def test_infinite_and_nan_weights_keep_their_zeros(weights):
    model = conv_model(bias=False)
    values = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[1, 0, 1, 1], values[2, 0, 1, 1] = np.inf, np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    result, _ = rewritten(model, policy="dense", weights=weights)
    x = np.abs(feeds_for(model)["x"])
    before, after = run(model, {"x": x})["y"], run(result, {"x": x})["y"]
    finite = np.isfinite(before)
    assert not finite[:, 1:3].any()
    assert finite[:, [0, *range(3, 8)]].all()
    assert np.array_equal(np.isfinite(after), finite)


def test_channels_that_are_prime_or_beyond_the_budget_are_kept_with_a_reason():
    result, (site,) = rewritten(conv_model(channels=67), policy="blocks:32")
    assert (site.form, site.reason.code) == ("keep", "no-group-width")
    assert result == conv_model(channels=67)
    _, (site,) = rewritten(conv_model(channels=67), policy="dense", max_growth=1000)
    assert (site.form, site.reason.code) == ("keep", "over-budget")
    assert "--max-growth" in site.reason.reason
