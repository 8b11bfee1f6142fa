"""What a launch reads off its tensors: vectors, strides in vectors, width of an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwr_rewrite.kernels.common import put

Capture = Callable[[Any], Any]
"""Gives what is launched in the place of a kernel: the kernel, or what notes its launch, as
benchmarks/check_kernels.py does to compile without a GPU."""

INTERPRETED = not isinstance(cast(object, put), triton.JITFunction)
"""Whether kernels run in Triton's interpreter."""

VECTOR_BYTES = 16
"""The widest load and store of a lane."""


def vector(x: Tensor, step: int, axis: int = 4) -> int:
    """Elements that a lane may load at once along an axis: a power of two, 1 to 8.

    Every line along it has to consist of whole vectors, and every lane, ``step`` elements after the
    one before, to start with one. Whether the first element is aligned as well is told to Triton by
    the pointer itself.

    Args:
        x: [N, C, D, H, W].
        step: elements from lane to lane; 0 where lanes take vectors as they come.
        axis: along which it is contiguous; where it is not, 1 is returned.
    """
    if x.stride(axis) != 1:
        return 1
    lengths = [x.stride(i) for i in range(5) if i != axis and x.shape[i] > 1]
    found = min(8, VECTOR_BYTES // x.element_size())
    while any(n % found for n in (*lengths, x.shape[axis], step)):
        found //= 2
    return found


def strides(x: Tensor, unit: int, axis: int = 4) -> tuple[int, ...]:
    """The five strides of [N, C, D, H, W]; all but that of ``axis`` in units.

    That of any other axis of one element is never used, and is 0.
    """
    others = (0 if n == 1 else s // unit for n, s in zip(x.shape, x.stride(), strict=True))
    return tuple(x.stride(axis) if i == axis else s for i, s in enumerate(others))


def wide(x: Tensor) -> bool:
    """Whether an element of one image may lie 2^31 or more elements after its first."""
    spans = zip(x.shape[1:], x.stride()[1:], strict=True)
    return sum((n - 1) * s for n, s in spans) >= 1 << 31


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The type of a sum: float32, and float64 for float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def length(count: int) -> int | tl.constexpr:
    """Of a loop. Triton 3.6 interprets a number as an array, which numpy 2.4 makes no range of."""
    return tl.constexpr(count) if INTERPRETED else count
