"""Two models node by node: what counts as the same, and every difference found and named."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.files import count_nodes
from dwr_rewrite.passes.onnx.structure import Structure, compare
from models.handmade import chain, x3d_block
from tests.passes.onnx.helpers import parse

TEXT = """<ir_version: 10, opset_import: ["" : 22, "local" : 1, "custom" : 1]>
g (float[1,8,9,9] x, bool choose) => (float[a,b,c,d] y, float[p,q,r,s] z)
<float[2] pair = {1, 2}, int64[4] order = {0, 1, 3, 2}>
{
  scale = Constant <value = float {0.5}> ()
  conv = Conv <group = 8, pads = [1,1,1,1]> (x, w, b)
  leaky = LeakyRelu <alpha = 0.25> (conv)
  chosen = If (choose) <
    then_branch = yes () => (float[e,f,g,h] t) { half = Mul (leaky, scale) t = Relu (half) },
    else_branch = no () => (float[i,j,k,l] o) { o = Conv <group = 8> (leaky, w) }>
  called = local.twice <gain = 2.0> (chosen)
  y = Mul (called, scale)
  z = custom.Odd <strings = ["a", "b"], floats = [1.0, 2.0], text = "t"> (y, pair)
}
<opset_import: ["" : 22], domain: "local">
twice <gain> (u) => (v) { f = Constant <value_float : float = @gain> () v = Mul (u, f) }"""


def network() -> ModelProto:
    model = parse(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 1, 3, 3)), ("b", (8,))):
        array = rng.standard_normal(shape).astype("f4")
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def node(model: ModelProto, name: str):
    return next(n for n in model.graph.node if n.name == name)


def stored(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def body(model: ModelProto, name: str):
    return next(a.g for a in node(model, "chosen").attribute if a.name == name)


def sentences(found: Structure) -> list[str]:
    """Everything that differs, as the proof tells it."""
    told = [f"{c.candidate}: {d.detail}" for c in found.changed for d in c.differences]
    told += [f"{place} only in the reference" for place in found.removed]
    told += [f"{place} only in the candidate" for place in found.added]
    return [*told, *(text for _, text in found.others)]


def store(model: ModelProto, name: str, array: np.ndarray) -> None:
    stored(model, name).CopyFrom(numpy_helper.from_array(array, name))


def described(model: ModelProto) -> None:
    model.doc_string, model.producer_name, model.graph.name = "doc", "else", "other"
    model.metadata_props.add(key="k", value="v")
    for one in (node(model, "conv"), stored(model, "w"), model.graph.input[0]):
        one.doc_string = "said"
        one.metadata_props.add(key="k", value="v")
    node(model, "conv").attribute[0].doc_string = "said"
    value = helper.make_tensor_value_info("conv", TensorProto.FLOAT, [1, 8, 9, 9])
    model.graph.value_info.append(value)


def renamed(model: ModelProto) -> None:
    for index, one in enumerate(model.graph.node):
        one.name = f"n{index}"


def reordered(model: ModelProto) -> None:
    nodes = [*model.graph.node]
    nodes.insert(0, nodes.pop(1))
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    for one in model.graph.node:
        attributes = [AttributeProto.FromString(a.SerializeToString()) for a in one.attribute]
        random.Random(1).shuffle(attributes)
        del one.attribute[:]
        one.attribute.extend(attributes)


def typed(model: ModelProto) -> None:
    """The same weight in float_data instead of raw_data."""
    values = numpy_helper.to_array(stored(model, "w"))
    stored(model, "w").ClearField("raw_data")
    stored(model, "w").float_data.extend(values.ravel().tolist())
    assert not stored(model, "w").HasField("raw_data")


def unfolded(model: ModelProto) -> None:
    """A constant becomes an initializer, and another initializer a constant."""
    del model.graph.node[0]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "scale"))
    values = helper.make_node("Constant", [], ["pair"], value_floats=[1.0, 2.0])
    model.graph.initializer.remove(stored(model, "pair"))
    model.graph.node.insert(0, values)


def stored_under_another_name(model: ModelProto) -> None:
    stored(model, "b").name = node(model, "conv").input[2] = "bias"


def spelled_out_domain(model: ModelProto) -> None:
    for one in model.graph.node:
        one.domain = one.domain or "ai.onnx"


SAME = [described, renamed, reordered, typed, unfolded, stored_under_another_name,
        spelled_out_domain]  # fmt: skip


@pytest.mark.parametrize("edit", SAME, ids=lambda edit: edit.__name__)
def test_what_does_not_count(edit):
    other = network()
    edit(other)
    assert other != network(), "the edit does something"
    found = compare(network(), other)
    assert sentences(found) == []
    assert found.same


def test_every_node_is_counted():
    found = compare(network(), network())
    assert found.same
    assert found.identical == count_nodes(network()) == 12


def attribute(model: ModelProto, name: str, key: str) -> AttributeProto:
    return next(a for a in node(model, name).attribute if a.name == key)


def bump(name: str, index: tuple[int, ...], by: float):
    def edit(model: ModelProto) -> None:
        array = numpy_helper.to_array(stored(model, name)).copy()
        array[index] += np.asarray(by, array.dtype)
        store(model, name, array)

    return edit


def put(get, **fields):
    """An edit that sets fields of what ``get`` finds."""

    def edit(model: ModelProto) -> None:
        for field, value in fields.items():
            target = getattr(get(model), field)
            if isinstance(value, list):
                target[:] = value
            else:
                setattr(get(model), field, value)

    return edit


def drop_node(name: str):
    return lambda model: model.graph.node.remove(node(model, name))


def add_node(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["y"], ["extra"], "extra"))


def add_unread(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, "f4"), "unread"))


def rename_output(model: ModelProto) -> None:
    node(model, "y").output[0] = node(model, "z").input[0] = model.graph.output[0].name = "why"


def feed_stored(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 1, 3, 3]))


def drop_function(model: ModelProto) -> None:
    del model.functions[:]


def stored_output(model: ModelProto) -> None:
    node(model, "z").output[0] = "elsewhere"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 8, 9, 9), "f4"), "z"))


def no_bias(model: ModelProto) -> None:
    del node(model, "conv").input[2:]


def computed_weight(model: ModelProto) -> None:
    stored(model, "w").name = "w0"
    model.graph.node.insert(0, helper.make_node("Identity", ["w0"], ["w"], "w"))


DIFFERENT = {
    "weight": (bump("w", (5, 0, 0, 1), 0.5),
               "node 'conv' (Conv): its weight 'w' is another one: element [5, 0, 0, 1] is "),
    "weight in a body": (bump("w", (5, 0, 0, 1), 0.5),
                         "node 'chosen/else_branch/o' (Conv): its weight 'w' is another one"),
    "bias": (bump("b", (3,), 1e-3), "its bias 'b' is another one: element [3] is "),
    "pads": (put(lambda m: attribute(m, "conv", "pads"), ints=[0, 1, 1, 1]),
             "node 'conv' (Conv): its pads are [0, 1, 1, 1], the reference has [1, 1, 1, 1]"),
    "alpha": (put(lambda m: attribute(m, "leaky", "alpha"), f=0.5),
              "node 'leaky' (LeakyRelu): its alpha is 0.5, the reference has 0.25"),
    "added attribute": (lambda m: node(m, "conv").attribute.append(
        helper.make_attribute("strides", [1, 2])), "its strides are [1, 2], the reference leaves"),
    "removed attribute": (lambda m: node(m, "leaky").attribute.pop(),
                          "it has no alpha, the reference has 0.25"),
    "text": (put(lambda m: attribute(m, "z", "text"), s=b"u"),
             "its text is 'u', the reference has 't'"),
    "texts": (put(lambda m: attribute(m, "z", "strings"), strings=[b"a", b"c"]),
              "node 'z' (Odd): its strings are "),
    "attribute's type": (lambda m: attribute(m, "z", "text").CopyFrom(
        helper.make_attribute("text", 1)), "its text is 1, the reference has 't'"),
    "operator": (put(lambda m: node(m, "leaky"), op_type="Elu"),
                 "it is Elu, the reference has LeakyRelu"),
    "domain": (put(lambda m: node(m, "leaky"), domain="custom"), "it is custom::LeakyRelu"),
    "overload": (put(lambda m: node(m, "called"), overload="v2"), "it is local::twice:v2"),
    "operand": (put(lambda m: node(m, "y"), input=["chosen", "scale"]),
                "its operand 0 'chosen' stands where the reference reads 'called'"),
    "no bias": (no_bias, "it has no bias, the reference reads 'b'"),
    "computed": (computed_weight, "its weight 'w' is computed; in the reference it is stored"),
    "order": (bump("pair", (1,), 1), "node 'z' (Odd): its operand 1 'pair' is another one"),
    "unread": (bump("order", (1,), 1), "the stored value 'order' is another one: element [1] is 2"),
    "constant": (put(lambda m: attribute(m, "scale", "value").t, float_data=[0.75]),
                 "node 'y' (Mul): its operand 1 'scale' is another one: element [] is 0.75"),
    "added node": (add_node, "node 'extra' (Relu) only in the candidate"),
    "removed node": (drop_node("z"), "node 'z' (Odd) only in the reference"),
    "added tensor": (add_unread, "the stored value 'unread' is only in the candidate"),
    "output": (rename_output, "the outputs are ['why', 'z'], expected ['y', 'z']"),
    "output's node": (rename_output, "node 'y' (Mul) only in the candidate"),
    "output stored": (stored_output, "the output 'z' is stored; in the reference it is computed"),
    "output's shape": (lambda m: m.graph.output[0].type.tensor_type.shape.dim.pop(),
                       "the output 'y' is float32 [a, b, c], expected float32 [a, b, c, d]"),
    "input's type": (put(lambda m: m.graph.input[0].type.tensor_type, elem_type=10),
                     "the input 'x' is float16 [1, 8, 9, 9], expected float32"),
    "input": (put(lambda m: m.graph.input[1], name="pick"), "'pick' is only in the candidate"),
    "feedable": (feed_stored, "the input 'w' is only in the candidate"),
    "opset": (put(lambda m: m.opset_import[0], version=21), "the opset ai.onnx is 21, expected 22"),
    "opset missing": (lambda m: m.opset_import.pop(), "the opset custom is none, expected 1"),
    "IR": (put(lambda m: m, ir_version=9), "the IR version is 9, expected 10"),
    "function": (put(lambda m: m.functions[0].node[1], op_type="Add"),
                 "node 'local::twice/v' (Add): it is Add, the reference has Mul"),
    "function's attribute": (put(lambda m: m.functions[0], attribute=["loss"]),
                             "the attributes of 'local::twice' are ['loss'], expected ['gain']"),
    "function's opset": (put(lambda m: m.functions[0].opset_import[0], version=21),
                         "the opset ai.onnx of 'local::twice' is 21, expected 22"),
    "no function": (drop_function, "the function 'local::twice' is only in the reference"),
    "body": (put(lambda m: body(m, "then_branch").node[1], op_type="Sigmoid"),
             "node 'chosen/then_branch/t' (Sigmoid): it is Sigmoid, the reference has Relu"),
    "body's node": (lambda m: body(m, "then_branch").node.add(op_type="Relu", input=["half"],
                                                              output=["more"]),
                    "node 'chosen/then_branch/more' (Relu) only in the candidate"),
    "body's output's type": (
        lambda m: body(m, "then_branch").output[0].type.tensor_type.shape.dim.pop(),
        "the output 't' of 'chosen/then_branch' is float32 [e, f, g], expected float32"),
    "body's output": (lambda m: body(m, "then_branch").output.pop(),
                      "the outputs of 'chosen/then_branch' are [], expected ['t']"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_difference_is_named(name):
    edit, expected = DIFFERENT[name]
    other = network()
    edit(other)
    for found in (compare(network(), other), compare(other, network())):
        assert not found.same
    told = sentences(compare(network(), other))
    assert any(expected in text for text in told), told


def test_a_sparse_value_is_compared_too():
    def model(value: float) -> ModelProto:
        one = network()
        values = numpy_helper.from_array(np.array([1, value], "f4"), "pair")
        indices = numpy_helper.from_array(np.array([0, 1], np.int64), "i")
        one.graph.initializer.remove(stored(one, "pair"))
        one.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
        return one

    assert compare(model(2), model(2)).same
    (text,) = sentences(compare(model(2), model(3)))
    assert "its values: element [1] is 3.0, expected 2.0" in text
    assert "one of the two is sparse" in sentences(compare(network(), model(2)))[0]


def test_tensors_of_a_custom_operator_are_compared():
    def model(value: float) -> ModelProto:
        one = network()
        tensors = [numpy_helper.from_array(np.array([v], "f4")) for v in (1, value)]
        node(one, "z").attribute.append(helper.make_attribute("many", tensors))
        return one

    assert compare(model(2), model(2)).same
    (text,) = sentences(compare(model(2), model(3)))
    assert "its many is another tensor: element [0] is 3.0, expected 2.0" in text


def test_a_tensor_that_was_not_loaded_is_refused():
    model = network()
    onnx.external_data_helper.set_external_data(stored(model, "w"), "w.bin")
    stored(model, "w").ClearField("raw_data")
    with pytest.raises(DwrError, match="'w' lies in an external file that was not loaded"):
        compare(network(), model)


@pytest.mark.parametrize("make", [lambda: chain(50), x3d_block])
def test_real_graphs_equal_themselves(make):
    found = compare(make(), make())
    assert found.same
    assert found.identical == len(make().graph.node)
