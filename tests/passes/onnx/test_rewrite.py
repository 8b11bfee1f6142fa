"""What is seen and left alone, nested graphs, what has to survive, running twice, undoing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.metadata import read
from dwr_rewrite.passes.onnx.rewrite import Options, rewrite
from models.handmade import chain, conv_model, x3d_block
from tests.passes.onnx.helpers import (
    assert_equal,
    feeds_for,
    forms,
    parse,
    reasons,
    rewritten,
    run,
)
from tests.passes.onnx.test_weights import SHARED, SOURCES, W, graph

HEADER = '<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1, "custom" : 3, "local" : 1]>'


def left_alone(text: str, **tensors) -> ModelProto:
    model = parse(f"{HEADER} g (float[1,8,9,9] x) => (float[a,b,c,d] y) {{ {text} }}")
    for name, array in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def filters(*shape, dtype="f4"):
    return np.ones(shape, dtype)


REJECTED = {
    "grouped": (
        left_alone("y = Conv <group = 4> (x, w)", w=filters(8, 2, 3, 3)),
        "grouped", "2 input channels in each of 4 groups",
    ),
    "grouped-transposed": (
        left_alone("y = ConvTranspose <group = 4> (x, w)", w=filters(8, 1, 3, 3)),
        "grouped", "2 input channels in each of 4 groups",
    ),
    "pointwise": (
        left_alone("y = Conv <group = 8> (x, w)", w=filters(8, 1, 1, 1)),
        "pointwise", "1x1 kernel",
    ),
    "qlinear": (
        left_alone("y = QLinearConv <group = 8> (x, s, z, w, s, z, s, z)",
                   w=filters(8, 1, 3, 3, dtype="i1"), s=np.float32(1), z=np.int8(0)),
        "operator", "int8",
    ),
    "integer": (
        left_alone("y = ConvInteger <group = 8> (x, w)", w=filters(8, 1, 3, 3, dtype="i1")),
        "operator", "int8",
    ),
    "deform": (
        left_alone("y = DeformConv <group = 8> (x, w, o)",
                   w=filters(8, 1, 3, 3), o=filters(1, 18, 7, 7)),
        "operator", "move with a second input",
    ),
    "nhwc": (
        left_alone("y = com.microsoft.NhwcConv <group = 8> (x, w)", w=filters(8, 1, 3, 3)),
        "operator", "channels-last",
    ),
    "causal-state": (
        left_alone("y, p = com.microsoft.CausalConvWithState (x, w)", w=filters(8, 1, 4)),
        "operator", "state",
    ),
    "integer-weight": (
        left_alone("y = Conv <group = 8> (x, w)", w=filters(8, 1, 3, 3, dtype="i4")),
        "weight-type", "int32",
    ),
    "four-dimensional": (
        left_alone("y = Conv <group = 8> (x, w)", w=filters(8, 1, 3, 3, 3, 3)),
        "rank", "1 to 3 spatial axes",
    ),
    "contradiction": (
        left_alone("y = Conv <group = 8, kernel_shape = [5, 5]> (x, w)", w=filters(8, 1, 3, 3)),
        "invalid", "kernel_shape",
    ),
    "broken-groups": (
        left_alone("y = Conv <group = 8> (x, w)", w=filters(9, 1, 3, 3)),
        "invalid", "9 output channels do not fall into 8 groups",
    ),
    "bad-pads": (
        left_alone("y = Conv <group = 8, pads = [1, 1]> (x, w)", w=filters(8, 1, 3, 3)),
        "invalid", "pads",
    ),
    "bad-auto-pad": (
        left_alone('y = Conv <group = 8, auto_pad = "MIRROR"> (x, w)', w=filters(8, 1, 3, 3)),
        "invalid", "MIRROR",
    ),
    "no-weight": (left_alone("y = Conv <group = 8> (x)"), "invalid", "no weight"),
    "negative-group": (
        left_alone("y = Conv <group = -8> (x, w)", w=filters(8, 1, 3, 3)), "invalid", "group is -8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_left_alone_says_why(name):
    model, code, words = REJECTED[name]
    copy = ModelProto()
    copy.CopyFrom(model)
    (site,) = rewrite(copy, Options(policy="dense"))
    assert (site.form, site.reason.code) == ("keep", code)
    assert words in site.reason.reason
    assert copy == model


def test_standard_convolutions_are_not_listed():
    assert rewritten(conv_model(groups=1))[1] == []


SELECTION = [
    (dict(include=["^n9$"]), {"n9": "dense", "n19": "keep", "n29": "keep"}),
    (dict(include=["n1", "n2"]), {"n9": "keep", "n19": "dense", "n29": "dense"}),
    (dict(exclude=["n.9"]), {"n9": "dense", "n19": "keep", "n29": "keep"}),
    (dict(include=["9"], exclude=["19"]), {"n9": "dense", "n19": "keep", "n29": "dense"}),
]


@pytest.mark.parametrize(("options", "expected"), SELECTION)
def test_the_user_selects_by_regular_expression(options, expected):
    _, sites = rewritten(chain(30, channels=4, size=5), policy="dense", **options)
    assert forms(sites) == expected
    assert set(reasons(sites).values()) <= {"excluded", "not-included"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(include=["("]), "include '\\('"),
        (dict(policy="best"), "policy 'best'"),
        (dict(weights="shared"), "weights 'shared'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(DwrError, match=message):
        rewrite(conv_model(), Options(**options))


@pytest.mark.parametrize(("change", "message"), [
    (dict(ir_version=2), "IR version 2"),
    (dict(opset=5), "opset 5; 6 to"),
    (dict(opset=999), "opset 999"),
])  # fmt: skip
def test_versions_out_of_range_are_refused(change, message):
    with pytest.raises(DwrError, match=message):
        rewrite(conv_model(**change), Options(policy="blocks:32"))


LOOP = f"""{HEADER}
g (float[1,8,9,9] x) => (float[a,b,c,d] y)
<int64 trips = {{3}}, bool go = {{1}}>
{{
  y = Loop (trips, go, x) <
    body = body (int64 i, bool c, float[1,8,9,9] s) => (bool k, float[1,8,9,9] t)
    {{ k = Identity (c) t = Conv <group = 8, pads = [1,1,1,1]> (s, w) }}>
}}"""
IF = f"""{HEADER}
g (float[1,8,9,9] x, bool choose) => (float[a,b,c,d] y)
{{
  y = If (choose) <
    then_branch = yes () => (float[a,b,c,d] t) {{ t = Conv <group = 8, pads = [1,1,1,1]> (x, w) }},
    else_branch = no () => (float[a,b,c,d] e) {{ e = Conv <group = 8, dilations = [2,2]> (x, w) }}>
}}"""
SCAN = f"""{HEADER}
g (float[5,1,8,9] x) => (float[a,b,c,d] y)
{{
  y = Scan <num_scan_inputs = 1, body = step (float[1,8,9] s) => (float[p,q,r] t)
    {{ t = Conv <group = 8, pads = [1,1]> (s, w) }}> (x)
}}"""
FUNCTION = f"""{HEADER}
g (float[1,8,9,9] x) => (float[a,b,c,d] y)
{{ a = local.block (x) y = local.block (a) }}
<opset_import: ["" : 22], domain: "local">
block (u) => (v) {{
  f = Constant <value_floats = [{",".join(repr(float(v)) for v in W.reshape(-1)[:72])}]> ()
  s = Constant <value_ints = [8, 1, 3, 3]> ()
  k = Reshape (f, s)
  v = Conv <group = 8, pads = [1,1,1,1]> (u, k)
}}"""


def nested(text: str, inside: bool = False, weight: np.ndarray = W) -> ModelProto:
    """A model with control flow; its weight in the main graph, or in the (first) body."""
    model = parse(text)
    tensor = numpy_helper.from_array(weight / 4, "w")
    bodies = [a.g for n in model.graph.node for a in n.attribute if a.type == AttributeProto.GRAPH]
    for holder in bodies if inside else [model.graph]:
        holder.initializer.append(tensor)
    return model


NESTED = {
    "loop": (nested(LOOP), 1),
    "loop-own-weight": (nested(LOOP, inside=True), 1),
    "if": (nested(IF), 2),
    "if-own-weights": (nested(IF, inside=True), 2),
    "scan": (nested(SCAN, weight=W[:, :, 0]), 1),
    "function": (parse(FUNCTION), 1),
}


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("name", NESTED)
def test_bodies_and_functions(name, weights):
    model, count = NESTED[name]
    result, sites = rewritten(model, policy="blocks:4", weights=weights)
    assert [site.form for site in sites] == ["blocks:4"] * count
    assert all("/" in site.name for site in sites), "the path says where the site is"
    for choose in [True, False] if name.startswith("if") else [None]:
        feeds = feeds_for(model) | ({} if choose is None else {"choose": np.array(choose)})
        assert_equal(model, result, feeds, depth=3)
    restored, undone = rewritten(result, restore=True)
    assert [u.reason for u in undone] == [None] * count
    feeds = feeds_for(model)
    for key, expected in run(model, feeds).items():
        assert np.array_equal(run(restored, feeds)[key], expected)


def test_a_weight_passed_into_a_function_is_refused_with_a_reason():
    text = (
        FUNCTION.split("block (u)", maxsplit=1)[0]
        + "block (u, k) => (v) { v = Conv <group = 8> (u, k) }"
    )
    model = parse(
        text.replace("local.block (x)", "local.block (x, w)").replace("(a) }", "(a, w) }")
    )
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    _, (site,) = rewritten(model)
    assert site.reason.code == "runtime-weight"


def test_a_group_that_is_a_function_attribute_is_refused_with_a_reason():
    text = FUNCTION.replace("group = 8", "group : int = @g").replace("block (u)", "block <g> (u)")
    for name in "xa":
        text = text.replace(f"block ({name})", f"block <g = 8> ({name})")
    _, (site,) = rewritten(parse(text))
    assert site.reason.code == "function-attribute"


def decorated() -> ModelProto:
    """A model with something at every place that a careless exporter drops."""
    text = "a = custom.Keep (x) b = Conv <group = 8, pads = [1,1,1,1]> (x, w) y = Add (a, b)"
    model = left_alone(text, w=filters(8, 1, 3, 3), unused=filters(3))
    model.doc_string, model.producer_name, model.domain, model.model_version = "doc", "me", "org", 7
    model.metadata_props.add(key="author", value="me")
    model.graph.doc_string = "graph doc"
    model.graph.metadata_props.add(key="k", value="v")
    model.graph.input[0].doc_string = "input doc"
    model.graph.initializer[0].doc_string = "weight doc"
    model.graph.value_info.append(
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 8, 9, 9])
    )
    model.graph.quantization_annotation.add(tensor_name="b")
    custom, conv, _ = model.graph.node
    conv.name, conv.doc_string = "conv", "conv doc"
    conv.metadata_props.add(key="stack", value="model.py:12")
    custom.attribute.append(helper.make_attribute("blob", b"\xff\x00\xfe"))
    custom.attribute.append(helper.make_attribute("blobs", [b"\xff", b"ok"]))
    custom.attribute.append(
        helper.make_attribute("tensors", [numpy_helper.from_array(filters(2))] * 2)
    )
    return model


def test_everything_else_is_byte_for_byte_the_same():
    model = decorated()
    result = ModelProto()
    result.CopyFrom(model)
    rewrite(result, Options(policy="blocks:4"))
    conv = result.graph.node[1]
    assert read(conv)["form"] == "blocks:4"
    assert conv.doc_string == "conv doc"
    assert ("stack", "model.py:12") in {(p.key, p.value) for p in conv.metadata_props}
    assert result.graph.initializer[0].doc_string == "weight doc"
    # With the node and its weight put back, nothing differs.
    result.graph.node[1].CopyFrom(model.graph.node[1])
    result.graph.initializer[0].CopyFrom(model.graph.initializer[0])
    assert result.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


MODELS = {
    **SOURCES,
    "shared": graph(SHARED),
    "chain": chain(40, channels=6, size=7),
    "x3d": x3d_block(),
    "decorated": decorated(),
}


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("name", MODELS)
def test_a_second_run_changes_nothing(name, weights):
    once = ModelProto()
    once.CopyFrom(MODELS[name])
    rewrite(once, Options(policy="blocks:2", weights=weights))
    twice = ModelProto()
    twice.CopyFrom(once)
    sites = rewrite(twice, Options(policy="blocks:2", weights=weights))
    assert sites
    assert {site.reason.code for site in sites} == {"already-rewritten"}
    assert twice.SerializeToString() == once.SerializeToString()


@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("name", MODELS)
def test_restore_gives_the_depthwise_model_back(name, weights):
    model, result = MODELS[name], ModelProto()
    result.CopyFrom(model)
    rewrite(result, Options(policy="blocks:2", weights=weights))
    undone = rewrite(result, Options(restore=True))
    assert [site.reason for site in undone] == [None] * len(undone)
    stored_weight = {t.name for t in model.graph.initializer} & {"w", "depthwise.weight", "w9"}
    chained = {"identity", "cast", "reshape", "transpose", "squeeze"}
    if weights == "linked" or (stored_weight and name not in chained):
        assert result.SerializeToString(deterministic=True) == model.SerializeToString(
            deterministic=True
        )
        return
    onnx.checker.check_model(result, full_check=True)
    (conv,) = (n for n in result.graph.node if "Conv" in n.op_type)
    assert {a.name: a.i for a in conv.attribute}["group"] == 8
    feeds = feeds_for(model)
    assert np.array_equal(run(result, feeds)["y"], run(model, feeds)["y"])


def test_a_weight_that_was_trained_since_is_not_thrown_away():
    model, _ = rewritten(conv_model(bias=False), policy="dense")
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[0, 3, 1, 1] = 0.5
    name = model.graph.initializer[0].name
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, name))
    copy, (site,) = rewritten(model, restore=True)
    assert site.reason.code == "not-diagonal"
    assert copy == model


def test_names_that_are_taken_are_avoided():
    model = graph("w_dwr4 = Relu (x) y = Conv <group = 8> (w_dwr4, w)")
    result, _ = rewritten(model, policy="blocks:4")
    assert_equal(model, result, feeds_for(model))
    linked, _ = rewritten(model, policy="blocks:4", weights="linked")
    assert_equal(model, linked, feeds_for(model))


def test_nodes_without_names_and_with_equal_names():
    model = chain(20, channels=4, size=5)
    for node in model.graph.node:
        node.name = ""
    result, sites = rewritten(model, policy="dense")
    assert forms(sites) == {"t10": "dense", "y": "dense"}, "named by their outputs"
    assert_equal(model, result, feeds_for(model), depth=2)
    for node in model.graph.node:  # onnxruntime refuses this, other tools do not
        node.name = "same"
    assert [site.form for site in rewritten(model, policy="dense")[1]] == ["dense", "dense"]


def test_the_order_of_nodes_stays_topological_in_a_large_linked_model():
    model = chain(300, channels=4, size=5)
    result, sites = rewritten(model, policy="blocks:2", weights="linked")
    assert len(sites) == 30
    assert_equal(model, result, feeds_for(model), depth=30)
