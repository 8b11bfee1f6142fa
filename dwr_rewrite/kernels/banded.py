"""Depthwise maps on tensor cores, as banded matrices (Toeplitz): float16 and bfloat16 only.

For one channel, a row of outputs is a sum over kernel rows t of ``X_t @ T_t``. X_t holds windows of
an input row; ``T_t[i, j]`` is the weight with which column i of a window counts for output j, and
zero off the band (see :mod:`~dwr_rewrite.kernels.bands`). The rows of X are boxes of outputs, from
all images and from all rows and columns of an image. A program walks the input rows of its boxes,
loads each once, and multiplies it with the bands of all kernel rows by which it counts for some row
of the boxes. For the gradient of the weight, ``sum X^T G`` over boxes has the taps of a kernel row
as sums of its diagonals.

Products of 16-bit values are exact in float32, in which they are summed, in a fixed order.

Zeros are not inert. An input that is not finite makes NaN of every output whose window it is in, in
the rows that the kernel reaches from it: inside its channel (with ``reduce``, inside the channel it
is summed into) and less than a window to the side. Where the kernel's rows are taken in parts, of
which the last is filled up with rows of zeros, it reaches so many rows more. With
:mod:`~dwr_rewrite.kernels.gather` it reaches only outputs that depend on it. Neither reads what is
outside of the input. In a gradient of the weight it spreads inside its filter only: to the taps to
which it belongs, and to those that would pair it with a place outside of the other tensor.

Where channels are innermost results are correct, but slow. A tensor core wants neighbours along the
width in one register, so that every element would be a 2-byte load of its own, from a sector of 32
bytes of which the program, having one channel, needs nothing else.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import bands
from dwr_rewrite.kernels.banded_map import banded_map
from dwr_rewrite.kernels.banded_weight import banded_weight
from dwr_rewrite.kernels.operands import INTERPRETED, Capture, length, strides, vector
from dwr_rewrite.kernels.partial import finish
from dwr_rewrite.kernels.problem import Activation, Problem
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.kernels.weight import BLOCK


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
        tile: one that :func:`~dwr_rewrite.kernels.bands.fits`; its ``positions`` are boxes.
        capture: how the launch is made: see :data:`~dwr_rewrite.kernels.operands.Capture`.

    Raises:
        DwrError: the tile does not fit the problem.
    """
    if not bands.fits(problem, tile):
        raise _unfit(problem, tile)
    batch, channels, *spatial = out.shape
    box = (tile.depth, tile.rows, tile.columns)
    boxes = [-(-n // b) for n, b in zip(spatial, box, strict=True)]
    blocks = triton.cdiv(batch * boxes[0] * boxes[1] * boxes[2], tile.positions)
    stride = problem.stride[2]
    step = tile.columns // stride if problem.adjoint else tile.columns * stride
    window = bands.window(problem, tile.columns, min(2, vector(x, step)))
    vec, store = window.vector, min(2, vector(out, tile.columns))
    capture(banded_map)[(blocks * channels,)](
        out, x, weight, scale, bias, batch, *x.shape[2:4], x.shape[4] // vec,
        *spatial[:2], spatial[2] // store, *boxes, blocks, *strides(x, vec), *strides(out, store),
        *problem.kernel, *problem.stride, *problem.padding, *problem.dilation,
        problem.adjoint, problem.reduce, problem.multiplier, activation,
        tile.positions, *box, bands.width(tile.columns), window.first, window.chunks, vec, store,
        *bands.kernel_rows(problem, tile), _wide(x) or _wide(out), INTERPRETED,
        num_warps=tile.warps, num_stages=1,
    )  # fmt: skip


def run_weight(
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
        tile: one that :func:`~dwr_rewrite.kernels.bands.fits_weight`; boxes are of coarse values,
            and ``splits`` programs share them out.
        capture: how launches are made: see :data:`~dwr_rewrite.kernels.operands.Capture`.
        atomic: whether sums may be made in any order; they are not.

    Raises:
        DwrError: the tile does not fit the problem.
    """
    if not bands.fits_weight(problem, tile):
        raise _unfit(problem, tile)
    filters = gradient.shape[1]
    fine, coarse = (gradient, x) if problem.adjoint else (x, gradient)
    boxes_h = triton.cdiv(coarse.shape[3], tile.rows)
    boxes_w = triton.cdiv(coarse.shape[4], tile.columns)
    blocks = triton.cdiv(coarse.shape[0] * coarse.shape[2] * boxes_h * boxes_w, tile.positions)
    taps = bands.kernel_rows_of_gradient(problem, tile)
    step = tile.columns * problem.stride[2]
    window = bands.forward_window(problem, tile.columns, vector(fine, step))
    vec, unit = window.vector, vector(coarse, tile.columns)
    parts = out.new_empty((tile.splits, *out.shape), dtype=torch.float32)
    bias_parts = None if bias_out is None else parts.new_empty(tile.splits, filters)
    groups = problem.kernel[0] * triton.cdiv(problem.kernel[1], taps)
    capture(banded_weight)[(groups * tile.splits * filters,)](
        parts, bias_parts, fine, coarse, filters, coarse.shape[0],
        *fine.shape[2:4], fine.shape[4] // vec, *coarse.shape[2:4], coarse.shape[4] // unit,
        boxes_h, boxes_w, tile.splits, length(triton.cdiv(blocks, tile.splits)),
        *strides(fine, vec), *strides(coarse, unit),
        *problem.kernel, *problem.stride, *problem.padding, *problem.dilation,
        problem.adjoint, problem.multiplier, tile.positions, taps, tile.rows, tile.columns,
        bands.width(tile.columns), window.first, window.chunks, vec, unit, bias_out is not None,
        _wide(fine) or _wide(coarse), INTERPRETED, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    count = out.numel() + (0 if bias_out is None else filters)
    capture(finish)[(triton.cdiv(count, BLOCK),)](
        out, bias_out, parts, bias_parts, out.numel(), filters, length(tile.splits),
        triton.next_power_of_2(min(tile.splits, 32)), BLOCK, tl.float32,
    )  # fmt: skip


def _unfit(problem: Problem, tile: Tile) -> DwrError:
    return DwrError(f"tile {tile}: no banded form of {problem} is cut so; take another, or none")


def _wide(x: Tensor) -> bool:
    """Whether an element of a channel may lie 2^31 or more elements after its first."""
    spans = [(n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)]
    return sum(spans) - spans[1] >= 1 << 31
