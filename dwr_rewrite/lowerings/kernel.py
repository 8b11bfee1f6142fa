"""kernel: the depthwise convolution as it is (group width 1), run by a Triton kernel of our own."""

from __future__ import annotations

from dwr_rewrite.errors import Rejection
from dwr_rewrite.kernels import tiles
from dwr_rewrite.kernels.problem import Problem, triple
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import Kernel, Recipe
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Direction

name = "kernel"

LONGEST, WIDEST = 64, 16
"""Taps along an axis, and outputs between two along the last: a lane of a kernel holds a row of
taps, and of a map that scatters as many outputs as the stride, in registers."""


def lower(spec: ConvSpec, tile: str = "", direction: Direction | None = None) -> Recipe | Rejection:
    """A kernel that cuts its work as ``tile`` says; as a heuristic does where that is empty.

    Args:
        spec: the geometry.
        tile: text of a :class:`~dwr_rewrite.kernels.tile.Tile`.
        direction: for which the tile has to fit; None for one that is known to.
    """
    if max(spec.kernel) > LONGEST or spec.stride[-1] > WIDEST:
        return Rejection(
            "no-kernel",
            f"the kernels take up to {LONGEST} taps along an axis and a stride of up to {WIDEST} "
            f"along the last, and it has {list(spec.kernel)} and {list(spec.stride)}",
        )
    if tile and direction in ("forward", "grad_input"):
        adjoint = spec.transposed is not (direction == "grad_input")
        problem = Problem(
            spec.channels, spec.multiplier, triple(spec.kernel), triple(spec.stride),
            adjoint=adjoint,
        )  # fmt: skip
        try:
            tiles.check(problem, Tile.parse(tile))
        except ValueError as error:
            return Rejection("no-tile", f"{direction}: {error}; without a tile a rule chooses one")
    return Recipe(Kernel(spec, tile), diagonal(spec, 1).packing)
