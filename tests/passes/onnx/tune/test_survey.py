"""The size of every site: from shape inference, at the shapes that the model is timed with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import InputError
from dwr_rewrite.passes.onnx.provider import CPU, CUDA, Provider
from dwr_rewrite.passes.onnx.rewrite import Options
from dwr_rewrite.passes.onnx.tune import survey
from models.handmade import chain, conv_model, x3d_block
from tests.passes.onnx.helpers import parse

HOST = Provider(CPU)


def sites(model, settings=None, options=None, provider=HOST):
    return survey(model, options or Options(), settings or Settings(), provider)


def only(found):
    ((workload,),) = found.workloads.values()
    return workload


def test_a_site_is_found_as_it_runs():
    workload = only(sites(conv_model(channels=6, multiplier=2, batch=3, strides=(2, 1))))
    assert workload.input_shape == (3, 6, 10, 9)
    assert workload.output_shape == (3, 12, 4, 7)
    assert workload.spec.bias
    assert (workload.direction, workload.stored, workload.layout) == ("forward", True, "nchw")


SIZES = [
    ({}, (2, 8, 64, 64)),
    (dict(shapes={"x": (5, 8, 20, 30)}), (5, 8, 20, 30)),
    (dict(given={"a": {"x": np.zeros((1, 8, 7, 9), "f4")}}), (1, 8, 7, 9)),
]


@pytest.mark.parametrize(("settings", "shape"), SIZES, ids=["tried", "wanted", "real"])
def test_open_lengths_are_those_of_the_inputs(settings, shape):
    model = conv_model(batch="N", spatial=("H", "W"), auto_pad="SAME_UPPER", strides=(2, 2))
    workload = only(sites(model, Settings(**settings)))
    assert workload.input_shape == shape
    assert workload.output_shape[2:] == tuple(-(-length // 2) for length in shape[2:])


def test_lengths_pass_through_what_computes_shapes():
    """The length of the convolution's input is known only with that of the model's."""
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4,L] x) => (float[a,b,c] y) <float[4,1,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
            s = Shape (x) two = Constant <value = int64[1] {2}> () n = Gather (s, two)
            head = Constant <value = int64[2] {-1, 4}> () t = Concat <axis = 0> (head, n)
            z = Reshape (x, t) y = Conv <group = 4> (z, w) }""")
    workload = only(sites(model, Settings(shapes={"x": (3, 4, 10)})))
    assert workload.input_shape == (3, 4, 10)


def test_stale_notes_of_shapes_do_not_count():
    model = chain(20, channels=8)
    model.graph.value_info.append(
        helper.make_tensor_value_info("t9", 1, ["batch", 8, "height", "width"])
    )
    found = sites(model, Settings(shapes={"x": (7, 8, 16, 16)}))
    assert {w.input_shape for (w,) in found.workloads.values()} == {(7, 8, 16, 16)}
    assert len(found.questions) == 1  # both are alike


def test_a_size_that_is_not_known_is_left_out_with_the_reason():
    model = parse("""<ir_version: 8, opset_import: ["" : 17, "nobody" : 1]>
        g (float[2,4,9] x) => (float[a,b,c] y) <float[4,1,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
            z = nobody.Mystery (x) y = Conv <group = 4> (z, w) }""")
    found = sites(model)
    ((name, rejection),) = found.left.items()
    assert (name, rejection.code, found.workloads) == ("y", "unknown-size", {})


def test_the_users_selection_counts_and_so_does_the_room_for_weights():
    options = Options(exclude=["n19"], max_growth=1 << 13, weights="linked")
    found = sites(chain(20, channels=16), options=options)
    assert set(found.workloads) == {"n9"}
    (question,) = found.questions
    assert question.forms == ("keep", "blocks:8")  # dense would add 15 * 16 * 9 * 4 bytes


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("options", "tf32", "layout"),
    [({}, True, "nchw"), ({"use_tf32": "0", "prefer_nhwc": "1"}, False, "channels_last")],
)
def test_precision_and_layout_are_the_providers(dtype, options, tf32, layout):
    found = sites(conv_model(dtype=dtype), provider=Provider(CUDA, options))
    workload = only(found)
    assert (workload.tf32, workload.layout) == (tf32 and dtype == "float32", layout)


def test_a_file_will_do_and_no_model_is_changed(tmp_path):
    model = x3d_block(batch="N")
    before = model.SerializeToString(deterministic=True)
    onnx.save(model, tmp_path / "m.onnx")
    assert sites(model) == sites(tmp_path / "m.onnx")
    assert model.SerializeToString(deterministic=True) == before
    assert only(sites(model)).input_shape == (2, 24, 4, 16, 16)


def test_shapes_that_do_not_fit_are_a_sentence():
    with pytest.raises(InputError, match="does not fit the input"):
        sites(conv_model(), Settings(shapes={"x": (1, 8, 3, 3)}))
