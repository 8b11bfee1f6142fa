"""A network trained with linked weights learns what the original learns, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwr_rewrite as dwr
from dwr_rewrite.passes.fx import functional
from models import mobilenet_v1

STEPS, BATCH, SIZE, CLASSES = 200, 8, 32, 4
MIXED = {"forward": "blocks:4", "grad_input": "blocks:2", "grad_weight": "dense"}


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """MobileNetV1's first six blocks.

    All thirteen, this narrow and with so few images, are chaotic under batch normalization: torch's
    own curve moves by 1e-2 within twenty steps when its first weights are moved by 1e-15.
    """
    monkeypatch.setattr(mobilenet_v1, "BLOCKS", mobilenet_v1.BLOCKS[:6])


def small(dtype: torch.dtype, smooth: bool = False) -> nn.Module:
    """In float32 with an activation that has no kink.

    Rounding takes a few inputs of a ReLU to its other side, which changes a gradient by more than
    any multiple of the rounding.
    """
    torch.manual_seed(0)
    model = mobilenet_v1.MobileNetV1(width=0.25, classes=CLASSES).to(dtype).train()
    if smooth:
        for block in model.features:
            block[2] = nn.SiLU()
    return model


def linked(dtype: torch.dtype, smooth: bool = False) -> nn.Module:
    model = dwr.fx_rewrite(small(dtype, smooth), policy=MIXED)
    changed = [site for site in dwr.record(model) if site.changed]
    assert {site.weights for site in changed} == {"linked"}
    assert len(changed) == len(mobilenet_v1.BLOCKS)
    return model


def curve(model: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The loss of every step; the class of an image is its texture, under noise."""
    generator = torch.Generator().manual_seed(1)
    textures = torch.randn(CLASSES, 3, 4, 4, generator=generator, dtype=torch.float64)
    textures = textures.tile(1, 1, SIZE // 4, SIZE // 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    losses = []
    for _ in range(STEPS):
        y = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        noise = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model((textures[y] + noise).to(dtype)), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs() / a.abs()


def wrong(gradient, x, weight, geometry, width, which):
    """The gradient of the weight of the next channel."""
    found = right(gradient, x, weight, geometry, width, which)
    return found.roll(1, 0) if which == 1 else found


right = functional.gradient_of


def test_in_float64_the_curves_are_one(monkeypatch):
    expected = curve(small(torch.float64), torch.float64)
    assert expected[-20:].mean() < 0.5 * expected[:20].mean()  # it learns something
    assert apart(expected, curve(linked(torch.float64), torch.float64)).max() <= 1e-9
    monkeypatch.setattr(functional, "gradient_of", wrong)
    assert apart(expected, curve(linked(torch.float64), torch.float64)).max() > 1e-3


def disturb(model: nn.Module, share: float) -> nn.Module:
    """Adds noise, of at most ``share`` of the largest entry, to all that a training step computes.

    The output of every layer, the gradient of it, and the gradient of every parameter.
    """
    generator = torch.Generator().manual_seed(2)

    def move(t):
        noise = 2 * torch.rand(t.shape, generator=generator, dtype=t.dtype) - 1
        return t + share * t.detach().abs().max() * noise

    def after(_module, _inputs, y):
        y = move(y)
        y.register_hook(move)
        return y

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(after)
    for parameter in model.parameters():
        parameter.register_hook(move)
    return model


def test_in_float32_they_are_apart_as_far_as_rounding_takes_them(monkeypatch):
    """The bound is what rounding errors do to torch's own float64 run when they are put in by hand.

    A sum of n products is off by sqrt(n) u of the magnitudes, as roundings are of either sign
    (Higham and Mary 2019); the longest here are those of batch normalization and of the gradient of
    a weight. Both float32 runs are off, each in its own direction: twice that. One sample of noise
    is not the worst one: once more twice.
    """
    n, u = BATCH * (SIZE // 2) ** 2, torch.finfo(torch.float32).eps / 2
    reference = curve(small(torch.float64, smooth=True), torch.float64)
    moved = curve(disturb(small(torch.float64, smooth=True), n**0.5 * u), torch.float64)
    bound = 4 * apart(reference, moved).cummax(0).values
    assert bound.max() < 0.01  # it says something
    expected = curve(small(torch.float32, smooth=True), torch.float32)
    got = curve(linked(torch.float32, smooth=True), torch.float32)
    assert (apart(expected, got) <= bound).all()
    monkeypatch.setattr(functional, "gradient_of", wrong)
    got = curve(linked(torch.float32, smooth=True), torch.float32)
    assert (apart(expected, got) > bound).any()
