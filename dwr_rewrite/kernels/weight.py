"""The gradient of a depthwise weight on the ordinary units, in two stages that repeat bit by bit.

Of the two tensors whose products are summed, the fine one is that which the stride walks over (a
convolution's input, a transposed one's gradient); the coarse one is the other. With o over the
coarse positions of all images, r over the filters and t over the taps::

    out[r, t] = sum_o coarse[r, o] * fine[r, o * stride + t * dilation - padding]

where a term outside of ``fine`` counts nothing. Programs share out the positions and a second
kernel adds up what they found in a fixed order. It is not torch's sum, whose order is torch's to
change, and it takes weight and bias in one launch.

What is outside is a zero that meets what is inside, so a value that is not finite may make NaN of a
tap of its filter to which it does not belong; it always reaches those to which it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
from torch import Tensor

from dwr_rewrite.kernels.operands import Capture, accumulator, length, strides, vector
from dwr_rewrite.kernels.partial import finish, partial
from dwr_rewrite.kernels.problem import Problem, Triple
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.kernels.weight_tiles import chunk

REGISTERS = 255
"""Of a thread, as many as there are: ptxas takes fewer by itself, to have more programs at a time,
and spills."""

BLOCK = 32
"""Sums that a program of the second stage makes."""


def run(
    x: Tensor, gradient: Tensor, out: Tensor, bias_out: Tensor | None, problem: Problem, tile: Tile,
    capture: Capture, *, atomic: bool = False,
) -> None:  # fmt: skip
    """Writes all of ``out`` and ``bias_out``: the gradients of the weight and of the bias.

    Args:
        x: input of the convolution, which may be a transposed one: [N, C, D, H, W], any strides.
        gradient: of its output, [N, C * m, D', H', W'], any strides.
        out: [C * m, taps], contiguous.
        bias_out: [C * m], contiguous: sums of ``gradient``. None where they are not asked, and
            where the problem is adjoint.
        problem: the convolution; not ``reduce``.
        tile: boxes are of coarse values; ``splits`` programs share out the positions.
        capture: how launches are made: see :data:`~dwr_rewrite.kernels.operands.Capture`.
        atomic: programs add to common sums in any order, so that the last bits vary from run to
            run; otherwise they repeat.
    """
    filters = gradient.shape[1]
    rows = 1 if atomic else tile.splits
    if rows == 1 and not atomic:
        _sum(x, gradient, out, bias_out, problem, tile, capture, atomic)
        return
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    new = out.new_zeros if atomic else out.new_empty
    parts = new((rows, *out.shape), dtype=kind)
    bias_parts = None if bias_out is None else new((rows, filters), dtype=kind)
    _sum(x, gradient, parts, bias_parts, problem, tile, capture, atomic)
    count = out.numel() + (0 if bias_out is None else filters)
    capture(finish)[(triton.cdiv(count, BLOCK),)](
        out, bias_out, parts, bias_parts, out.numel(), filters, length(rows),
        triton.next_power_of_2(min(rows, 128)), BLOCK, accumulator(x.dtype),
    )  # fmt: skip


def _sum(
    x: Tensor, gradient: Tensor, out: Tensor, bias_out: Tensor | None, problem: Problem, tile: Tile,
    capture: Capture, atomic: bool,
) -> None:  # fmt: skip
    """Launches the first stage: ``out`` [splits, C * m, taps], ``bias_out`` [splits, C * m]."""
    fine, coarse = (gradient, x) if problem.adjoint else (x, gradient)
    box = (tile.depth, tile.rows, tile.columns)
    held = max(1, tile.channels * tile.positions // (32 * tile.warps))
    taps = chunk(problem.kernel, held * (2 if x.dtype == torch.float64 else 1))
    axis, unit, vec = _units(fine, coarse, problem, tile, taps)
    skew = -problem.padding[2] % vec
    near, far = problem.padding[:2], (problem.padding[2] + skew) // vec
    lanes = [max(1, triton.cdiv(n, b)) for n, b in zip(coarse.shape[2:], box, strict=True)]
    tiles = triton.cdiv(coarse.shape[0] * prod(lanes), tile.positions)
    parts = prod(triton.cdiv(k, t) for k, t in zip(problem.kernel, taps, strict=True))
    blocks = triton.cdiv(gradient.shape[1], tile.channels)
    capture(partial)[(parts * tile.splits * blocks,)](
        out, bias_out, fine, coarse, gradient.shape[1] // (unit // vec), coarse.shape[0],
        *fine.shape[2:4], fine.shape[4] // vec, *coarse.shape[2:4], coarse.shape[4] // vec,
        *near, far, *strides(fine, unit, axis), *strides(coarse, unit, axis),
        tile.splits, length(triton.cdiv(tiles, tile.splits)), *lanes,
        *_digits(tile.positions, lanes), *problem.kernel, *taps, *problem.stride, *problem.dilation,
        problem.adjoint, problem.multiplier, tile.channels, tile.positions, *box,
        unit, vec, skew, atomic, _wide(fine, problem, tile) or _wide(coarse, problem, tile),
        accumulator(x.dtype), num_warps=tile.warps, maxnreg=REGISTERS,
    )  # fmt: skip


def _units(
    fine: Tensor, coarse: Tensor, problem: Problem, tile: Tile, taps: Triple
) -> tuple[int, int, int]:
    """The contiguous axis, in how many elements strides are counted, and how many are loaded."""
    if fine.stride(1) == coarse.stride(1) == 1 and not fine.stride(4) == coarse.stride(4) == 1:
        return 1, min(vector(fine, 0, 1), vector(coarse, 0, 1)), 1
    # A program's first tap has to be a whole number of vectors after the first one's.
    skip = 0 if taps[2] == problem.kernel[2] else taps[2] * problem.dilation[2]
    steps = [tile.columns * problem.stride[2], skip]
    vec = min(vector(coarse, tile.columns), *(vector(fine, step) for step in steps))
    return 4, vec, vec


def _digits(number: int, bases: Sequence[int]) -> list[int]:
    """A number written with the given bases and one digit in front, which has none."""
    digits: list[int] = []
    for base in reversed(bases):
        number, digit = divmod(number, base)
        digits.insert(0, digit)
    return [number, *digits]


def _wide(x: Tensor, problem: Problem, tile: Tile) -> bool:
    """Whether an offset from a channel's first element may need 64 bits."""
    reach = tile.columns * problem.stride[2] + problem.kernel[2] * problem.dilation[2]
    lengths = [x.shape[0], 0, *x.shape[2:4], x.shape[4] + reach + abs(problem.padding[2])]
    return sum(n * s for n, s in zip(lengths, x.stride(), strict=True)) >= 1 << 31
