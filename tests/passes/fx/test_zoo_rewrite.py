"""Every network of the table through the torch pass: same outputs, gradients and checkpoints."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import dwr_rewrite as dwr
from models import coverage
from models.zoo import ZOO

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel", "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)  # fmt: skip

GROWTH = 2**24
"""What a hundred layers, each a sum of up to a thousand products with a condition of a hundred, may
make of one unit roundoff; a wrong filter moves the outputs by a good part of their size."""

FLOAT32 = {"hf_jamba", "hf_qwen3_next", "hf_gemma4_audio"}
"""They hold operators or casts that have no float64; they are shallow."""


def bound(tensor) -> float:
    return 2.0**-53 * GROWTH if tensor.dtype == torch.float64 else 2.0**-24 * 2**11


def close(actual, expected) -> None:
    scale = max(float(expected.abs().max()), 1e-12)
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= bound(expected) * scale


def outputs(module, inputs):
    torch.manual_seed(0)  # for dropout
    np.random.seed(0)  # noqa: NPY002  SpecAugment draws its masks from it
    result = module(*inputs)
    return result if isinstance(result, tuple) else (result,)


def step(module, inputs) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Outputs in training mode, and the gradients of their mean square."""
    module.zero_grad()
    results = outputs(module, inputs)
    sum(y.square().mean() for y in results).backward()
    return results, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def bits(module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in module.state_dict().items() if v.numel()}


@pytest.fixture
def network(request):
    net = ZOO[request.param].build()
    if request.param in FLOAT32:
        return net.module, net.inputs
    inputs = tuple(x.double() if x.is_floating_point() else x for x in net.inputs)
    return net.module.double(), inputs


@pytest.mark.parametrize("network", ZOO, indirect=True)
def test_precomputed_in_eval_mode(network):
    module, inputs = network
    before = bits(module)
    with torch.no_grad():
        expected = outputs(module, inputs)
        fast = dwr.fx_rewrite(module, inputs, policy="blocks:32")
        for actual, wanted in zip(outputs(fast, inputs), expected, strict=True):
            close(actual, wanted)
    assert dwr.record(fast), "every network has a depthwise convolution, rewritten or refused"
    again = dwr.fx_rewrite(fast, policy="blocks:32")
    assert not any(site.changed for site in dwr.record(again))
    assert bits(again) == bits(fast)
    back = dwr.restore(fast)
    assert bits(back) == bits(module) == before
    assert str(back) == str(module)


@pytest.mark.parametrize("network", ZOO, indirect=True)
def test_linked_in_training_mode(network):
    module, inputs = network
    module.train().requires_grad_()
    linked = dwr.fx_rewrite(copy.deepcopy(module), policy="blocks:32")
    before = bits(linked)
    assert before == bits(module)
    assert [n for n, _ in linked.named_parameters()] == [n for n, _ in module.named_parameters()]
    if not any(True for _ in module.parameters()):
        pytest.skip("it has buffers only, and so no gradients")
    (wanted, expected), (got, actual) = step(module, inputs), step(linked, inputs)
    for one, other in zip(got, wanted, strict=True):
        close(one.detach(), other.detach())
    assert actual.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        assert float((actual[name] - gradient).abs().max()) <= bound(gradient) * scale, name
    after = bits(linked)
    assert bits(dwr.restore(linked, inplace=True)) == after


@pytest.mark.parametrize("name", ZOO)
def test_no_depthwise_call_is_left_without_a_reason(name):
    """Counted below the dispatcher, on the rewritten model; the counter has its own twins."""
    row = coverage.cover(ZOO[name])
    assert row.faults == ""
    assert len(row.calls) == ZOO[name].depthwise
