"""The reference with some of the changes: every subset is a valid model that computes its part."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dwr_rewrite.equivalence.minimize import minimize
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.hybrid import Changes
from dwr_rewrite.passes.onnx.proof import prove
from models.handmade import chain, conv_model, x3d_block
from tests.passes.onnx.edits import (
    SHARED_MODEL,
    WEIGHTS,
    changed_array,
    initializer,
)
from tests.passes.onnx.helpers import feeds_for, parse, rewritten, run
from tests.passes.onnx.test_rewrite import MODELS, NESTED
from tests.passes.onnx.test_weights import SHARED, W, graph, overridable, quantized_model

RUNNABLE = {
    **{name: model for name, model in MODELS.items() if name != "decorated"},
    **{name: model for name, (model, _) in NESTED.items()},
    "quantized": quantized_model("int8", 0, True),
    "transposed": conv_model(transposed=True, multiplier=2),
    "float16": conv_model(dtype="float16"),
    "old": conv_model(ir_version=3, opset=9),
    "overridable": overridable(),
}


def feeds_of(model: ModelProto) -> dict[str, np.ndarray]:
    chosen = any(value.name == "choose" for value in model.graph.input)
    return feeds_for(model) | ({"choose": np.array(True)} if chosen else {})


def applied(changes: Changes, names) -> ModelProto:
    """The hybrid, which is a valid model."""
    model = changes.apply(names)
    onnx.checker.check_model(model, full_check=True)
    return model


def assert_same_bits(one: ModelProto, other: ModelProto, optimize: bool = True) -> None:
    feeds = feeds_of(one)
    expected, got = run(one, feeds, optimize), run(other, feeds, optimize)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        assert array.tobytes() == got[name].tobytes(), name


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", RUNNABLE)
def test_all_changes_make_the_candidate_and_none_the_reference(name, weights):
    model = RUNNABLE[name]
    candidate, sites = rewritten(model, policy="blocks:2", weights=weights)
    changes = Changes(model, candidate)
    assert len(changes.names) == (1 if name in NESTED else len(sites))
    assert applied(changes, ()) == model
    assert_same_bits(candidate, applied(changes, changes.names))
    again = Changes(candidate, applied(changes, changes.names))
    assert again.names == (), "node by node it is the candidate"


CHAIN = chain(120, channels=4, size=6)
SITES = [f"n{i}" for i in range(9, 120, 10)]


@pytest.mark.parametrize("weights", WEIGHTS)
@given(chosen=st.sets(st.sampled_from(SITES)))
@settings(deadline=None, max_examples=25)
def test_a_hybrid_is_the_model_with_only_these_sites_rewritten(weights, chosen):
    """The pass itself, told to rewrite only these sites, is the other way to the same model."""
    candidate, _ = rewritten(CHAIN, policy="blocks:2", weights=weights)
    include = [f"^{name}$" for name in sorted(chosen)] or ["^none$"]
    expected, sites = rewritten(CHAIN, policy="blocks:2", weights=weights, include=include)
    assert sum(site.form != "keep" for site in sites) == len(chosen)
    hybrid = applied(Changes(CHAIN, candidate), sorted(chosen))
    assert_same_bits(expected, hybrid)
    found = prove(CHAIN, hybrid)
    assert found is not None
    assert {lemma.site for lemma in found.lemmas} == chosen
    assert not found.differences


@given(wrong=st.sets(st.sampled_from(SITES), min_size=1, max_size=2))
@settings(deadline=None, max_examples=15)
def test_the_wrong_sites_are_found(wrong):
    """Weights that are wrong in one channel: the smallest failing set is exactly these sites."""
    candidate, _ = rewritten(CHAIN, policy="dense")
    for name in wrong:
        node = next(n for n in candidate.graph.node if n.name == name)
        changed_array(initializer(candidate, node.input[1]), lambda w: w.__imul__(2))
    changes, feeds = Changes(CHAIN, candidate), feeds_of(CHAIN)
    (expected,) = run(CHAIN, feeds).values()

    def doubled(names) -> float:
        (got,) = run(changes.apply(names), feeds).values()
        return float(np.abs(got).sum() / np.abs(expected).sum())

    assert changes.names == tuple(SITES)
    found = minimize(changes.names, lambda names: doubled(names) > 1.5 ** len(wrong))
    assert set(found) == wrong


def bumped(model: ModelProto, *names: str) -> ModelProto:
    """A copy in which stored values are other ones."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for name in names:
        changed_array(initializer(copy, name), lambda array: array.__iadd__(1))
    return copy


def test_a_stored_value_of_two_nodes_is_changed_for_one():
    """Under its own name it holds the reference's value still."""
    model = graph(SHARED)
    changes = Changes(model, bumped(model, "w"))
    assert changes.names == ("a", "y")
    hybrid = applied(changes, ["y"])
    weights = {t.name: numpy_helper.to_array(t) for t in hybrid.graph.initializer}
    assert np.array_equal(weights["w"], W)
    assert np.array_equal(weights["w_2"], W + 1)
    assert [node.input[1] for node in hybrid.graph.node] == ["w", "w_2"]
    assert_same_bits(bumped(model, "w"), applied(changes, ["a", "y"]))


def test_a_chain_behind_a_weight_comes_along_under_free_names():
    """Its nodes, values and stored values have names that mean something else in the reference."""
    model = graph(f"{SHARED} t = Relu (y) u = Sigmoid (t)")
    candidate = graph(
        "k = Constant <value = float {2}> () t = Mul (w, k) a = Conv <group = 8, pads = [1,1,1,1]> "
        "(x, w) y = Conv <group = 8> (a, t) z = Relu (y) u = Sigmoid (z)"
    )
    for one in (model, candidate):
        one.graph.output[0].name = "u"
    for node in candidate.graph.node:
        node.name = node.output[0]
    for node, name in zip(model.graph.node, ["t", "y", "z", "u"], strict=True):
        node.name = name  # taken by other nodes of the candidate
    changes = Changes(model, candidate)
    hybrid = applied(changes, changes.names)
    assert len({node.name for node in hybrid.graph.node}) == len(hybrid.graph.node)
    assert_same_bits(candidate, hybrid)
    (expected,) = run(candidate, feeds_of(candidate)).values()
    assert not np.array_equal(run(model, feeds_of(model))["u"], expected)


FUSED = """a = Conv <group = 8, pads = [1,1,1,1]> (x, w) r = Relu (a)
m, i = MaxPool <kernel_shape = [2,2]> (r) j = Cast <to = 1> (i) y = Add (m, j)"""


def test_nodes_that_compute_other_sets_of_values():
    """A fused node for two, and a node that gives only one of two results."""
    model = graph(FUSED)
    candidate = graph(
        'r = com.microsoft.FusedConv <group = 8, pads = [1,1,1,1], activation = "Relu"> (x, w)'
        "m = MaxPool <kernel_shape = [2,2]> (r) e, i = MaxPool <kernel_shape = [2,2]> (r)"
        "j = Cast <to = 1> (i) y = Add (m, j)"
    )
    changes = Changes(model, candidate)
    assert changes.names == ("r", "m", "e")
    for names in ([], ["r"], ["m"], ["e"], ["m", "e"], ["r", "m", "e"]):
        assert_same_bits(model, applied(changes, names))
    assert {node.op_type for node in applied(changes, ["r"]).graph.node} >= {"FusedConv"}
    assert "Conv" not in {node.op_type for node in applied(changes, ["r"]).graph.node}


def test_a_name_that_a_changed_node_brings_is_not_given_away():
    """The new weight "w" would be called "w_2", which is a second result of the node itself."""
    text = "m = MaxPool <kernel_shape = [2,2]> (x) y = Mul (m, w)"
    other = "m, w_2 = MaxPool <kernel_shape = [2,2]> (x) y = Mul (m, w)"
    model, candidate = graph(text, np.float32(2)), graph(other, np.float32(3))
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [])
    for one in (model, candidate):
        one.graph.node.add(op_type="Neg", input=["w"], output=["z"])
        one.graph.output.append(z)
    changes = Changes(model, candidate)
    assert changes.names == ("m", "y", "z")
    got = run(applied(changes, ["m", "y"]), feeds_of(model))
    assert got["z"] == -2
    assert np.array_equal(got["y"], run(candidate, feeds_of(model))["y"])


def test_inferred_types_of_changed_values_are_dropped():
    """They may have another shape now."""
    text = "a = Conv <group = 8> (x, w) y = GlobalAveragePool (a)"
    model, candidate = graph(text), graph(text.replace("8>", "8, pads = [1,1,1,1]>"))
    shape = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 8, 5, 4])
    model.graph.value_info.append(shape)
    assert_same_bits(candidate, applied(Changes(model, candidate), ["a"]))


def test_an_output_that_is_stored_in_the_candidate():
    model, candidate = graph("y = Identity (w)"), graph("z = Identity (w)", W)
    candidate.graph.initializer.append(numpy_helper.from_array(W + 1, "y"))
    changes = Changes(model, candidate)
    assert changes.names == ("y",)
    got = run(applied(changes, ["y"]), feeds_of(model))["y"]
    assert np.array_equal(got, W + 1)


LOOP_BODY = """k = Identity (c) v = Mul (s, f) t = Conv <group = 8, pads = [1,1,1,1]> (v, w)"""


def loop(body: str = LOOP_BODY, shape: str = "1,8,9,9", **stored: np.ndarray) -> ModelProto:
    model = parse(f"""<ir_version: 10, opset_import: ["" : 22]>
    g (float[1,8,9,9] x) => (float[a,b,c,d] y) <int64 n = {{2}}, bool go = {{1}}>
    {{ first = Relu (x)
       loop = Loop (n, go, first) <body = one (int64 i, bool c, float[1,8,9,9] s)
         => (bool k, float[{shape}] t) {{ {body} }}>
       y = Neg (loop) }}""")
    for name, array in {"w": W / 4, "f": np.float32(0.5), **stored}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, "f4"), name))
    return model


@pytest.mark.parametrize("candidate", [
    loop(LOOP_BODY.replace("Mul", "Add")),
    loop(f=np.float32(0.25)),
    loop(LOOP_BODY.replace("(s, f)", "(s, first)")),
    loop(LOOP_BODY.replace("(s, f)", "(s, q) u = Neg (v)"), q=np.float32(3)),
], ids=["operator", "stored outside", "captured", "more nodes"])  # fmt: skip
def test_what_changes_in_a_body_is_a_change_of_the_node_around_it(candidate):
    changes = Changes(loop(), candidate)
    assert changes.names == ("loop",)
    assert_same_bits(candidate, applied(changes, ["loop"]))
    assert_same_bits(loop(), applied(changes, []))
    assert_same_bits(candidate, applied(changes, ["loop/body/v"]))  # a site in it means the node


DEAD = " u = Neg (s)"


@pytest.mark.parametrize(("reference", "candidate"), [
    (loop(), loop(LOOP_BODY + DEAD)),
    (loop(LOOP_BODY + DEAD), loop()),
    (loop(), loop(shape="n,8,9,9")),
], ids=["added", "removed", "type of a result"])  # fmt: skip
def test_whatever_differs_in_a_body_counts(reference, candidate):
    assert Changes(reference, candidate).names == ("loop",)
    assert_same_bits(candidate, applied(Changes(reference, candidate), ["loop"]))


def test_a_site_belongs_to_the_longest_name_around_it():
    model, candidate = loop(), loop(LOOP_BODY.replace("Mul", "Add"))
    for one, op in ((model, "Relu"), (candidate, "Sigmoid")):
        one.graph.node[0].op_type, one.graph.node[0].name = op, "block"
        one.graph.node[1].name = "block/loop"
    changes = Changes(model, candidate)
    assert changes.names == ("block", "block/loop")
    one, other = applied(changes, ["block/loop"]), applied(changes, ["block/loop/body/v"])
    assert one == other
    assert one != applied(changes, ["block"])


def branches(condition: str, **stored: np.ndarray) -> ModelProto:
    """The first branch reads "f" from outside, through another body; the second has its own."""
    model = parse(f"""<ir_version: 10, opset_import: ["" : 22]>
    g (float[2] x, bool choose) => (float[a] y)
    {{ y = If (choose) <
         then_branch = yes () => (float[b] t) {{ t = If ({condition}) <
           then_branch = inner () => (float[c] s) {{ s = Mul (x, f) }},
           else_branch = other () => (float[d] r) {{ r = Neg (x) }}> }},
         else_branch = no () => (float[e] o) <float f = {{7}}> {{ o = Mul (x, f) }}> }}""")
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


@pytest.mark.parametrize("choose", [True, False])
def test_what_bodies_read_comes_along_where_it_is_read(choose):
    """Under another name in the inner body, and not in the one that has a value of that name."""
    model = branches("choose", f=np.float32(2))
    model.graph.node.add(op_type="Identity", input=["f"], output=["z"])
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    candidate = ModelProto()
    candidate.CopyFrom(model)
    changed_array(initializer(candidate, "f"), lambda f: f.__iadd__(1))
    changes = Changes(model, candidate)
    assert changes.names == ("y", "z")
    hybrid, feeds = applied(changes, ["y"]), {"x": np.ones(2, "f4"), "choose": np.array(choose)}
    got = run(hybrid, feeds)
    assert got["z"] == 2, "the reference's value, under its own name"
    assert got["y"].tolist() == ([3, 3] if choose else [7, 7])


def test_a_change_around_a_body_that_reads_it():
    """The body of the reference reads a value that is the candidate's now."""
    candidate = loop(LOOP_BODY.replace("(s, f)", "(s, first)"))
    candidate.graph.node[0].op_type = "Sigmoid"
    changes = Changes(loop(LOOP_BODY.replace("(s, f)", "(s, first)")), candidate)
    assert changes.names == ("first",)
    assert_same_bits(candidate, applied(changes, ["first"]))


def test_a_function_is_one_change():
    model, _ = NESTED["function"]
    candidate, (site,) = rewritten(model, policy="dense", weights="linked")
    changes = Changes(model, candidate)
    assert changes.names == ("local::block",)
    assert_same_bits(candidate, applied(changes, [site.name]))


def test_a_function_of_the_candidate_alone_comes_along():
    model = NESTED["function"][0]
    candidate = ModelProto()
    candidate.CopyFrom(model)
    candidate.functions[0].name = candidate.graph.node[1].op_type = "other"
    candidate.graph.node[0].op_type = "other"
    changes = Changes(model, candidate)
    assert changes.names == ("a", "y")
    assert_same_bits(candidate, applied(changes, ["y"]))
    assert {f.name for f in changes.apply(["y"]).functions} == {"block", "other"}


def test_what_another_tool_made(tmp_path):
    """onnxruntime folds and fuses; whatever it kept the name of can be changed one by one."""
    model = x3d_block()
    path = tmp_path / "optimized.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    candidate = onnx.load(path)
    assert len(candidate.graph.node) < len(model.graph.node)
    changes = Changes(model, candidate)
    assert len(changes.names) >= 3
    feeds = feeds_of(model)
    expected = run(model, feeds)["y"]
    for name in changes.names:  # each fusion alone: the same but for rounding in float32
        got = run(applied(changes, [name]), feeds)["y"]
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    assert_same_bits(candidate, applied(changes, changes.names))


def test_the_models_are_not_touched():
    model = x3d_block()
    candidate, _ = rewritten(model, policy="dense", weights="linked")
    before = [m.SerializeToString(deterministic=True) for m in (model, candidate)]
    changes = Changes(model, candidate)
    one, two = (changes.apply(changes.names).SerializeToString() for _ in range(2))
    assert one == two
    assert before == [m.SerializeToString(deterministic=True) for m in (model, candidate)]


def test_what_describes_the_reference_stays():
    model = x3d_block()
    model.producer_name, model.doc_string = "me", "said"
    model.metadata_props.add(key="k", value="v")
    model.graph.input[0].doc_string = "image"
    candidate, _ = rewritten(model, policy="dense")
    hybrid = Changes(model, candidate).apply(["depthwise"])
    for field in ("producer_name", "doc_string", "metadata_props", "opset_import", "ir_version"):
        assert getattr(hybrid, field) == getattr(model, field)
    assert hybrid.graph.input == model.graph.input
    assert hybrid.graph.output == model.graph.output
    assert hybrid.graph.name == model.graph.name


def test_nodes_that_share_a_name_can_be_told_apart():
    model = chain(30, channels=4, size=6)
    for node in model.graph.node:
        node.name = "same"
    candidate, _ = rewritten(model, policy="dense")
    assert Changes(model, candidate).names == ("same", "same#2", "same#3")


def test_impossible_hybrids_say_why():
    model = graph(SHARED)
    candidate = bumped(model, "w")
    with pytest.raises(DwrError, match="no change 'b' between the two models"):
        Changes(model, candidate).apply(["b"])
    candidate.opset_import[0].version = 18
    with pytest.raises(DwrError, match=r"opsets 17 and 18 of ai\.onnx"):
        Changes(model, candidate).apply(["a"])
    assert Changes(model, candidate).apply([]) == model
    other = graph(SHARED.replace("(a, w)", "(a, more)"), inputs=", float[8,1,3,3] more")
    with pytest.raises(DwrError, match="reads the input 'more', which is none of the reference"):
        Changes(model, other).apply(["y"])


def test_values_that_are_computed_in_another_order():
    """Either node alone would have to read its own result."""
    model = graph("a = Relu (x) b = Neg (a) y = Add (a, b)", None)
    candidate = graph("b = Relu (x) a = Neg (b) y = Add (a, b)", None)
    changes = Changes(model, candidate)
    assert set(changes.names) == {"a", "b"}
    with pytest.raises(DwrError, match="in another order"):
        changes.apply(["a"])
    assert_same_bits(candidate, applied(changes, ["a", "b"]))


def test_a_model_before_ir_4_lists_its_stored_values_as_inputs():
    model = conv_model(ir_version=3, opset=9)
    candidate, _ = rewritten(model, policy="dense")
    hybrid = applied(Changes(model, candidate), ["conv"])
    stored = {tensor.name for tensor in hybrid.graph.initializer}
    assert {value.name for value in hybrid.graph.input} == stored | {"x"}


def test_what_can_be_fed_stays():
    model = overridable()
    candidate, _ = rewritten(model, policy="dense", freeze_weights=True)
    hybrid = applied(Changes(model, candidate), ["y"])
    assert [value.name for value in hybrid.graph.input] == ["x", "w"]
    assert_same_bits(candidate, hybrid)


@pytest.mark.skipif(
    not SHARED_MODEL.exists(), reason="the shared models are not beside the checkout"
)
@pytest.mark.parametrize("count", [0, 1, 9, 18])
def test_a_trained_face_detector(count):
    """Without fusions, as onnxruntime fuses weights only where they cannot be fed."""
    model = onnx.load(SHARED_MODEL)
    candidate, sites = rewritten(model, freeze_weights=True)
    changes = Changes(model, candidate)
    assert changes.names == tuple(site.name for site in sites if site.form != "keep")
    chosen = changes.names[::2][:count] if count < 18 else changes.names
    include = [f"^{name}$" for name in chosen] or ["^none$"]
    expected, _ = rewritten(model, freeze_weights=True, include=include)
    assert_same_bits(expected, applied(changes, chosen), optimize=False)
