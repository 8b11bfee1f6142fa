"""keep: the depthwise convolution as it is (group width 1)."""

from __future__ import annotations

from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec

name = "keep"


def lower(spec: ConvSpec) -> Recipe:
    """One group per channel; the weight is not changed."""
    return diagonal(spec, 1)
