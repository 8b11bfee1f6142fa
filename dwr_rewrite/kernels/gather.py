"""A depthwise map on the ordinary units: every output gathers its taps from registers.

A lane makes a box of ``depth * rows * columns`` outputs. It walks the input rows that the box
meets, loads each element once, and multiplies it with every tap with which it counts for one of the
box's outputs: the reuse of rows and columns of Lu et al. 2021 (TPDS 33(1)), in registers. Which
taps those are is known when the kernel is compiled, for strides, dilation and adjoint maps alike,
so nothing is multiplied in vain. A kernel with too many taps for that loops over its rows instead,
and reuses columns only (:func:`~dwr_rewrite.kernels.map_tiles.unrolled`).

Lu et al. reuse columns by warp shuffles. They are not used: on GPUs since Volta a shuffle occupies
the same unit for as long as a load that hits the L1.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from dwr_rewrite.kernels.box import gathered
from dwr_rewrite.kernels.map_tiles import unrolled
from dwr_rewrite.kernels.operands import Capture, accumulator, strides, vector, wide
from dwr_rewrite.kernels.problem import Activation, Problem
from dwr_rewrite.kernels.tile import Tile

GRID = 65535
"""Programs along the second and third axis of a launch, at most."""


def run(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, out: Tensor,
    problem: Problem, activation: Activation, tile: Tile, capture: Capture,
) -> None:  # fmt: skip
    """Writes all of ``out``: activation(map(x) * scale + bias).

    Args:
        x: input [N, Cin, D, H, W], any strides.
        weight: [C * m, taps], contiguous.
        scale: [Cout], contiguous, or None.
        bias: [Cout], contiguous, or None.
        out: [N, Cout, D, H, W], any strides that do not overlap.
        problem: the map.
        activation: what is done last.
        tile: its ``rows`` and ``depth`` are multiples of the strides of an adjoint map that is
            unrolled, its ``columns`` of those of any adjoint map.
        capture: how the launch is made: see :data:`~dwr_rewrite.kernels.operands.Capture`.
    """
    batch, channels, *spatial = out.shape
    box = (tile.depth, tile.rows, tile.columns)
    blocks_d, lanes_h, lanes_w = (-(-n // b) for n, b in zip(spatial, box, strict=True))
    lanes = lanes_h * lanes_w
    blocks_p = -(-lanes // tile.positions) * blocks_d
    blocks_c = -(-channels // tile.channels)
    last = x.stride(1) == 1 and x.stride(4) != 1
    if last:
        axis, vec, store = 1, 1, 1
        units = vector(x, 0, axis), vector(out, 0, axis)
        grid = (blocks_c, blocks_p, batch)
    else:
        axis, stride = 4, problem.stride[2]
        step = tile.columns // stride if problem.adjoint else tile.columns * stride
        units = vec, store = vector(x, step), vector(out, tile.columns)
        grid = (blocks_p, blocks_c, batch)
    flat = max(grid[1:]) > GRID
    capture(gathered)[(prod(grid),) if flat else grid](
        out, x, weight, scale, bias, channels // (units[1] if last else 1), *x.shape[2:],
        *spatial, lanes_w, lanes, blocks_p, blocks_d, blocks_c,
        *strides(x, units[0], axis), *strides(out, units[1], axis),
        *problem.kernel, *problem.stride, *problem.padding, *problem.dilation,
        problem.adjoint, problem.reduce, problem.multiplier, activation,
        tile.channels, tile.positions, *box, vec, store, *units, unrolled(problem, tile),
        last, flat, wide(x) or wide(out), accumulator(x.dtype), num_warps=tile.warps,
    )  # fmt: skip
