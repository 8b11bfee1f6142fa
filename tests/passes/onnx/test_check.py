"""The check of two model files: what it finds, what it cannot compare, and what it says then."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import KINDS
from dwr_rewrite.errors import DwrError, NotEquivalentError
from dwr_rewrite.passes.onnx import check, onnx_rewrite
from dwr_rewrite.passes.onnx.rewrite import Options, rewrite
from models.handmade import chain, conv_model
from tests.passes.onnx.helpers import parse
from tests.passes.onnx.test_weights import W, graph


def verify(tmp_path, original: ModelProto, changed, policy="dense", **settings):
    """Checks ``original`` against its rewritten form, to which ``changed`` did something."""
    candidate = ModelProto()
    candidate.CopyFrom(original)
    sites = rewrite(candidate, Options(policy=policy))
    changed(candidate)
    onnx.save(original, tmp_path / "original.onnx")
    onnx.save(candidate, tmp_path / "candidate.onnx")
    return check.verify(
        tmp_path / "original.onnx",
        tmp_path / "candidate.onnx",
        [site for site in sites if site.changed],
        Settings(**settings),
    )


def change_weight(factor: float, position=(3, 3, 1, 1)):
    def change(model: ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if "dwr" in t.name)
        values = numpy_helper.to_array(tensor).copy()
        values[position] = values[position] * factor if values[position] else factor
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def test_an_honest_rewrite_passes(tmp_path):
    found = verify(tmp_path, conv_model(), lambda model: None)
    assert found.verdict == "equivalent"
    engines = [(case.name, case.engine) for case in found.cases]
    assert engines == [*((kind, "onnxruntime CPU") for kind in KINDS), ("normal", "float64")]
    assert found.versions.keys() == {"onnxruntime", "onnx", "numpy"}


WRONG = {
    # The float64 comparison sees one weight of 72 that is off by its last bit.
    "one bit of one weight": change_weight(1 + 2.0**-23),
    "a filter is zero": change_weight(0.0),
    "a channel leaks into another": change_weight(1e-6, (3, 4, 1, 1)),
    "bias": lambda m: m.graph.node[0].input.__delitem__(2),
    "padding": lambda m: m.graph.node[0].attribute.append(helper.make_attribute("pads", [1] * 4)),
    "output name": lambda m: (
        m.graph.node[0].output.__setitem__(0, "other"),
        m.graph.output[0].__setattr__("name", "other"),
    ),
    "no such operator": lambda m: m.graph.node[0].__setattr__("op_type", "Convolution"),
    "invalid graph": lambda m: m.graph.node[0].input.__setitem__(1, "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rewrite_fails(name, tmp_path):
    found = verify(tmp_path, conv_model(), WRONG[name])
    assert found.verdict == "not equivalent"
    assert found.worst is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_types_that_onnxruntime_has_no_kernel_for_are_compared_in_float64(dtype, tmp_path):
    model = conv_model(dtype=dtype, opset=22, ir_version=10)
    found = verify(tmp_path, model, lambda m: None)
    assert found.verdict == "equivalent"
    assert {case.engine for case in found.cases} == {"float64"}
    assert any("onnxruntime cannot run the reference" in note for note in found.notes)
    assert verify(tmp_path, model, change_weight(1 + 2.0**-7)).verdict == "not equivalent"


def test_float16_is_compared_with_its_own_rounding(tmp_path):
    found = verify(tmp_path, conv_model(dtype="float16"), lambda m: None)
    assert found.verdict == "equivalent"
    loose = next(c for case, c in found.compared if case.engine == "onnxruntime CPU")
    assert 2.0**-11 * loose.scale < loose.tolerance < 2.0**-5 * loose.scale


def test_an_input_that_overflows_in_the_original_is_not_compared(tmp_path):
    """1e4 and the like times 2**20, twice, is past float32 with ``large``, not with ``tiny``."""
    model = graph(
        "s = Constant <value = float {3e37}> () a = Mul (x, s) y = Conv <group = 8> (a, w)"
    )
    found = verify(tmp_path, model, lambda m: None)
    skipped = {case.name for case in found.cases if case.skipped}
    assert skipped == {"large"}
    assert "overflow float32 before 'y'" in next(c.skipped for c in found.cases if c.skipped)
    assert found.verdict == "equivalent"


def test_the_time_budget_leaves_inputs_out_and_says_which(tmp_path):
    found = verify(tmp_path, chain(20), lambda m: None, timeout=600)
    assert found.notes == ()
    hurried = verify(tmp_path, chain(20), lambda m: None, budget=0.0)
    assert any(
        "before these inputs were compared: uniform, sparse, large" in n for n in hurried.notes
    )
    assert hurried.verdict == "equivalent"


def test_outputs_that_are_no_tensors_are_named(tmp_path):
    model = graph("y = Conv <group = 8> (x, w) z = SequenceConstruct (y, y)")
    model.graph.output.append(
        helper.make_tensor_sequence_value_info("z", TensorProto.FLOAT, [None] * 4)
    )
    found = verify(tmp_path, model, lambda m: None)
    assert any("no real tensors were not compared: 'z'" in note for note in found.notes)


def test_dynamic_lengths_are_tried_until_the_model_takes_one(tmp_path):
    """A reshape to 15 x 15 fixes what the declared shape leaves open."""
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,8,H,W] x) => (float[a,b,c,d] y) {
      p = Conv <group = 8, kernel_shape = [2, 2]> (x, w)
      s = Constant <value = int64[4] {0, 8, 15, 15}> () y = Reshape (p, s) }""")
    model.graph.initializer.append(numpy_helper.from_array(W[:, :, :2, :2].copy(), "w"))
    found = verify(tmp_path, model, lambda m: None)
    assert found.verdict == "equivalent"


def test_a_length_that_nothing_fits_asks_for_a_shape(tmp_path):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,8,H] x) => (float[a,b,c] y) {
      p = Conv <group = 8> (x, w)
      s = Constant <value = int64[3] {0, 8, 41}> () y = Reshape (p, s) }""")
    model.graph.initializer.append(numpy_helper.from_array(W[:, :, 0].copy(), "w"))
    with pytest.raises(DwrError, match=r"x:\?x8x\?: give --shape"):
        verify(tmp_path, model, lambda m: None)
    assert verify(tmp_path, model, lambda m: None, shapes={"x": (1, 8, 43)}).verdict == "equivalent"


GIVEN = [
    ({"x": np.zeros((1, 8, 10, 9), "f8")}, "is float64; float32 expected"),
    ({"x": np.zeros((1, 7, 10, 9), "f4")}, "is 1x7x10x9, and the model's is 1x8x10x9"),
    ({"z": np.zeros(3, "f4")}, "no input 'z'; its inputs are 'x'"),
]


@pytest.mark.parametrize(("inputs", "message"), GIVEN)
def test_given_inputs_have_to_fit(inputs, message):
    with pytest.raises(DwrError, match=message):
        onnx_rewrite(conv_model(), policy="blocks:32", inputs=inputs)


def test_given_inputs_are_used():
    x = np.full((1, 8, 10, 9), 1e-3, "f4")
    report = onnx_rewrite(conv_model(bias=False), policy="blocks:32", inputs={"x": x}).report
    (given,) = (case for case in report.verification.cases if case.name == "given")
    assert given.comparisons[0].scale < 0.05


def test_a_model_in_memory_is_not_changed_and_a_failure_carries_its_report(monkeypatch):
    from dwr_rewrite.recipe import Packing

    model = conv_model()
    before = model.SerializeToString()
    right = Packing.pack
    monkeypatch.setattr(Packing, "pack", lambda *args: right(*args) * np.float32(1.001))
    with pytest.raises(NotEquivalentError) as failure:
        onnx_rewrite(model, policy="blocks:32")
    assert failure.value.report.verification.verdict == "not equivalent"
    assert model.SerializeToString() == before


def test_integer_and_boolean_inputs_are_made(tmp_path):
    model = graph(
        "m = Cast <to = 1> (mask) a = Mul (x, m) e = Gather <axis = 0> (t, ids) f = ReduceSum (e)"
        "c = Conv <group = 8> (a, w) y = Add (c, f)",
        inputs=", bool[1,8,7,6] mask, int64[4] ids",
    )
    model.graph.initializer.append(numpy_helper.from_array(W[:2, 0, 0], "t"))
    assert verify(tmp_path, model, lambda m: None).verdict == "equivalent"
