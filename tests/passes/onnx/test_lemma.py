"""What was changed in a rewritten convolution or its weight since: refuted, and named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dwr_rewrite.equivalence.evidence import Proof
from dwr_rewrite.passes.onnx.metadata import read
from models.handmade import conv_model
from tests.passes.onnx.edits import (
    changed_array,
    initializer,
    packed,
    proof,
    stamped,
    the_lemma,
)
from tests.passes.onnx.helpers import rewritten
from tests.passes.onnx.test_weights import graph, overridable, quantized_model

BODY = """a = Relu (x)
c = Conv <group = 8, pads = [1,1,1,1], strides = [2,1]> (a, w, b)
y = LeakyRelu <alpha = 0.25> (c)"""
W = np.random.default_rng(3).standard_normal((8, 1, 3, 3)).astype("f4")


def network(body: str = BODY, weight: np.ndarray = W) -> ModelProto:
    model = graph(body, weight)
    b = np.random.default_rng(4).standard_normal(8).astype("f4")
    model.graph.initializer.append(numpy_helper.from_array(b, "b"))
    return model


def ints(name: str, *numbers: int):
    """An edit that gives the rewritten convolution another attribute."""

    def edit(model: ModelProto) -> None:
        (one,) = (a for a in stamped(model).attribute if a.name == name)
        one.CopyFrom(helper.make_attribute(name, numbers if len(numbers) > 1 else numbers[0]))

    return edit


def element(index: tuple[int, ...], value: float):
    """An edit that changes one element of the packed weight."""
    return lambda model: changed_array(packed(model), lambda w: w.__setitem__(index, value))


def more_bias(model: ModelProto) -> None:
    changed_array(initializer(model, "b"), lambda b: b.__setitem__(3, b[3] + np.float32(1e-3)))


def other_operand(position: int, name: str):
    return lambda model: stamped(model).input.__setitem__(position, name)


def another_bias(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, "f4"), "zeros"))
    stamped(model).input[2] = "zeros"


def same_bias(model: ModelProto) -> None:
    initializer(model, "b").name = stamped(model).input[2] = "bias"


def run_time_weight(model: ModelProto) -> None:
    name = stamped(model).input[1]
    stamped(model).input[1] = "m"
    model.graph.node.insert(0, helper.make_node("Mul", [name, name], ["m"]))


def another_type(model: ModelProto) -> None:
    tensor = packed(model)
    array = numpy_helper.to_array(tensor).astype("f2")
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def fused(model: ModelProto) -> None:
    stamped(model).op_type, stamped(model).domain = "FusedConv", "com.microsoft"


def renamed(model: ModelProto) -> None:
    stamped(model).output[0] = model.graph.node[-1].input[0] = "d"


def spelled_out(model: ModelProto) -> None:
    stamped(model).attribute.append(helper.make_attribute("dilations", [1, 1]))


SIDE = "output channel {}, input channel {}, tap ({}, {}) is "
TWINS = {
    "nothing": (lambda model: None, "proved", "[8, 4, 3, 3] holds w[8, 1, 3, 3] on its diagonal"),
    "weight": (element((5, 1, 0, 1), 0.125), "refuted", "its weight is another one: "
               + SIDE.format(5, 5, 0, 1) + f"0.125, expected {W[5, 0, 0, 1]!s}"),
    "a leak": (element((3, 2, 1, 1), 1e-30), "refuted", "something stands off the diagonal: "
               + SIDE.format(3, 2, 1, 1) + "1e-30, expected 0.0"),
    "a leak in the second group": (element((6, 0, 2, 2), 1.0), "refuted",
                                   SIDE.format(6, 4, 2, 2)),
    "another zero": (element((0, 1, 0, 0), -0.0), "refuted", "is -0.0, expected 0.0"),
    "NaN": (element((0, 1, 0, 0), np.nan), "refuted", "is nan, expected 0.0"),
    "type": (another_type, "refuted", "its weight is float16 [8, 4, 3, 3], expected float32"),
    "pads": (ints("pads", 0, 1, 1, 1), "refuted",
             "its pads are [0, 1, 1, 1], the reference has [1, 1, 1, 1]"),
    "swapped strides": (ints("strides", 1, 2), "refuted",
                        "its strides are [1, 2], the reference has [2, 1]"),
    "dilations": (lambda model: stamped(model).attribute.append(
        helper.make_attribute("dilations", [1, 2])), "refuted", "its dilations are [1, 2]"),
    "a default spelled out": (spelled_out, "proved", "on its diagonal"),
    "group": (ints("group", 4), "refuted",
              "its weight is float32 [8, 4, 3, 3], expected float32 [8, 2, 3, 3]"),
    "odd group": (ints("group", 3), "refuted", "its group is 3, which does not divide its 8"),
    "bias": (more_bias, "refuted", "its bias 'b' is another one: element [3] is "),
    "another bias": (another_bias, "refuted", "its bias 'zeros' is another one"),
    "the bias elsewhere": (same_bias, "proved", "on its diagonal"),
    "no bias": (lambda model: stamped(model).input.pop(), "refuted", "it has no bias"),
    "input": (other_operand(0, "x"), "unproved",
              "its input 'x' stands where the reference reads 'a'"),
    "run-time weight": (run_time_weight, "unproved", "'m' comes out of Mul"),
    "operator": (fused, "unproved", "it is com.microsoft::FusedConv, the reference has Conv"),
    "output": (renamed, "unproved", "the reference computes no 'd'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_what_was_changed_since_is_named(name):
    edit, status, words = TWINS[name]
    result, _ = rewritten(network(), policy="blocks:4")
    edit(result)
    lemma = the_lemma(network(), result)
    assert (lemma.site, lemma.status) == ("c" if name != "output" else "d", status)
    assert words in lemma.detail
    overall = {"proved": "proved", "refuted": "refuted", "unproved": "partial"}
    assert proof(network(), result).status == overall[status]


def test_a_default_that_the_reference_spells_out_may_not_change():
    text = BODY.replace("strides = [2,1]", "strides = [1,1]")
    result, _ = rewritten(network(text), policy="blocks:4")
    ints("strides", 1, 2)(result)
    lemma = the_lemma(network(text), result)
    assert (lemma.status, lemma.detail) == (
        "refuted", "its strides are [1, 2], the reference has [1, 1]",
    )  # fmt: skip


def helper_node(model: ModelProto, op: str, count: int = 0) -> NodeProto:
    found = [n for n in model.graph.node if n.op_type == op and read(n).get("role") == "diagonal"]
    return found[count]


def flipped_compact(model: ModelProto) -> None:
    changed_array(initializer(model, "w"), lambda w: w.__setitem__((5, 0, 0, 1), 0.125))


def shifted_identity(model: ModelProto) -> None:
    helper_node(model, "EyeLike").attribute.append(helper.make_attribute("k", 1))


def one_for_zero(model: ModelProto) -> None:
    changed_array(initializer(model, "dwr_zero"), lambda zero: zero.__setitem__((), 1))


def other_split(model: ModelProto) -> None:
    """The rows of the compact weight fall into other places: [2, 4, 1, 1, 3, 3] transposed."""
    reshape = next(n for n in model.graph.node if n.input and n.input[0] == "w")
    shape = initializer(model, reshape.input[1])
    changed_array(shape, lambda s: s.__setitem__(slice(0, 2), [4, 2]))


def through_an_integer(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Cast", ["w"], ["i"], to=TensorProto.INT8))
    model.graph.node.insert(1, helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT))
    next(n for n in model.graph.node if n.op_type == "Reshape" and n.input[0] == "w").input[0] = "f"


LINKED_TWINS = {
    "nothing": (lambda model: None, "proved", "the graph lays w[8, 1, 3, 3] on the diagonal of "),
    "weight": (flipped_compact, "refuted", f"its weight is another one: {SIDE.format(5, 5, 0, 1)}"),
    "identity": (shifted_identity, "refuted", "tap (0, 0) is zero, expected element 0 of 'w'"),
    "zero": (one_for_zero, "refuted", "something stands off the diagonal"),
    "shape": (other_split, "unproved", "is not built from valid nodes"),
    "rounded": (through_an_integer, "refuted", "its weight is another one"),
}


@pytest.mark.parametrize("name", LINKED_TWINS)
def test_what_builds_a_linked_weight_is_held_against_the_lemma(name):
    edit, status, words = LINKED_TWINS[name]
    result, _ = rewritten(network(), policy="blocks:4", weights="linked")
    edit(result)
    lemma = the_lemma(network(), result)
    assert (lemma.weights, lemma.status) == ("linked", status)
    assert words in lemma.detail


@pytest.mark.parametrize("model", [overridable(), conv_model(weight="input")], ids=["fed", "input"])
def test_a_weight_that_is_fed_is_proved_for_any_value(model):
    result, _ = rewritten(model, policy="blocks:4")
    assert "whatever it holds" in the_lemma(model, result).detail
    for name in ("identity", "rounded"):
        other = ModelProto()
        other.CopyFrom(result)
        LINKED_TWINS[name][0](other)
        assert the_lemma(model, other).status != "proved"


@pytest.mark.parametrize("stored", ["reference", "candidate"])
def test_a_weight_that_only_one_model_stores_is_not_compared(stored):
    models = {False: conv_model(weight="input"), True: conv_model()}
    model, other = models[stored == "reference"], models[stored == "candidate"]
    result, _ = rewritten(other, policy="blocks:4", weights="linked")
    lemma = the_lemma(model, result)
    assert (lemma.status, lemma.detail) == (
        "unproved", "only one of the two models stores 'w'",
    )  # fmt: skip
    precomputed, _ = rewritten(conv_model(), policy="blocks:4")
    assert the_lemma(conv_model(weight="input"), precomputed).status == "unproved"


def test_a_weight_that_was_widened_must_be_narrowed_again():
    model = conv_model(dtype="float16")
    result, _ = rewritten(model, policy="blocks:4", weights="linked")
    narrowing = next(n for n in result.graph.node if n.output[0] == stamped(result).input[1])
    stamped(result).input[1] = narrowing.input[0]
    lemma = the_lemma(model, result)
    assert (lemma.status, lemma.detail) == ("refuted", "its weight is float32, expected float16")


def integers(index: tuple[int, ...], by: int):
    return lambda m: changed_array(
        initializer(m, dequantize(m).input[0]), lambda q: q.__setitem__(index, q[index] + by)
    )


def dequantize(model: ModelProto) -> NodeProto:
    return next(node for node in model.graph.node if read(node).get("role") == "dequantize")


def operand(position: int):
    def edit(model: ModelProto) -> None:
        def change(array: np.ndarray) -> None:
            array[2] += array[2]

        changed_array(initializer(model, dequantize(model).input[position]), change)

    return edit


def stored_instead(model: ModelProto) -> None:
    array = np.zeros(initializer(model, dequantize(model).input[0]).dims, "f4")
    model.graph.initializer.append(numpy_helper.from_array(array, "float"))
    stamped(model).input[1] = "float"


QUANTIZED_TWINS = {
    "nothing": (lambda model: None, "proved", "and the zero-point elsewhere"),
    "integer": (integers((5, 1, 0, 1), 1), "refuted", "is another one: output channel 5"),
    "off the diagonal": (integers((5, 0, 0, 1), 1), "refuted", "something stands off the diagonal"),
    "scale": (operand(1), "refuted", "'scale' of its weight is another one: element [2] is "),
    "zero-point": (operand(2), "refuted", "'zero' of its weight is another one: element [2] is "),
    "axis": (lambda m: dequantize(m).attribute[0].__setattr__("i", 1), "refuted",
             "of the DequantizeLinear of its weight: its axis is 1, the reference has 0"),
    "no zero-point": (lambda m: dequantize(m).input.pop(), "unproved", "has a zero-point"),
    "stored": (stored_instead, "unproved", "its weight 'float' is not dequantized"),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTIZED_TWINS)
def test_a_quantized_weight_is_held_against_the_lemma(name):
    edit, status, words = QUANTIZED_TWINS[name]
    model = quantized_model("int8", 0, True)
    result, _ = rewritten(model, policy="blocks:4")
    edit(result)
    lemma = the_lemma(model, result)
    assert lemma.status == status
    assert words in lemma.detail, lemma.detail


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("axis", "zero_point", "transposed", "multiplier"), [
    (None, True, False, 1), (None, False, False, 2), (0, True, False, 3),
    (None, True, True, 2), (0, True, True, 2), (1, True, True, 3), (1, False, True, 2),
])  # fmt: skip
def test_every_quantized_weight_is_proved(dtype, axis, zero_point, transposed, multiplier):
    model = quantized_model(dtype, axis, zero_point, transposed, multiplier)
    result, _ = rewritten(model, policy="blocks:4")
    assert proof(model, result).status == "proved"


def test_the_reference_of_a_lemma_is_depthwise():
    """A model in the dense form against itself in blocks: no lemma says that they are the same."""
    dense, _ = rewritten(network(), policy="dense")
    blocks, _ = rewritten(network(), policy="blocks:4")
    lemma = the_lemma(dense, blocks)
    assert lemma.status == "unproved"
    assert "the reference is no depthwise convolution" in lemma.detail
    assert proof(dense, dense) == Proof((), identical=3)
