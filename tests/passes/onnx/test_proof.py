"""The lemma holds for every form that the pass emits, and for nothing that was changed since."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dwr_rewrite.equivalence.evidence import Lemma, Proof
from dwr_rewrite.passes.onnx.proof import prove
from models.handmade import conv_model, x3d_block
from tests.passes.onnx.edits import (
    SHARED_MODEL,
    WEIGHTS,
    changed_array,
    initializer,
    packed,
    proof,
    stamped,
    the_lemma,
)
from tests.passes.onnx.helpers import rewritten
from tests.passes.onnx.test_lemma import network, renamed
from tests.passes.onnx.test_rewrite import MODELS, NESTED
from tests.passes.onnx.test_weights import graph, overridable

ALL = {
    **MODELS,
    **{name: model for name, (model, _) in NESTED.items()},
    "before IR 4": conv_model(ir_version=3, opset=9),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ALL)
def test_every_source_and_scope_is_proved(name, weights):
    """Weights from everywhere; bodies, functions; nothing else differs."""
    result, sites = rewritten(ALL[name], policy="blocks:2", weights=weights)
    found = proof(ALL[name], result)
    assert found.status == "proved"
    assert {lemma.site: lemma.form for lemma in found.lemmas} == {s.name: s.form for s in sites}
    assert {lemma.weights for lemma in found.lemmas} == {site.weights for site in sites}
    assert (found.helpers > 0) == any(site.weights == "linked" for site in sites) or "func" in name


@st.composite
def convolutions(draw, sources=("initializer", "constant", "input")) -> ModelProto:
    channels = draw(st.sampled_from([2, 4, 6, 12]))
    rank, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    return conv_model(
        channels=channels,
        multiplier=draw(st.integers(1, 3)),
        kernel=draw(st.lists(st.integers(2, 3), min_size=rank, max_size=rank)),
        spatial=(6,) * rank,
        transposed=transposed,
        strides=draw(st.sampled_from([None, (2,) * rank])),
        pads=draw(st.sampled_from([None, (1,) * 2 * rank])),
        bias=draw(st.booleans()),
        weight=draw(st.sampled_from(sources)),
        dtype=draw(st.sampled_from(["float32", "float16", "float64", "bfloat16"])),
        opset=22,
        ir_version=10,
    )


POLICIES = st.sampled_from(["dense", "blocks:2", "blocks:3"])


@given(convolutions(), POLICIES, st.sampled_from(WEIGHTS))
@settings(deadline=None)
def test_every_form_is_proved(model, policy, weights):
    result, (site,) = rewritten(model, policy=policy, weights=weights)
    assert proof(model, result).status == "proved"
    lemma = the_lemma(model, result)
    assert (lemma.site, lemma.form, lemma.weights) == ("conv", site.form, site.weights)
    assert "on the diagonal" in lemma.detail or "on its diagonal" in lemma.detail
    restored, _ = rewritten(result, restore=True)
    if site.weights == "linked" or any(t.name == "w" for t in model.graph.initializer):
        assert proof(model, restored) == Proof((), len(model.graph.node))


def places(lemma: Lemma) -> tuple[int, int, tuple[int, ...]]:
    """Output channel, input channel and tap that a refutation names."""
    words = re.search(r"output channel (\d+), input channel (\d+), tap \(([\d, ]*)\)", lemma.detail)
    assert words, lemma.detail
    tap = tuple(int(n) for n in words[3].split(",") if n.strip())
    return int(words[1]), int(words[2]), tap


@given(convolutions(["initializer"]), POLICIES, st.data())
@settings(deadline=None)
def test_one_flipped_bit_is_found_where_it_is(model, policy, data):
    """Anywhere in the packed weight, whose axes are read here as the operator defines them."""
    result, _ = rewritten(model, policy=policy)
    node, tensor = stamped(result), packed(result)
    raw = bytearray(tensor.raw_data)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    tensor.raw_data = bytes(raw)
    element = at * int(np.prod(tensor.dims)) // len(raw)
    first, second, *tap = (int(i) for i in np.unravel_index(element, tuple(tensor.dims)))
    group = first // (tensor.dims[0] // {a.name: a.i for a in node.attribute}["group"])
    other = group * tensor.dims[1] + second  # axis 1 counts from the group's first channel
    output, channel = (first, other) if node.op_type == "Conv" else (other, first)
    lemma = the_lemma(model, result)
    assert lemma.status == "refuted"
    assert places(lemma) == (output, channel, tuple(tap))
    wide = numpy_helper.to_array(initializer(model, "w"))
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    on = output // (wide.size // int(np.prod(wide.shape[2:])) // channels) == channel
    assert lemma.detail.startswith("its weight is another one" if on else "something stands off")


def another_alpha(model: ModelProto) -> None:
    model.graph.node[-1].attribute[0].f = 0.5


def added(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["unread"]))


def added_tensor(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, "f4"), "unread"))


def removed(model: ModelProto) -> None:
    stamped(model).input[0] = "x"
    del model.graph.node[0]


ELSEWHERE = {
    "attribute": (another_alpha, "node 'y' (LeakyRelu): its alpha is 0.5, the reference has 0.25"),
    "added": (added, "node 'unread' (Relu) is only in the candidate"),
    "removed": (removed, "node 'a' (Relu) is only in the reference"),
    "added tensor": (added_tensor, "the stored value 'unread' is only in the candidate"),
    "output": (renamed, "node 'c' (Conv) is only in the reference"),
    "reader": (renamed, "node 'y' (LeakyRelu): its operand 0 'd' stands where the reference reads"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_was_changed_elsewhere_is_named_too(name):
    edit, words = ELSEWHERE[name]
    result, _ = rewritten(network(), policy="blocks:4")
    assert proof(network(), result).differences == ()
    edit(result)
    found = proof(network(), result)
    assert (found.status, found.helpers) == ("partial", 0)
    assert any(words in text for text in found.differences), found.differences


def test_a_stored_value_of_another_node_is_named():
    model = x3d_block()
    result, _ = rewritten(model, policy="dense")
    changed_array(initializer(result, "expand.bias"), lambda b: b.__setitem__(2, 7.0))
    found = proof(model, result)
    assert found.status == "partial"
    (text,) = found.differences
    assert "node 'expand.bn' (BatchNormalization): its operand 2 'expand.bias' is another" in text
    assert "element [2] is 7.0" in text
    assert found.identical == len(model.graph.node) - 2


def test_frozen_weights_are_a_difference():
    model = overridable()
    result, _ = rewritten(model, policy="dense", freeze_weights=True)
    found = proof(model, result)
    assert found.differences == ("stored values that cannot be fed any more: 'w'",)
    assert [lemma.status for lemma in found.lemmas] == ["proved"]
    assert found.status == "partial"


def test_nothing_is_claimed_about_a_model_without_a_mark():
    other = network()
    another_alpha(other)
    assert prove(network(), other) is None
    assert prove(network(), network()) == Proof((), identical=3)


def test_a_weight_that_a_removed_node_computed_for_others_too_is_missed():
    """The chain behind a packed weight may go, but not when somebody else reads it."""
    text = "i = Identity (w) y = Conv <group = 8> (x, i)"
    more = helper.make_tensor_value_info("i", TensorProto.FLOAT, [8, 1, 3, 3])
    model, other = graph(text), graph(text)
    result, _ = rewritten(model, policy="blocks:4")
    assert proof(model, result).differences == ()
    other.graph.output.append(more)
    differences = proof(other, result).differences
    assert "node 'i' (Identity) is only in the reference" in differences


@pytest.mark.skipif(
    not SHARED_MODEL.exists(), reason="the shared models are not beside the checkout"
)
@pytest.mark.parametrize("options", [dict(freeze_weights=True), dict(weights="linked")], ids=str)
def test_a_trained_face_detector(options):
    model = onnx.load(SHARED_MODEL)
    result, _ = rewritten(model, policy="blocks:32", **options)
    found = proof(model, result)
    assert [lemma.status for lemma in found.lemmas] == ["proved"] * 18
    assert found.identical == len(model.graph.node) - 18
    expected = [f"stored values that cannot be fed any more: {names}" for names in [
        "'base_net.0.0.weight', 'base_net.0.1.weight', 'base_net.0.1.bias' and 241 more"
    ] if "freeze_weights" in options]  # fmt: skip
    assert list(found.differences) == expected
    restored, _ = rewritten(result, restore=True)
    if "weights" in options:
        assert proof(model, restored) == Proof((), len(model.graph.node))
