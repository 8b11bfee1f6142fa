"""blocks: groups of a few channels, the form that the paper's code trains with (32 channels)."""

from __future__ import annotations

from math import isqrt

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec

name = "blocks"

PUBLISHED_WIDTH = 32
"""Channels per group in the authors' PyTorch and TensorFlow code (Qin et al. 2018)."""


def lower(spec: ConvSpec, width: int = PUBLISHED_WIDTH) -> Recipe | Rejection:
    """Groups of the divisor of C that is nearest to ``width``; see :func:`group_width`."""
    chosen = group_width(spec.channels, width)
    if chosen is None:
        return Rejection(
            "no-group-width",
            f"no divisor of {spec.channels} channels lies between 2 and {2 * width}; "
            f"use the policy dense, or blocks with a larger width",
        )
    return diagonal(spec, chosen)


def group_width(channels: int, width: int) -> int | None:
    """The divisor of ``channels`` in [2, 2 * width] whose ratio to ``width`` is nearest to 1.

    A tie goes to the smaller one. A prime number of channels up to 2 * width is its own width,
    which is the dense form; for a larger prime there is none.
    """
    small = [d for d in range(1, isqrt(channels) + 1) if channels % d == 0]
    divisors = [d for d in {*small, *(channels // d for d in small)} if 2 <= d <= 2 * width]
    return min(divisors, key=lambda d: (max(d / width, width / d), d), default=None)
