"""dense: one group that holds every channel, the paper's form (group width C)."""

from __future__ import annotations

from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec

name = "dense"


def lower(spec: ConvSpec) -> Recipe:
    """A convolution with group = 1; weight and arithmetic grow C times."""
    return diagonal(spec, spec.channels)
