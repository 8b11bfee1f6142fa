"""Modules in float64 whatever their code asks for, and the rounding errors that are put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.passes.fx.verify.float64 import float64
from dwr_rewrite.passes.fx.verify.rounding import RoundingErrors

EXACT = Rounding(accumulate=0.0, store=0.0, underflow=0.0)
SUMS = Rounding(accumulate=1e-3, store=0.0, underflow=0.0)
THIRD = torch.full((4,), 1 / 3)


def close(actual, expected, bound=1e-12):
    """float64 throughout: sums of at most a few hundred products of size 1, so gamma < 1e-13."""
    assert actual.dtype == expected.dtype == torch.float64
    assert actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= bound


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# What the code asks for, and the same by hand in double.


def casts(x):
    y = x.half().float() * 3
    return y.to(torch.bfloat16).type(torch.float32).to(torch.zeros(1)) + y.type_as(THIRD)


def casts_double(x):
    return x * 3 + x * 3


def factories(x):
    steps = torch.linspace(0, 1, 4) + torch.arange(4, dtype=torch.float16) / 7
    return x * steps + torch.full((4,), 0.1) + x.new_ones(4) + torch.zeros(4, dtype=torch.float32)


def factories_double(x):
    steps = torch.linspace(0, 1, 4, dtype=torch.float64) + torch.arange(4.0).double() / 7
    return x * steps + 0.1 + 1


def sums(x):
    return x.sum(1, dtype=torch.float32) + x.softmax(0, dtype=torch.float16).mean(1)


def sums_double(x):
    return x.sum(1) + x.softmax(0).mean(1)


def in_place(x):
    total = torch.empty(x.shape, dtype=torch.float32)
    total.copy_(x)
    total += x
    torch.mul(total, 2, out=total)
    return total.sigmoid_()


def in_place_double(x):
    return (4 * x).sigmoid()


def into_constant(x):
    buffer = THIRD.clone()
    buffer[:2] = x[0, :2]
    view = buffer[1:]
    view += 1
    return buffer


def into_constant_double(x):
    third = THIRD.double()
    return torch.cat([x[0, :1], x[0, 1:2] + 1, third[2:] + 1])


def autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(x, THIRD.repeat(2, 1)).float()


def autocast_double(x):
    return F.linear(x, THIRD.double().repeat(2, 1))


def attention(x):
    q = x.reshape(1, 2, 3, 4)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def attention_double(x):
    q = x.reshape(1, 2, 3, 4)
    scores = (q @ q.mT / 2).masked_fill(~torch.ones(3, 3, dtype=torch.bool).tril(), float("-inf"))
    return scores.softmax(-1) @ q


def condition(x):
    return torch.cond(x.sum() > 0, lambda t: t.half().float() * 3, lambda t: t * 5, (x,))


def condition_double(x):
    return x * (3 if x.sum() > 0 else 5)


@torch.inference_mode()
def inference(x):
    return F.linear(x.half(), THIRD.repeat(2, 1).half())


def inference_double(x):
    return F.linear(x, THIRD.double().repeat(2, 1))


PROGRAMS = {
    f.__name__: (f, double)
    for f, double in [
        (casts, casts_double), (factories, factories_double), (sums, sums_double),
        (in_place, in_place_double), (into_constant, into_constant_double),
        (autocast, autocast_double), (attention, attention_double), (condition, condition_double),
        (inference, inference_double),
    ]
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_what_a_double_program_gives(name):
    program, double = PROGRAMS[name]
    x = draw(6, 4)
    before = x.clone()
    with torch.no_grad(), float64() as mode:
        found = program(x.double())
    close(found, double(x.double()))
    assert mode.single_precision == set()
    assert torch.equal(x, before)
    assert torch.equal(THIRD, torch.full((4,), 1 / 3))


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_it_they_round(name):
    """So the test above would notice an operator that is not in float64."""
    program, double = PROGRAMS[name]
    x = draw(6, 4)
    with torch.no_grad():
        error = (program(x).double() - double(x.double())).abs().max()
    assert error > 1e-9 or name in ("into_constant", "attention")


def test_what_is_narrow_from_outside_is_widened_once():
    constant = torch.ones(3)
    with torch.no_grad(), float64():
        constant.mul_(1 / 3)
        seen = constant + 0
    assert torch.equal(constant, torch.ones(3))  # the stand-in was written
    close(seen, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_random_numbers_are_those_of_the_type_asked_for():
    torch.manual_seed(0)
    expected = torch.rand(5), torch.randn(5, dtype=torch.float32)
    torch.manual_seed(0)
    with float64():
        found = torch.rand(5), torch.randn(5, dtype=torch.float32)
    for one, other in zip(found, expected, strict=True):
        close(one, other.double(), 0)


# Operators without a float64 kernel.


@torch.library.custom_op("dwr_test::third", mutates_args=())
def third(x: torch.Tensor) -> torch.Tensor:
    if x.dtype == torch.float64:
        raise NotImplementedError("no kernel")
    return x / 3


@torch.library.custom_op("dwr_test::add_third", mutates_args=("x",))
def add_third(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.dtype == torch.float64:
        raise RuntimeError('"add_third" not implemented for Double')
    x += y / 3


@torch.library.custom_op("dwr_test::broken", mutates_args=())
def broken(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("shapes do not fit")


def test_an_operator_without_a_kernel_runs_in_float32_and_is_named():
    x = draw(5)
    with torch.no_grad(), float64() as mode:
        found = third(x.double()) * 1
    close(found, (x / 3).double(), 0)
    assert mode.single_precision == {"dwr_test::third"}


def test_one_that_writes_writes_into_the_wide_tensor_only():
    x, y = draw(5).double() / 3, draw(5, seed=1).double() / 3
    kept = y.clone()
    with torch.no_grad(), float64() as mode:
        add_third(x, y)
    assert mode.single_precision == {"dwr_test::add_third"}
    close(x, draw(5).double() / 3 + y / 3, 1e-6)
    assert torch.equal(y, kept)  # it was only read: still in float64


def test_what_fails_in_float32_too_fails_with_its_own_words():
    with torch.no_grad(), float64(), pytest.raises(RuntimeError, match="shapes do not fit"):
        broken(draw(5).double())


# Rounding errors.


class Everything(nn.Module):
    """Every operator whose steps round one by one, and sums of every kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=3)
        self.batch, self.group, self.layer = nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.attention = nn.TransformerEncoderLayer(6, 2, 12, dropout=0, batch_first=True)
        self.lstm, self.out = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x):
        y = self.group(self.batch(self.up(self.conv(x))))
        y = F.interpolate(y, scale_factor=1.5, mode="bilinear")
        y = F.avg_pool2d(F.gelu(F.adaptive_avg_pool2d(y, 4)), 2)
        z = self.attention(self.rms(self.layer(y.flatten(2).mT)))
        z = self.lstm(z)[0]
        spectrum = torch.fft.rfft(z, dim=1)
        return (
            F.log_softmax(self.out(z).mean(1), -1), z.std(1), z.norm(dim=-1), z.logsumexp(1),
            z.cumsum(1), spectrum.abs(), torch.var_mean(z, 2)[0],
        )  # fmt: skip


def everything(training):
    torch.manual_seed(0)
    return Everything().double().train(training)


def outputs(model, errors, x):
    with float64(errors):
        if errors is not None:
            errors.reach([x, *model.parameters()])
        return model(x)


def learned(model, errors, x):
    """Outputs, gradients and buffers of a training step."""
    x = x.clone().requires_grad_()
    with float64(errors):
        if errors is not None:
            errors.reach([x, *model.parameters()])
        results = model(x)
        sum((y * y).sum() for y in results).backward()
    gradients = [p.grad for p in model.parameters()]
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    return [*(y.detach() for y in results), x.grad, *gradients, *buffers]


@pytest.mark.parametrize("training", [False, True])
def test_errors_of_size_zero_change_nothing(training):
    """The steps that stand for a compound operator compute what the operator does."""
    x = draw(2, 3, 5, 5).double()
    run = learned if training else outputs
    truth = run(everything(training), None, x)
    found = run(everything(training), RoundingErrors(EXACT, np.random.default_rng(0)), x)
    assert len(truth) == len(found) > 5
    for one, other in zip(found, truth, strict=True):
        close(one, other, 1e-10)  # a few ten layers, gradients of up to a few hundred


@pytest.mark.parametrize("training", [False, True])
def test_they_move_every_output_and_a_seed_repeats_them(training):
    x = draw(2, 3, 5, 5).double()
    run = learned if training else outputs
    truth = run(everything(training), None, x)
    one, two, other = (
        run(everything(training), RoundingErrors(Rounding(), np.random.default_rng(seed)), x)
        for seed in (1, 1, 2)
    )
    for a, b, c, exact in zip(one, two, other, truth, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        moved = float((a - exact).detach().abs().max())
        assert 0 < moved <= 1e-2 * max(1, float(exact.detach().abs().max()))


PAD = (1, 1, 2, 1)


@pytest.mark.parametrize("whole", [False, True])
def test_the_sums_of_a_composite_operator_are_moved(whole):
    x, errors = draw(6, 4).double(), RoundingErrors(SUMS, np.random.default_rng(0))
    with torch.inference_mode(whole), torch.no_grad(), float64(errors):
        moved = F.linear(x, x)
    assert float((moved - x @ x.T).abs().max()) > 1e-4


def test_a_layer_that_torch_fuses_comes_in_parts():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double().eval()
    x, errors = draw(1, 3, 4).double(), RoundingErrors(SUMS, np.random.default_rng(0))
    with torch.no_grad(), float64(errors):
        assert not torch.backends.mha.get_fastpath_enabled()
        moved = layer(x)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        assert float((moved - layer(x)).abs().max()) > 1e-4


CHOICES = {
    "relu": F.relu,
    "relu_": lambda x: F.relu_(x.clone()),
    "hardtanh": F.relu6,
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "maximum": lambda x: torch.maximum(x, -x).amax(1),
    "cat": lambda x: torch.cat([x, x.flip(1), torch.stack([x, x])[0]]),
    "index": lambda x: x[:, [0, 0]].index_select(1, torch.tensor([1])),
    "gather": lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.long)),
    "topk": lambda x: x.topk(2, dim=1).values.sort(2).values,
    "pad": lambda x: F.pad(F.pad(F.pad(x, PAD), PAD, "reflect"), PAD, "replicate"),
    "where": lambda x: torch.where(x > 0, x, 0.0).masked_fill(x > 1, -1.0).tril(),
    "views": lambda x: x.mT.reshape(2, -1).expand(3, 2, -1).unfold(1, 2, 1).squeeze().contiguous(),
    "shuffle": lambda x: F.pixel_shuffle(x, 2).repeat(1, 2, 1, 1).roll(1, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "round": lambda x: torch.stack([x.floor(), x.ceil(), x.round(), x.trunc(), x.sign()]),
    "embedding": lambda x: F.embedding(torch.tensor([0, 1]), x[0, 0]),
    "cast": lambda x: x.half().float(),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_what_only_chooses_values_is_not_moved(name):
    x, errors = draw(2, 4, 4, 4).double(), RoundingErrors(Rounding(), np.random.default_rng(0))
    errors.reach([x])
    with torch.no_grad(), float64(errors):
        found = CHOICES[name](x)
    with torch.no_grad(), float64():
        assert torch.equal(found, CHOICES[name](x))


def test_a_constant_of_one_axis_is_not_moved_but_an_input_is():
    errors = RoundingErrors(Rounding(), np.random.default_rng(0))
    x = draw(50).double()
    errors.reach([x])
    with torch.no_grad(), float64(errors):
        positions = torch.arange(50) * 0.5 * 2
        moved = x * 1.5
        later = (moved + 0)[:3] * 2
    assert torch.equal(positions, torch.arange(50).double())
    assert not torch.equal(moved, x * 1.5)
    assert not torch.equal(later, 2 * moved[:3])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_no_value_changes_its_sign_or_becomes_zero(dtype):
    """Else a root of a sum of squares, or a quotient by one, would stop being a number."""
    x = torch.tensor([[0.0, 1e-39, -1e-7, 6e-5, 1.0, -3e38]], dtype=torch.float64)
    for seed in range(5):
        errors = RoundingErrors(Rounding.of([dtype]), np.random.default_rng(seed))
        with torch.no_grad(), float64(errors):
            y = x * 1.0
            norm, root = torch.zeros(2, 3).square().sum(1).sqrt(), (x * x).sum(1).sqrt()
            mask = torch.full((1, 2), float("-inf"), dtype=torch.float64) + 1.0
        assert torch.equal(y.sign(), x.sign())
        assert torch.equal(norm, torch.zeros(2, dtype=torch.float64))
        assert root.isfinite().all()
        assert (mask == float("-inf")).all()
