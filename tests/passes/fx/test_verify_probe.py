"""Sites by themselves: no channel leaks into another, and where a NaN goes."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import export

import dwr_rewrite as dwr
from dwr_rewrite.equivalence.evidence import Reach
from dwr_rewrite.passes.fx.verify import probe
from dwr_rewrite.passes.fx.verify.pair import TorchPair
from tests.passes.fx.test_verify_proof import (
    PAIRS,
    build,
    findings,
    move,
    node,
)
from tests.passes.fx.test_verify_subject import image

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # torch, as it copies a graph
)


@pytest.mark.parametrize("kind", PAIRS)
def test_no_channel_leaks_and_a_nan_stays_in_its_group(kind):
    reference, candidate, _ = build(kind)
    found = {p.site: p for p in TorchPair(reference, candidate, (image(),)).probes()}
    assert found.keys() == set(PAIRS[kind][2])
    for name, seen in found.items():
        assert (seen.probed, seen.leaking, seen.leaks) == (seen.channels, 0, ())
        m = seen.outputs // seen.channels
        width = 2 if seen.form == "blocks:2" else seen.channels
        assert seen.reach == tuple(
            Reach(value, seen.channels // 2, m, width * m) for value in ("Inf", "NaN")
        ), name


def lone(cls, m, dtype=torch.float32, **options):
    torch.manual_seed(0)
    module = cls(6, 6 * m, options.pop("kernel", 3), groups=6, **options)
    return nn.Sequential(module).to(dtype).eval()


CONVOLUTIONS = {
    "1-D": partial(lone, nn.Conv1d, 2, stride=2, padding=3),
    "2-D same": partial(lone, nn.Conv2d, 1, kernel=(2, 3), padding="same", dilation=2),
    "2-D reflect": partial(lone, nn.Conv2d, 1, kernel=5, padding=2, padding_mode="reflect"),
    "2-D circular": partial(lone, nn.Conv2d, 3, kernel=5, padding=4, padding_mode="circular",
                            stride=3),
    "3-D": partial(lone, nn.Conv3d, 1, stride=(1, 2, 1), padding=(0, 1, 2)),
    "1-D, steps longer than the kernel": partial(lone, nn.Conv1d, 1, kernel=2, stride=3, padding=1),
    "1-D valid": partial(lone, nn.Conv1d, 1, padding="valid"),
    "transposed 1-D": partial(lone, nn.ConvTranspose1d, 2, stride=3, padding=4, kernel=5),
    "transposed 2-D": partial(lone, nn.ConvTranspose2d, 1, stride=2, output_padding=1, dilation=2),
    "transposed 3-D": partial(lone, nn.ConvTranspose3d, 3, padding=1, kernel=2),
    "bfloat16": partial(lone, nn.Conv2d, 1, torch.bfloat16, padding=1),
    "float16": partial(lone, nn.Conv2d, 1, torch.float16, padding=1),
}  # fmt: skip


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_leak_at_any_tap_is_found(name, linked):
    """Off the diagonal, one tap after the other."""
    reference = CONVOLUTIONS[name]()
    x = torch.ones(1, 6, *(12,) * len(reference[0].kernel_size)).to(reference[0].weight)
    weights = "linked" if linked else "precomputed"
    candidate = dwr.fx_rewrite(reference, policy="blocks:3", weights=weights)
    pair = TorchPair(reference, candidate, (x,))
    (clean,) = pair.probes()
    assert (clean.leaking, clean.probed) == (0, 6)
    assert pair.proof.status == "proved"
    if linked:
        return
    transposed = isinstance(reference[0], nn.modules.conv._ConvTransposeNd)
    m = reference[0].out_channels // 6
    for tap in np.ndindex(*reference[0].kernel_size):
        wrong = copy.deepcopy(candidate)
        row, column = (4, 0) if transposed else (4 * m, 0)
        move(wrong[0].weight, (row, column, *tap))
        (found,) = TorchPair(reference, wrong, (x,)).probes()
        assert found.leaks == (((4, 3 * m),) if transposed else ((3, 4 * m),)), tap


def test_a_leak_is_told_although_the_bias_is_large():
    """In the sum with a bias of 2^24 it would be rounded away."""
    reference = lone(nn.Conv2d, 1)
    reference[0].bias.data[:] = 2.0**24
    candidate = dwr.fx_rewrite(reference, policy="dense")
    move(candidate[0].weight, (2, 5, 0, 0))
    (found,) = TorchPair(reference, candidate, (torch.ones(1, 6, 8, 8),)).probes()
    assert (found.leaks, found.leaking) == (((5, 2),), 1)


def test_only_ten_leaks_are_told_one_by_one():
    reference = lone(nn.Conv2d, 1)
    candidate = nn.Sequential(nn.Conv2d(6, 6, 3))
    (found,) = TorchPair(reference, candidate, (torch.ones(1, 6, 8, 8),)).probes()
    assert (found.leaking, len(found.leaks), found.form) == (30, 10, "dense")


def test_few_channels_stand_alone_where_all_would_take_too_long(monkeypatch):
    monkeypatch.setattr(probe, "WORK", 3 * 6 * 6 * 9)
    reference = lone(nn.Conv2d, 1)
    candidate = dwr.fx_rewrite(reference, policy="dense")
    move(candidate[0].weight, (0, 2, 0, 0))
    move(candidate[0].weight, (0, 3, 0, 0))
    (found,) = TorchPair(reference, candidate, (torch.ones(1, 6, 8, 8),)).probes()
    assert (found.probed, found.leaks) == (3, ((2, 0),))  # 0, 2 and 4


def test_a_site_with_a_computed_weight_is_left_out():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 1, 3))

        def forward(self, x):
            return nn.functional.conv1d(x, self.weight * 2, groups=6)

    x = torch.ones(1, 6, 8)
    with torch.no_grad():
        reference = export(Computed(), (x,)).module()
    candidate = dwr.fx_rewrite(reference, policy="dense", weights="linked")
    pair = TorchPair(reference, candidate, (x,))
    assert (len(pair.sites), list(pair.probes()), pair.proof.status) == (1, [], "proved")
    node(candidate, "mul").update_arg(1, 3)
    found = findings(reference, candidate)
    assert (found.proof.status, list(found.differences)) == ("partial", ["mul"])
