"""Two torch models compared without running them: what is proved, refuted, and what differs."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.utils import parametrizations

import dwr_rewrite as dwr
from dwr_rewrite.passes.fx.verify.compare import compare_modules
from dwr_rewrite.passes.fx.verify.sites import as_module
from tests.passes.fx.test_verify_subject import net, program

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # torch, as it copies a graph
)

PRECOMPUTED = {"policy": "blocks:2", "weights": "precomputed"}
LINKED = {"policy": "dense", "weights": "linked"}

MODULES = ["first", "second", "up"]
NODES = ["conv2d_2", "conv_transpose2d", "conv2d_3"]  # the first two share their weight

PAIRS = {
    "module, precomputed": (net, PRECOMPUTED, MODULES),
    "module, linked": (net, LINKED, MODULES),
    "graph, precomputed": (lambda: symbolic_trace(net()), PRECOMPUTED, [*MODULES, "conv2d"]),
    "graph, linked": (lambda: symbolic_trace(net()), LINKED, [*MODULES, "conv2d"]),
    "program": (program, PRECOMPUTED, NODES),
    "holder": (lambda: nn.Sequential(symbolic_trace(net())), PRECOMPUTED,
               [f"0.{name}" for name in (*MODULES, "conv2d")]),
}  # fmt: skip


def build(kind):
    """A model, its rewritten form and the names of the sites."""
    model, options, names = PAIRS[kind]
    reference = model()
    return reference, dwr.fx_rewrite(reference, **options), names


def findings(reference, candidate):
    return compare_modules(as_module(reference), as_module(candidate))


@pytest.mark.parametrize("kind", PAIRS)
def test_what_the_pass_makes_is_proved(kind):
    reference, candidate, names = build(kind)
    found = findings(reference, candidate)
    assert found.proof.status == "proved"
    assert found.proof.differences == ()
    assert {lemma.site for lemma in found.proof.lemmas} == set(names)
    assert found.changed == tuple(lemma.site for lemma in found.proof.lemmas)
    assert found.identical > 0
    options = PAIRS[kind][1]
    assert {lemma.weights for lemma in found.proof.lemmas} == {options["weights"]}
    assert {lemma.form for lemma in found.proof.lemmas} == {options["policy"]}


@pytest.mark.parametrize("kind", PAIRS)
def test_and_so_is_what_it_undoes(kind):
    reference, candidate, _ = build(kind)
    back = dwr.restore(candidate)
    found = findings(candidate, back).proof
    assert (found.status, {lemma.form for lemma in found.lemmas}) == ("proved", {"keep"})
    found = findings(reference, back).proof
    assert (found.status, found.lemmas, found.differences) == ("proved", (), ())


def test_two_forms_of_one_model_are_proved():
    reference = net()
    one, other = (dwr.fx_rewrite(reference, **options) for options in (PRECOMPUTED, LINKED))
    found = findings(one, other).proof
    assert (found.status, len(found.lemmas)) == ("proved", len(MODULES))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: parametrizations.weight_norm(m.first),
        lambda m: parametrizations.spectral_norm(m.second),
    ],
)
def test_a_computed_weight_is_proved_by_what_computes_it(change):
    reference = net()
    change(reference)
    candidate = dwr.fx_rewrite(reference, **LINKED)
    assert findings(reference, candidate).proof.status == "proved"
    for parameter in candidate.parameters():
        with torch.no_grad():
            parameter.add_(1e-3)
    assert findings(reference, candidate).proof.status != "proved"


def move(tensor, index, value=1e-3):
    with torch.no_grad():
        tensor[index] += value


def swap(module, name, other):
    setattr(module, name, other)


REFUTED = {
    "a wrong weight": (
        lambda m: move(m.second.weight, (5, 0, 1, 2)),
        "second", "from input channel 2 to output channel 5 it is .* at .1, 2., .* .1 of 72 el",
    ),
    "the next number up": (
        lambda m: move(m.first.weight, (1, 1, 0, 0), m.first.weight[1, 1, 0, 0] * 2**-23),
        "first", "from input channel 1 to output channel 1",
    ),
    "a leak": (
        lambda m: move(m.second.weight, (4, 1, 0, 0)),
        "second", "not zero off the diagonal: input channel 3 takes part in output channel 4",
    ),
    "a leak of minus zero": (
        lambda m: swap(m.second.weight, "data", torch.where(
            m.second.weight == 0, -0.0, m.second.weight)),
        "second", "not zero off the diagonal",
    ),
    "a transposed leak": (
        lambda m: move(m.up.weight, (7, 0, 1, 1)),
        "up", "input channel 7 takes part in output channel 6",
    ),
    "a transposed wrong weight": (
        lambda m: move(m.up.weight, (7, 1, 1, 1)),
        "up", "from input channel 7 to output channel 7",
    ),
    "a NaN": (
        lambda m: move(m.first.weight, (0, 0, 0, 0), float("nan")),
        "first", "it is nan at .0, 0.",
    ),
    "other groups": (lambda m: swap(m.first, "groups", 1), "first", r"in 1 groups is not .* in 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUTED)
def test_a_wrong_weight_is_refuted_and_named(name):
    change, site, words = REFUTED[name]
    reference = net()
    candidate = dwr.fx_rewrite(reference, **PRECOMPUTED)
    change(candidate)
    proof = findings(reference, candidate).proof
    (lemma,) = (lemma for lemma in proof.lemmas if lemma.status != "proved")
    assert (proof.status, lemma.site, lemma.status) == ("refuted", site, "refuted")
    assert re.search(words, lemma.detail), lemma.detail


def change_linked(module, widths):
    undo = copy.copy(module._dwr_undo)
    object.__setattr__(undo, "forms", undo.forms._replace(**widths))
    module._dwr_undo = undo


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: move(m.first.weight, (3, 0, 0, 0)), "to output channel 3"),
        (lambda m: change_linked(m.first, {"grad_input": 3}), "4 channels are not divided"),
    ],
)
def test_a_wrong_linked_weight_is_refuted(change, words):
    reference = net()
    candidate = dwr.fx_rewrite(reference, **LINKED)
    change(candidate)
    proof = findings(reference, candidate).proof
    assert proof.status == "refuted"
    assert words in next(lemma for lemma in proof.lemmas if lemma.site == "first").detail


class Options:
    def __init__(self, size):
        self.size = size


DIFFERENCES = {
    "padding": (lambda m: swap(m.first, "padding", (2, 2)),
                "padding of 'first' is (1, 1) and became (2, 2)"),
    "stride": (lambda m: swap(m.second, "stride", (2, 1)),
               "stride of 'second' is (1, 1) and became (2, 1)"),
    "bias": (lambda m: move(m.second.bias, 3), "'second.bias'[3] is"),
    "no bias": (lambda m: swap(m.first, "bias", None), "'first.bias' is gone"),
    "statistics": (lambda m: move(m.norm.running_var, 2), "'norm.running_var'[2] is"),
    "epsilon": (lambda m: swap(m.norm, "eps", 1e-3), "eps of 'norm' is 1e-05 and became 0.001"),
    "own parameter": (lambda m: move(m.weight, (0, 0, 0, 0)), "'weight'[0, 0, 0, 0] is"),
    "shape": (lambda m: swap(m, "weight", nn.Parameter(torch.ones(8, 1, 1, 1))),
              "'weight' is float32 [8, 1, 3, 3] and became float32 [8, 1, 1, 1]"),
    "type": (lambda m: m.norm.double(), "'norm.weight' is float32 [4] and became float64 [4]"),
    "class": (lambda m: swap(m, "norm", nn.Identity()), "'norm' is BatchNorm2d and became Ident"),
    "child": (lambda m: m.norm.add_module("more", nn.ReLU()), "what 'norm' holds is [] and became"),
    "attribute": (lambda m: swap(m, "extra", 7), "extra of the model is Missing and became 7"),
    "hook": (lambda m: m.norm.register_forward_hook(print), "forward_hooks of 'norm' is []"),
    "object": (lambda m: swap(m, "options", Options(2)), "options of the model is"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_any_other_difference_is_a_sentence(name):
    change, words = DIFFERENCES[name]
    reference = net()
    reference.options = Options(1)
    candidate = dwr.fx_rewrite(reference, **PRECOMPUTED)
    change(candidate)
    proof = findings(reference, candidate).proof
    assert proof.status == "partial"
    assert any(words in sentence for sentence in proof.differences), proof.differences


def test_what_does_not_change_the_function_is_no_difference():
    reference = net().train()
    reference.options, reference.both = Options(1), [Options(2), {"a": torch.ones(2)}]
    candidate = dwr.fx_rewrite(reference, **PRECOMPUTED).eval().requires_grad_(False)
    reference.zero_grad()
    assert findings(reference, candidate).proof.status == "proved"
    candidate.both[1]["a"][0] = 2
    assert findings(reference, candidate).proof.status == "partial"


def test_a_tied_module_that_came_apart_is_seen():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.Linear(2, 2)

        def forward(self, x):
            return self.two(self.one(x))

    reference = Tied()
    candidate = copy.deepcopy(reference)
    assert findings(reference, candidate).proof.status == "proved"
    candidate.two = nn.Linear(2, 2)
    assert findings(reference, candidate).changed == ("two",)


def node(model, name):
    graph = model.graph if isinstance(model, nn.Module) else model.graph_module.graph
    return next(n for n in graph.nodes if n.name == name)


def stored(model, name):
    """A tensor that a program holds."""
    return model.state_dict[name]


PROGRAMS = {
    "weight": (lambda p: move(stored(p, "second.weight"), (0, 0, 0, 0)), "conv2d_2", "refuted"),
    "leak": (lambda p: move(stored(p, "weight"), (7, 0, 0, 0)), "conv2d_3", "refuted"),
    "padding": (lambda p: node(p, "conv2d_3").update_arg(4, [1, 1]), "conv2d_3", "partial"),
    "stride": (lambda p: node(p, "conv2d_2").update_arg(3, [2, 2]), "conv2d_2", "partial"),
    "bias": (lambda p: move(stored(p, "second.bias"), 0), "second_bias", "partial"),
    "input": (lambda p: node(p, "conv2d_2").update_arg(0, node(p, "relu")), "conv2d_2", "partial"),
    "other operator": (lambda p: swap(node(p, "relu"), "target", torch.ops.aten.sigmoid.default),
                       "relu", "partial"),
    "other argument": (lambda p: node(p, "mean").update_arg(1, [2]), "mean", "partial"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_changed_program_is_told_by_its_node(name):
    change, place, status = PROGRAMS[name]
    reference = program()
    candidate = dwr.fx_rewrite(reference, **PRECOMPUTED)
    change(candidate)
    candidate.graph_module.recompile()
    found = findings(reference, candidate)
    assert found.proof.status == status
    told = [lemma.site for lemma in found.proof.lemmas if lemma.status != "proved"]
    assert place in (*told, *found.differences)


def test_nodes_that_are_new_gone_or_in_another_order():
    reference = symbolic_trace(net())
    candidate = copy.deepcopy(reference)
    with candidate.graph.inserting_after(node(candidate, "relu")):
        candidate.graph.call_function(torch.neg, (node(candidate, "relu"),))
    found = findings(reference, candidate)
    assert found.proof.differences == ("the node 'neg' is new",)
    assert findings(candidate, reference).proof.differences == ("the node 'neg' is gone",)
    other = copy.deepcopy(reference)
    node(other, "mean").append(node(other, "argmax"))
    node(other, "argmax").append(node(other, "mean"))
    (sentence,) = findings(reference, other).proof.differences
    assert sentence == "the model runs its nodes in another order"
