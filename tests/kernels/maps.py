"""Depthwise maps in float64 by numpy, and how far a kernel may be from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

import numpy as np
import torch
from torch import Tensor

from dwr_rewrite.kernels.problem import Problem
from dwr_rewrite.recipe import convolve


def reference(x: Tensor, weight: Tensor, size: Sequence[int], problem: Problem) -> np.ndarray:
    """The map of x [N, Cin, D, H, W] with weight [C * m, taps], in float64."""
    groups, m = problem.groups, problem.multiplier
    filters = as_numpy(weight).reshape(groups, m, *problem.kernel)
    # In a transposed map an input channel comes first, in a plain one an output channel.
    inside = m if problem.reduce != problem.adjoint else 1
    axes = zip(x.shape[2:], size, problem.kernel, problem.stride, problem.padding,
               problem.dilation, strict=True)  # fmt: skip

    def around(n: int, length: int, k: int, s: int, before: int, d: int) -> tuple[int, int]:
        reach = d * (k - 1) + 1
        behind = (n - 1) * s + reach - length if problem.adjoint else (length - 1) * s + reach - n
        return before, behind - before

    return convolve(
        as_numpy(x), filters.reshape(-1, inside, *problem.kernel), groups=groups,
        stride=problem.stride, dilation=problem.dilation, padding=tuple(starmap(around, axes)),
        transposed=problem.adjoint,
    )  # fmt: skip


def error_bound(
    expected: np.ndarray, products: np.ndarray, count: int, dtype: torch.dtype
) -> np.ndarray:
    """How far a sum of ``count`` products may be off that is rounded to ``dtype`` once.

    A product and every partial sum are rounded to the accumulator, each by at most its eps times
    ``products``, the sum of the products' magnitudes (Higham, Accuracy and Stability, section 3.1);
    the result is rounded to ``dtype``, by half its spacing.
    """
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    sums = (count + 2) * torch.finfo(accumulator).eps * products
    spacing = torch.finfo(dtype)
    return sums + spacing.eps * (np.abs(expected) + sums) + spacing.tiny * spacing.eps


def assert_close(found: Tensor, expected: np.ndarray, bound: np.ndarray) -> None:
    """Every element is within its bound; NaN is not."""
    wrong = ~(np.abs(as_numpy(found) - expected) <= bound)
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} elements are off, the first at {np.argwhere(wrong)[0]}: "
        f"{as_numpy(found)[wrong][0]}, expected {expected[wrong][0]} +- {bound[wrong][0]}"
    )


def as_numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
