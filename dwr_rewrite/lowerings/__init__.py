"""The ways to write a depthwise convolution. One file each; this is their ordered list."""

from __future__ import annotations

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import blocks, dense, keep, kernel
from dwr_rewrite.recipe import Kernel, Recipe
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Direction

LOWERINGS = (keep, dense, blocks, kernel)
"""Each has a ``name`` and ``lower(spec) -> Recipe | Rejection``; blocks also takes a width, and
kernel a tile."""

WIDTHS = (8, 16, 32, 64, 128)
"""Group widths that are tried: a tensor core's tile has 8 or 16 channels, the paper's code 32, and
past 128 the arithmetic is that many times the depthwise one."""

KEEP = keep.name
KERNEL = kernel.name

__all__ = [
    "KEEP", "KERNEL", "LOWERINGS", "WIDTHS", "blocks", "candidates", "dense", "form_of",
    "is_kernel", "keep", "kernel", "lower",
]  # fmt: skip


def form_of(recipe: Recipe) -> str:
    """``keep``, ``dense``, ``blocks:b`` with its width b, ``kernel`` or ``kernel:tile``."""
    if isinstance(recipe.conv, Kernel):
        return f"{kernel.name}:{recipe.conv.tile}".rstrip(":")
    width = recipe.packing.width
    if width == 1:
        return keep.name
    return dense.name if width == recipe.conv.spec.channels else f"{blocks.name}:{width}"


def is_kernel(form: str) -> bool:
    """Whether a form, by its name, is a kernel of our own."""
    return form.partition(":")[0] == kernel.name


def lower(spec: ConvSpec, form: str, direction: Direction | None = None) -> Recipe | Rejection:
    """The recipe of a form by its name, as :func:`form_of` gives it, or why there is none.

    Args:
        spec: the geometry.
        form: the name.
        direction: for which a kernel's tile has to fit; None for one that is known to.

    Raises:
        ValueError: no form has this name.
    """
    name, _, rest = form.partition(":")
    if name == kernel.name:
        return kernel.lower(spec, rest, direction)
    if name == blocks.name:
        return blocks.lower(spec, int(rest or blocks.PUBLISHED_WIDTH))
    if form in (keep.name, dense.name):
        return keep.lower(spec) if form == keep.name else dense.lower(spec)
    raise ValueError(f"form {form!r}: {', '.join(each.name for each in LOWERINGS)} expected")


def candidates(spec: ConvSpec) -> dict[str, Recipe]:
    """Every form that any engine can run, by its name; ``keep`` comes first.

    Widths that fall on the same divisor of C are one form. Kernels are not among them: only torch
    calls them, and which tiles are worth a measurement depends on the device.
    """
    recipes = [keep.lower(spec), *(blocks.lower(spec, width) for width in WIDTHS)]
    recipes.append(dense.lower(spec))
    return {form_of(recipe): recipe for recipe in recipes if not isinstance(recipe, Rejection)}
