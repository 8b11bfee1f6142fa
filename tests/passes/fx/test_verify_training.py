"""Gradients and a short training run of two models, held against a float64 one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import dwr_rewrite as dwr
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx import functional
from dwr_rewrite.passes.fx.verify import learner, training
from dwr_rewrite.passes.fx.verify.pair import TorchPair
from dwr_rewrite.passes.fx.verify.training import train
from tests.passes.fx.test_verify_subject import C, image, net, program, state

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # torch, as it copies a graph
)

LINKED = {"policy": "blocks:2", "weights": "linked"}
PRECOMPUTED = {"policy": "blocks:2", "weights": "precomputed"}


class Smooth(nn.Module):
    """Without a kink, at which rounding decides whether a gradient passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(C, C, 3, padding=1, groups=C)
        self.norm, self.drop = nn.BatchNorm2d(C), nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(C, 2 * C, 2, stride=2, groups=C)
        self.scale = nn.Embedding(3, 1)

    def forward(self, x, which=None):
        y = self.first(x)
        y = self.up(self.drop(torch.nn.functional.silu(self.norm(y + self.first(y)))))
        return y if which is None else y * self.scale(which).sum()


def smooth(dtype=torch.float32):
    return Smooth().to(dtype)


def step(model, x, cotangent):
    """Gradients by plain autograd, in training mode without dropout."""
    model = copy.deepcopy(model).train()
    model.drop.eval()
    x = x.clone().requires_grad_()
    model(x).backward(cotangent)
    return {"x": x.grad, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


def trained(reference, candidate, x=None, steps=3, seed=0):
    pair = TorchPair(reference, candidate, (image() if x is None else x,))
    return train(pair, pair.reference.call.examples, steps, seed)


# What is compared.


def test_the_figures_are_those_of_plain_autograd():
    x = image()
    found = trained(smooth(), dwr.fx_rewrite(smooth(), **LINKED), x)
    assert found.passed
    cotangent = training._signs(0)("output", (2, 2 * C, 16, 16))
    assert cotangent.abs().unique().numel() == 1
    assert float(cotangent.square().sum()) == 1  # 4096 elements
    truth = step(smooth(torch.float64), x.double(), cotangent)
    plain = step(smooth(), x, cotangent.float())
    names = {"first": "first.weight", "up": "up.weight"}
    told = {(g.direction, g.name): g for g in found.gradients}
    for (direction, name), gradient in told.items():
        if direction != "grad_input":
            path = names.get(name, name)
            exact = truth[path]
            assert gradient.scale == pytest.approx(float(exact.abs().max()), rel=1e-9, abs=1e-12)
            error = float((plain[path].double() - exact).abs().max())
            assert gradient.reference.largest == pytest.approx(error, rel=1e-3, abs=1e-12)
    expected = {("input", "x"), ("grad_weight", "first"), ("grad_weight", "up"),
                ("grad_input", "first"), ("grad_input", "first#2"), ("grad_input", "up"),
                ("parameter", "first.bias"), ("parameter", "norm.weight"),
                ("parameter", "norm.bias"), ("parameter", "up.bias")}  # fmt: skip
    assert told.keys() == expected


def test_the_input_gradient_of_a_site_is_that_of_the_convolution_alone():
    """Its input is read by others too: the sum of both gradients is not the convolution's."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv1d(C, C, 1, groups=C, bias=False)
            self.conv.weight.data.fill_(3.0)

        def forward(self, x):
            return self.conv(x) + 100 * x

    x = torch.ones(1, C, 4)
    found = trained(Twice(), Twice(), x)  # a 1x1 kernel is no site
    assert {g.direction for g in found.gradients} == {"input", "parameter"}
    model = Twice()
    model.conv = nn.Conv1d(C, C, 3, padding=1, groups=C, bias=False)
    found = trained(model, dwr.fx_rewrite(model, **LINKED), x)
    cotangent = training._signs(0)("output", (1, C, 4)).float()
    alone = torch.nn.grad.conv1d_input(
        x.shape, model.conv.weight.detach(), cotangent, padding=1, groups=C
    )
    (gradient,) = (g for g in found.gradients if g.direction == "grad_input")
    assert gradient.scale == pytest.approx(float(alone.abs().max()), rel=1e-6)


MODELS = {
    "module": (smooth, LINKED),
    "graph": (lambda: symbolic_trace(net()), LINKED),
    "program": (program, PRECOMPUTED),
    "precomputed": (smooth, PRECOMPUTED),
    "eval mode": (lambda: smooth().eval().requires_grad_(False), LINKED),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_the_pass_makes_learns_the_same_and_nothing_changes(kind):
    build, options = MODELS[kind]
    reference = build()
    candidate = dwr.fx_rewrite(reference, **options)
    before = [state(model) for model in (reference, candidate)]
    found = trained(reference, candidate)
    assert found.passed, found.failures
    assert [state(model) for model in (reference, candidate)] == before
    sites = {g.name for g in found.gradients if g.direction == "grad_weight"}
    assert sites == {s.name for s in dwr.record(candidate) if s.changed}
    assert len(found.truth) == len(found.reference) == len(found.tolerance) == 3
    assert found.truth[0] > found.truth[1] > found.truth[2]  # it learns
    for loss, exact in zip(found.reference, found.truth, strict=True):
        assert abs(loss - exact) <= 1e-4 * exact
    assert all(0 < t < 1e-2 * exact for t, exact in zip(found.tolerance, found.truth, strict=True))
    told = [g for g in found.gradients if g.tolerance < g.scale]
    assert len(told) >= len(found.gradients) - 2  # a bias before a batch norm has no gradient
    assert any("precomputed weights" in n for n in found.notes) is (options is PRECOMPUTED)
    assert ("frozen parameters learn here too" in found.notes) is (kind == "eval mode")


def test_the_notes_name_what_a_reader_has_to_know():
    found = trained(smooth(), dwr.fx_rewrite(smooth(), **LINKED))
    assert "dropout is off" in found.notes
    other = smooth()
    other.up.bias = None
    (note,) = (n for n in trained(smooth(), other).notes if "counterpart" in n)
    assert note == "the candidate has no counterpart of: parameter of 'up.bias'"


def test_a_seed_repeats_it():
    candidate = dwr.fx_rewrite(smooth(), **LINKED)
    one, two, other = (trained(smooth(), candidate, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits(dtype):
    reference = smooth(getattr(torch, dtype))
    x = image().to(getattr(torch, dtype))
    found = trained(reference, dwr.fx_rewrite(reference, **LINKED), x)
    assert found.passed, found.failures
    assert max(g.reference.largest / g.scale for g in found.gradients if g.scale > 1e-3) > 1e-4


def test_whole_numbers_as_inputs():
    reference = smooth()
    pair = TorchPair(
        reference, dwr.fx_rewrite(reference, **LINKED), (image(), torch.tensor([1, 2]))
    )
    found = train(pair, pair.reference.call.examples, 2)
    assert found.passed
    told = {(g.direction, g.name) for g in found.gradients}
    assert ("input", "x") in told
    assert ("input", "which") not in told
    assert ("parameter", "scale.weight") in told


# Twins.


def roll(gradient, x, weight, geometry, width, which):
    found = RIGHT(gradient, x, weight, geometry, width, which)
    return found.roll(1, 1) if which == 0 else found


def roll_weight(gradient, x, weight, geometry, width, which):
    found = RIGHT(gradient, x, weight, geometry, width, which)
    return found.roll(1, 0) if which == 1 else found


RIGHT = functional.gradient_of


@pytest.mark.parametrize(
    ("wrong", "direction"), [(roll, "grad_input"), (roll_weight, "grad_weight")]
)
def test_a_wrong_gradient_is_named(wrong, direction, monkeypatch):
    """The outputs are right: inference would not tell."""
    reference = smooth()
    candidate = dwr.fx_rewrite(reference, **LINKED)
    monkeypatch.setattr(functional, "gradient_of", wrong)
    found = trained(reference, candidate)
    assert not found.passed
    failed = {(g.direction, g.name) for g in found.gradients if not g.passed}
    assert {(direction, "first"), (direction, "up")} <= failed
    assert any(f"{direction} of 'up': its error is" in text for text in found.failures)
    assert any("the training loss is" in text for text in found.failures)


def change(model, name):
    with torch.no_grad():
        match name:
            case "weight":
                model.up.weight[1, 0, 0, 0] += 1e-3
            case "nan":
                model.up.weight[0, 0, 0, 0] = float("nan")
            case "norm":
                model.norm.weight[2] += 1e-3


@pytest.mark.parametrize("name", ["weight", "nan", "norm"])
def test_a_wrong_model_does_not_learn_the_same(name):
    reference = smooth()
    candidate = dwr.fx_rewrite(reference, **LINKED)
    change(candidate, name)
    found = trained(reference, candidate)
    assert not found.passed
    failed = {g.name for g in found.gradients if not g.passed}
    assert failed & {"up", "first", "x"}


def test_a_bias_before_a_batch_norm_is_nothing_to_learn_from():
    """The means take it away again: the same function in training mode."""
    reference = nn.Sequential(nn.Conv2d(C, C, 3, groups=C), nn.BatchNorm2d(C), nn.SiLU())
    candidate = copy.deepcopy(reference)
    candidate[0].bias.data += 0.1
    assert trained(reference, candidate).passed


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight


def test_gradients_of_another_shape_fail():
    reference = smooth()
    candidate = copy.deepcopy(reference)
    candidate.norm = Scale()
    found = trained(reference, candidate)
    (gradient,) = (g for g in found.gradients if g.name == "norm.weight")
    assert (gradient.passed, gradient.candidate.largest) == (False, float("inf"))


def test_a_rate_that_is_too_fast_moves_the_curves_apart(monkeypatch):
    """So the tolerance of the curves is not just wide."""
    reference = smooth()
    candidate = dwr.fx_rewrite(reference, **LINKED)
    runs = []
    right = learner.Learner.losses

    def faster(self, draw, steps, rate=None):
        runs.append(self)
        losses, rate = right(self, draw, steps, rate)
        if self.subject.model is candidate:
            losses = right(learner.Learner(self.subject, self.feeds, self.places), draw, steps,
                           1.001 * rate)[0]  # fmt: skip
        return losses, rate

    monkeypatch.setattr(learner.Learner, "losses", faster)
    found = trained(reference, candidate)
    assert len(runs) == 3 + training.SAMPLES
    assert all(g.passed for g in found.gradients)
    assert not found.passed
    assert "the training loss is" in found.failures[0]


# What cannot be trained.


class Sums(nn.Module):
    def forward(self, x):
        return x.detach() * 2


def test_a_model_that_learns_nothing_is_refused():
    with pytest.raises(DwrError, match=r"the reference in float64 cannot be trained .*no output"):
        trained(Sums(), Sums())


def test_nor_a_candidate_that_raises():
    class Raises(Smooth):
        def forward(self, x, which=None):
            if self.training:
                raise ValueError("only for inference")
            return super().forward(x)

    candidate = Raises()
    candidate.load_state_dict(smooth().state_dict())
    with pytest.raises(DwrError, match=r"the candidate cannot be trained .*: only for inference"):
        trained(smooth(), candidate)


def test_without_parameters_there_are_gradients_of_the_input_only():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.ones(C, 1, 3, 3))

        def forward(self, x):
            return nn.functional.conv2d(x, self.weight, groups=C)

    found = trained(Fixed(), Fixed())
    assert [(g.direction, g.name) for g in found.gradients] == [("input", "x")]
    assert found.passed
    assert found.truth == ()
    assert "nothing learns: there was no training run" in found.notes


def test_a_forward_that_writes_its_input_has_no_gradient_there():
    class Writes(Smooth):
        def forward(self, x):
            return super().forward(x.mul_(2))

    found = trained(Writes(), dwr.fx_rewrite(Writes(), **LINKED))
    assert found.passed
    assert "input" not in {g.direction for g in found.gradients}
    assert any("gradients of the inputs were not compared" in note for note in found.notes)


def test_gradients_that_rounding_moves_by_their_size_are_counted():
    """The mean over a batch of one position is what a batch norm takes away: nothing is left."""
    reference = nn.Sequential(
        nn.Conv2d(C, C, 3, groups=C), nn.BatchNorm2d(C), nn.AdaptiveAvgPool2d(1)
    )
    found = trained(reference, copy.deepcopy(reference), image(batch=1))
    assert any(note.endswith("by as much as they are") for note in found.notes)
    assert np.isfinite([g.tolerance for g in found.gradients]).all()
