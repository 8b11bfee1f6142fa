"""Two torch models as a pair: sites, names, rounding, and half-changed models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import dwr_rewrite as dwr
from dwr_rewrite.equivalence.minimize import minimize
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.verify.pair import TorchPair
from tests.passes.fx.test_verify_proof import (
    LINKED,
    PAIRS,
    PRECOMPUTED,
    build,
    move,
    node,
    stored,
)
from tests.passes.fx.test_verify_subject import C, Net, image, net, program, state

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # torch, as it copies a graph
)


def pair_of(kind):
    reference, candidate, _ = build(kind)
    return TorchPair(reference, candidate, (image(),))


@pytest.mark.parametrize("kind", PAIRS)
def test_the_sites_are_those_that_were_rewritten(kind):
    pair = pair_of(kind)
    names = PAIRS[kind][2]
    twice = [f"{name}#2" for name in names if name.endswith("first")]
    assert sorted(site.name for site in pair.sites) == sorted(names + twice)
    order = [value for value in pair.reference.values if value in {s.value for s in pair.sites}]
    assert [site.value for site in pair.sites] == order
    terms = {site.name: site.terms for site in pair.sites}
    assert {terms[name] for name in terms if "up" in name or "transpose" in name} == {4}
    assert set(terms.values()) == {4, 9}
    assert {site.dtype for site in pair.sites} == {"float32"}
    assert {site.form for site in pair.sites} == {PAIRS[kind][1]["policy"]}
    assert set(pair.changed) == set(names)
    assert pair.operators > 5
    assert pair.weight_bytes == sum(
        t.numel() * t.element_size() for t in (*net().parameters(), *net().buffers())
    )


def test_without_a_rewrite_they_are_the_depthwise_convolutions_of_the_same_name():
    reference, candidate = net(), net()
    candidate.second = nn.Conv2d(C, 2 * C, 3)  # dense, by hand
    pair = TorchPair(reference, candidate, (image(),))
    assert [(site.name, site.form) for site in pair.sites] == [
        ("first", "keep"), ("first#2", "keep"), ("second", "dense"), ("up", "keep"),
    ]  # fmt: skip
    assert pair.changed == ("second",)


def test_models_of_two_kinds_have_outputs_only():
    pair = TorchPair(net(), program(), (image(),))
    assert (list(pair.sites), pair.proof, list(pair.changed)) == ([], None, [])
    feeds = pair.reference.call.examples
    one, other = pair.reference.run(feeds), pair.candidate.run(feeds)
    assert one.keys() == other.keys()


def test_the_candidate_takes_the_names_of_the_reference():
    class Other(Net):
        def forward(self, other):
            return super().forward(other)

    torch.manual_seed(0)
    pair = TorchPair(net(), Other().eval(), (image(),))
    assert list(pair.candidate.declared) == ["x"]
    assert pair.candidate.run({"x": image().numpy()}).keys() == {"image", "rest.0", "rest.1.0"}


def test_the_rounding_is_that_of_the_coarser_model():
    half = copy.deepcopy(net()).bfloat16()
    pair = TorchPair(net(), nn.Sequential(Cast(), half), (image(),))
    assert pair.rounding.store == 2.0**-8
    assert pair.reference.rounding == pair.candidate.rounding == pair.rounding


class Cast(nn.Module):
    def forward(self, x):
        return x.bfloat16()


def test_a_reference_that_does_not_run_is_refused_and_a_candidate_is_not():
    broken = nn.Sequential(net(), nn.Linear(3, 3))
    with pytest.raises(DwrError, match="Sequential does not run"):
        TorchPair(broken, net(), (image(),))
    pair = TorchPair(net(), broken, (image(),))
    assert list(pair.sites) == []
    with pytest.raises(TypeError):
        pair.candidate.run(pair.reference.call.examples)


@pytest.mark.parametrize("kind", PAIRS)
def test_nothing_of_the_two_models_changes(kind, tmp_path):
    models = build(kind)[:2]
    before = [state(model) for model in models]
    pair = TorchPair(*models, (image(),))
    list(pair.probes())
    pair.hybrid(pair.changed[:1]).run(pair.reference.call.examples)
    pair.save_hybrid(pair.changed[:1], tmp_path / "hybrid.pt")
    pair.candidate.exact(pair.reference.call.examples, np.random.default_rng(0))
    assert [state(model) for model in models] == before


# Half-changed models.


@pytest.mark.parametrize("kind", PAIRS)
def test_a_hybrid_with_all_changes_is_the_candidate_and_with_none_the_reference(kind):
    pair = pair_of(kind)
    feeds = pair.reference.call.examples
    for names, whole in ((pair.changed, pair.candidate), ((), pair.reference)):
        found, expected = pair.hybrid(names).run(feeds), whole.run(feeds)
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


BLAMED = {
    "module, precomputed": (lambda m: move(m.second.bias, 0), "second"),
    "module, linked": (lambda m: move(m.norm.bias, 0), "norm"),
    "graph, precomputed": (lambda m: move(m.up.weight, (0, 0, 0, 0)), "up"),
    "graph, linked": (lambda m: node(m, "conv2d").update_arg(4, 1), "conv2d"),
    "program": (lambda p: move(stored(p, "second.bias"), 0), "second_bias"),
    "holder": (lambda m: move(m[0].norm.weight, 0), "0.norm"),
}


@pytest.mark.parametrize("kind", BLAMED)
def test_the_change_that_is_to_blame_is_found(kind, tmp_path):
    change, name = BLAMED[kind]
    reference, candidate, _ = build(kind)
    change(candidate)
    if hasattr(candidate, "recompile"):
        candidate.recompile()
    pair = TorchPair(reference, candidate, (image(),))
    feeds = pair.reference.call.examples
    truth = pair.reference.exact(feeds).outputs["image"]

    def fails(names):
        found = pair.hybrid(names).run(feeds)["image"]
        return found.shape != truth.shape or bool(np.abs(found - truth).max() > 1e-4)

    assert len(pair.changed) > 1
    assert fails(pair.changed)
    assert not fails(())
    assert minimize(pair.changed, fails) == (name,)
    pair.save_hybrid([name], tmp_path / "hybrid.pt")
    loaded = torch.load(tmp_path / "hybrid.pt", weights_only=False)
    with torch.no_grad():
        found = loaded(image())["image"].numpy()
    assert np.array_equal(found, pair.hybrid([name]).run(feeds)["image"])


def test_a_module_is_replaced_without_what_it_holds():
    reference = net()
    candidate = copy.deepcopy(reference)
    move(candidate.weight, (0, 0, 0, 0))
    move(candidate.second.bias, 0)
    pair = TorchPair(reference, candidate, (image(),))
    assert set(pair.changed) == {"", "second"}
    for name, other in (("", "second.bias"), ("second", "weight")):
        tensors = dict(pair.hybrid([name]).model.named_parameters())
        changed = {
            key
            for key, value in reference.named_parameters()
            if not torch.equal(tensors[key], value)
        }
        assert changed == {"weight", "second.bias"} - {other}


def test_a_change_that_cannot_stand_alone_is_refused():
    reference = symbolic_trace(net())
    candidate = copy.deepcopy(reference)
    relu = node(candidate, "relu")
    with candidate.graph.inserting_after(relu):
        neg = candidate.graph.call_function(torch.neg, (relu,))
    node(candidate, "first_1").update_arg(0, neg)
    candidate.recompile()
    pair = TorchPair(reference, candidate, (image(),))
    assert set(pair.changed) == {"first_1", "neg"}
    for name in pair.changed:
        with pytest.raises(DwrError, match=f"the change of '{name}' cannot be made alone"):
            pair.hybrid([name])


def test_a_weight_that_is_laid_out_anew_comes_with_its_call():
    class LaidOut(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(C, 3))

        def forward(self, x):
            return nn.functional.conv1d(x, self.weight.unsqueeze(1), groups=C)

    x = torch.ones(1, C, 8)
    reference = symbolic_trace(LaidOut())
    for options in (PRECOMPUTED, LINKED):
        candidate = dwr.fx_rewrite(reference, **options)
        weight = getattr(candidate, "conv1d_dwr_weight", candidate.weight)
        move(weight, (1,) + (1,) * (weight.dim() - 1))
        pair = TorchPair(reference, candidate, (x,))
        assert (pair.proof.status, pair.changed) == ("refuted", ("conv1d",))
        feeds = pair.reference.call.examples
        found, expected = pair.hybrid(["conv1d"]).run(feeds), pair.candidate.run(feeds)
        assert found["output"].tobytes() == expected["output"].tobytes()


def test_a_model_that_cannot_be_pickled_is_told(tmp_path):
    reference = net()
    reference.call = lambda x: x
    pair = TorchPair(reference, dwr.fx_rewrite(reference, **PRECOMPUTED), (image(),))
    with pytest.raises(DwrError, match="cannot be pickled"):
        pair.save_hybrid(["first"], tmp_path / "hybrid.pt")
