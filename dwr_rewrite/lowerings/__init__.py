"""The ways to write a depthwise convolution. One file each; this is their ordered list."""

from __future__ import annotations

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import blocks, dense, keep
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec

LOWERINGS = (keep, dense, blocks)
"""Each has a ``name`` and ``lower(spec) -> Recipe | Rejection``; blocks also takes a width."""

WIDTHS = (8, 16, 32, 64, 128)
"""Group widths that are tried: a tensor core's tile has 8 or 16 channels, the paper's code 32, and
past 128 the arithmetic is that many times the depthwise one."""

KEEP = keep.name

__all__ = ["KEEP", "LOWERINGS", "WIDTHS", "blocks", "candidates", "dense", "form_of", "keep"]


def form_of(recipe: Recipe) -> str:
    """``keep``, ``dense`` or ``blocks:b`` with the width that it has."""
    width = recipe.packing.width
    if width == 1:
        return keep.name
    return dense.name if width == recipe.conv.spec.channels else f"{blocks.name}:{width}"


def candidates(spec: ConvSpec) -> dict[str, Recipe]:
    """Every form that a convolution can sensibly take, by its name; ``keep`` comes first.

    Widths that fall on the same divisor of C are one form.
    """
    recipes = [keep.lower(spec), *(blocks.lower(spec, width) for width in WIDTHS)]
    recipes.append(dense.lower(spec))
    return {form_of(recipe): recipe for recipe in recipes if not isinstance(recipe, Rejection)}
