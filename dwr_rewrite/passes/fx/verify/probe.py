"""One convolution by itself: does a channel leak into another, and where does a NaN go?"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwr_rewrite.equivalence.evidence import Probe, Reach
from dwr_rewrite.passes.fx.verify.sites import Convolution

WORK = 1 << 31
"""Multiply-accumulates that the candidate may spend on one site; then only some channels stand
alone, evenly chosen."""

ELEMENTS = 1 << 24
"""Numbers that the input of one run may have (64 MiB in float32)."""

KEPT = 10
"""Leaks that are told one by one."""


def probe(
    name: str, form: str, reference: Convolution | None, candidate: Convolution | None
) -> Probe | None:
    """Looks where single channels of a site go.

    Each element of a batch is zero in all channels but one, and long enough for every tap to see
    what is in it. The bias is left out.

    Args:
        name: of the site.
        form: of the candidate.
        reference: the convolution in the reference; None where it cannot be run by itself.
        candidate: in the candidate.

    Returns:
        None where the convolution cannot be run by itself, or takes other channels.
    """
    if reference is None or candidate is None or reference.channels != candidate.channels:
        return None
    lengths = _lengths(reference)
    channels = _chosen(candidate, lengths)
    leaks: list[tuple[int, int]] = []
    with torch.inference_mode(mode=False), torch.no_grad():
        batch = max(1, ELEMENTS // (reference.channels * prod(lengths)))
        for part in np.array_split(channels, -(-len(channels) // batch)):
            x = _alone(part, lengths, reference)
            before, after = (_touched(side.apply(x)) for side in (reference, candidate))
            if before.shape != after.shape:
                return None
            pairs = (after & ~before).nonzero().tolist()
            leaks += [(int(part[row]), column) for row, column in pairs]
        reach = tuple(_reaches(reference, candidate, lengths))
    return Probe(
        name, form, reference.channels, reference.outputs, len(channels), tuple(leaks[:KEPT]),
        len(leaks), reach,
    )  # fmt: skip


def _lengths(site: Convolution) -> tuple[int, ...]:
    """Input lengths at which some input meets every tap inside the output, and the padding fits."""
    return tuple(
        2 * -(-p // s) + 1 if site.transposed else max(d * (k - 1) + s, p + 1)
        for k, s, p, d in zip(site.kernel, site.stride, site.padding, site.dilation, strict=True)
    )


def _chosen(site: Convolution, lengths: tuple[int, ...]) -> NDArray[np.intp]:
    """The channels that stand alone: all of them, or as many as the work allows."""
    positions = prod(
        n if site.transposed else (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            lengths, site.kernel, site.stride, site.padding, site.dilation, strict=True
        )
    )
    work = positions * site.outputs * site.width * prod(site.kernel)
    count = min(site.channels, max(1, WORK // work))
    return np.arange(count) * site.channels // count


def _alone(channels: NDArray[np.intp], lengths: tuple[int, ...], site: Convolution) -> Tensor:
    """A batch whose elements are normal in one of these channels and zero in the others."""
    x = site.example.new_zeros((len(channels), site.channels, *lengths))
    pattern = torch.from_numpy(np.random.default_rng(0).standard_normal(lengths))
    x[torch.arange(len(channels)), torch.from_numpy(channels)] = pattern.to(x)
    return x


def _touched(y: Tensor) -> Tensor:
    """Which channels hold anything but zeros: [N, M]."""
    return (y != 0).flatten(2).any(2)


def _reaches(
    reference: Convolution, candidate: Convolution, lengths: tuple[int, ...]
) -> Iterator[Reach]:
    values: tuple[Literal["Inf", "NaN"], ...] = ("Inf", "NaN")
    channel = reference.channels // 2
    for value in values:
        x = np.random.default_rng(0).standard_normal((1, reference.channels, *lengths))
        x[:, channel] = float(value)
        given = torch.from_numpy(x).to(reference.example)
        counts = (
            int((~side.apply(given).isfinite()).flatten(2).any(2).sum())
            for side in (reference, candidate)
        )
        yield Reach(value, channel, *counts)
