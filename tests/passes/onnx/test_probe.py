"""Each site by itself: no channel meets another, each leak is found, and how far Inf and NaN go."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

from dwr_rewrite.equivalence.evidence import Probe, Reach
from dwr_rewrite.equivalence.subject import Site
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import probe
from dwr_rewrite.passes.onnx.probe import probes
from dwr_rewrite.report import SiteReport
from models.handmade import conv_model
from tests.passes.onnx.edits import (
    WEIGHTS,
    changed_array,
    initializer,
    packed,
    stamped,
)
from tests.passes.onnx.helpers import parse, rewritten
from tests.passes.onnx.test_rewrite import MODELS, NESTED
from tests.passes.onnx.test_weights import COMPUTED, SHARED, W, graph, quantized_model


def subjects(reports: list[SiteReport]) -> list[Site]:
    return [
        Site(r.name, r.output, r.spec.dtype, r.spec.taps, r.form) for r in reports if r.spec
    ]  # fmt: skip


def probed(model: ModelProto, candidate: ModelProto, reports: list[SiteReport]) -> list[Probe]:
    return list(probes(model, candidate, subjects(reports)))


def reaches(channels: int, reference: int, candidate: int) -> tuple[Reach, ...]:
    return tuple(Reach(v, channels // 2, reference, candidate) for v in ("Inf", "NaN"))


DTYPES = st.sampled_from(["float32", "float16", "float64", "bfloat16"])


@given(
    st.sampled_from([2, 4, 6, 12]), st.integers(1, 3), st.integers(1, 3), st.booleans(), DTYPES,
    st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.sampled_from(WEIGHTS),
    st.sampled_from(["dense", "blocks:2", "blocks:3"]),
)  # fmt: skip
@settings(deadline=None)
def test_every_form_keeps_its_channels_apart(
    channels, multiplier, rank, transposed, dtype, stride, dilation, weights, policy
):
    """A non-finite channel reaches its group: 0 * Inf is NaN. In the reference only its own."""
    model = conv_model(
        channels=channels, multiplier=multiplier, kernel=(3,) * rank, spatial=(9,) * rank,
        transposed=transposed, strides=(stride,) * rank, dilations=(dilation,) * rank,
        pads=(1,) * 2 * rank, dtype=dtype, opset=22, ir_version=10,
    )  # fmt: skip
    candidate, reports = rewritten(model, policy=policy, weights=weights)
    (found,) = probed(model, candidate, reports)
    width = channels if policy == "dense" else channels // {
        a.name: a.i for a in stamped(candidate).attribute}["group"]  # fmt: skip
    outputs = channels * multiplier
    assert found == Probe(
        "conv", reports[0].form, channels, outputs, channels, (), 0,
        reaches(channels, multiplier, width * multiplier),
    )  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", [*MODELS, *NESTED])
def test_sites_everywhere_are_probed(name, weights):
    """In bodies and functions too; not where the weight is not known before the model runs."""
    model = MODELS.get(name) or NESTED[name][0]
    candidate, reports = rewritten(model, policy="blocks:2", weights=weights)
    found = probed(model, candidate, reports)
    assert [p.site for p in found] == [r.name for r in reports if name not in COMPUTED]
    assert all(p.probed == p.channels and not p.leaking for p in found)


@given(data=st.data())
@settings(deadline=None)
def test_every_leak_is_found(data):
    """Numbers of every size off the diagonal, and channels whose own filter is zero."""
    transposed, multiplier = data.draw(st.booleans()), data.draw(st.integers(1, 2))
    dtype = data.draw(DTYPES)
    model = conv_model(
        channels=6, multiplier=multiplier, transposed=transposed, dtype=dtype, opset=22,
        ir_version=10,
    )  # fmt: skip
    changed_array(initializer(model, "w"), lambda w: w.__setitem__(2, 0))
    candidate, reports = rewritten(model, policy="dense")
    element = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.get(dtype, np.dtype(dtype))
    least = ml_dtypes.finfo(element).smallest_subnormal
    sizes = st.sampled_from([1.0, -1e-3, 6e4, float(least)])
    expected = set()

    def spoil(w: np.ndarray) -> None:
        places = st.tuples(*(st.integers(0, n - 1) for n in w.shape))
        before = w != 0
        for place in data.draw(st.lists(places, max_size=4)):
            w[place] = data.draw(sizes)
        for first, second in np.argwhere((w != 0).any((2, 3)) & ~before.any((2, 3))):
            expected.add((first, second) if transposed else (second, first))

    changed_array(packed(candidate), spoil)
    (found,) = probed(model, candidate, reports) or [None]
    if found is None:  # nothing was changed, or nothing but the form
        assert not expected
        return
    assert set(found.leaks) == expected
    assert found.leaking == len(expected)


def test_only_a_few_leaks_are_listed_and_all_are_counted():
    model = conv_model(channels=8)
    candidate, reports = rewritten(model, policy="dense")
    changed_array(packed(candidate), lambda w: w.__iadd__(1))
    (found,) = probed(model, candidate, reports)
    assert found.leaks == ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7),
                           (1, 0), (1, 2), (1, 3))  # fmt: skip
    assert found.leaking == 8 * 7


def test_a_large_site_is_probed_at_evenly_chosen_channels(monkeypatch):
    model = conv_model(channels=64)
    candidate, reports = rewritten(model, policy="dense")
    changed_array(packed(candidate), lambda w: w.__setitem__((5, 63), 1))
    monkeypatch.setattr(probe, "BUDGET", 64 * 64 * 9 * 10)
    (found,) = probed(model, candidate, reports)
    assert (found.channels, found.probed, found.leaks) == (64, 10, ((63, 5),))
    monkeypatch.setattr(probe, "BUDGET", 1)
    assert probed(model, candidate, reports)[0].probed == 1


def test_channels_run_in_batches_of_bounded_size(monkeypatch):
    model = conv_model(channels=64, multiplier=2)
    candidate, reports = rewritten(model, policy="blocks:16")
    changed_array(packed(candidate), lambda w: w.__setitem__((slice(40, 44), 3), 1))
    whole = probed(model, candidate, reports)
    monkeypatch.setattr(probe, "BATCH_ELEMENTS", 7 * 128 * 9)
    assert probed(model, candidate, reports) == whole
    assert whole[0].leaking == 4


def test_a_quantized_weight_is_dequantized():
    """Off the diagonal stands the zero-point, which is a zero only after it was subtracted."""
    for axis, transposed in ((None, False), (0, False), (1, True)):
        model = quantized_model("uint8", axis, True, transposed, 2)
        candidate, reports = rewritten(model, policy="blocks:4")
        (found,) = probed(model, candidate, reports)
        assert not found.leaking
        role = next(n for n in candidate.graph.node if n.op_type == "DequantizeLinear")
        tensor = initializer(candidate, role.input[0])
        changed_array(tensor, lambda q: q.__setitem__((0, 3), q[0, 3] ^ 1))
        (found,) = probed(model, candidate, reports)
        assert found.leaking == 1


def test_only_sites_that_changed_are_probed():
    model = graph(SHARED)
    candidate, reports = rewritten(model, policy="blocks:4", include=["^a$"])
    assert [p.site for p in probed(model, candidate, reports)] == ["a"]
    assert probed(model, model, reports) == []


def test_bodies_that_use_one_name_are_told_apart():
    """Only the second branch leaks; both call their result "t"."""
    model = parse("""<ir_version: 10, opset_import: ["" : 22]>
    g (float[1,8,9,9] x, bool choose) => (float[a,b,c,d] y)
    { y = If (choose) <
        then_branch = yes () => (float[e,f,g,h] t) { t = Conv <group = 8> (x, w) },
        else_branch = no () => (float[i,j,k,l] t) { t = Conv <group = 8> (x, v) }> }""")
    for name in "wv":
        model.graph.initializer.append(numpy_helper.from_array(W, name))
    candidate, reports = rewritten(model, policy="dense")
    changed_array(initializer(candidate, "v_dwr8"), lambda w: w.__setitem__((1, 2), 1))
    found = {p.site: p.leaks for p in probed(model, candidate, reports)}
    assert found == {"y/then_branch/t": (), "y/else_branch/t": ((2, 1),)}


def another_group(model: ModelProto) -> None:
    next(a for a in stamped(model).attribute if a.name == "group").i = 1


def gone(model: ModelProto) -> None:
    stamped(model).output[0] = "elsewhere"


def not_a_convolution(model: ModelProto) -> None:
    stamped(model).op_type = "Mul"


def computed(model: ModelProto) -> None:
    name = stamped(model).input[1]
    model.graph.node.insert(0, helper.make_node("Neg", [name], ["n"]))
    stamped(model).input[1] = "n"


@pytest.mark.parametrize("edit", [another_group, gone, not_a_convolution, computed])
def test_what_cannot_be_compared_is_left_out(edit):
    model = conv_model()
    candidate, reports = rewritten(model, policy="blocks:4")
    edit(candidate)
    assert probed(model, candidate, reports) == []


def test_a_site_that_does_not_run_is_named():
    model = conv_model()
    candidate, reports = rewritten(model, policy="blocks:4")
    stamped(candidate).attribute.append(helper.make_attribute("dilations", [1]))
    with pytest.raises(DwrError, match="onnxruntime does not run 'conv' by itself"):
        probed(model, candidate, reports)


def test_a_non_finite_weight_is_no_leak():
    """Inf * 0 in a channel's own filter is NaN in both models."""
    model = conv_model(channels=8, bias=False)
    changed_array(initializer(model, "w"), lambda w: w.__setitem__((3, 0, 1, 1), np.inf))
    candidate, reports = rewritten(model, policy="dense")
    (found,) = probed(model, candidate, reports)
    assert found.leaking == 0
    assert np.isinf(numpy_helper.to_array(packed(candidate))).sum() == 1
