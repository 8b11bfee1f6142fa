"""Depthwise maps in float64 by numpy, and how far a kernel may be from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwr_rewrite.kernels.problem import Problem, Triple
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.recipe import convolve

LAST = torch.channels_last_3d
FORMS = [(adjoint, reduce) for adjoint in (False, True) for reduce in (False, True)]


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def output_size(problem: Problem, spatial: Triple, behind: Triple = (0, 0, 0)) -> Triple:
    """The size with the same padding behind as in front, and ``behind`` more."""
    lengths = []
    for n, k, s, p, d, more in zip(
        spatial, problem.kernel, problem.stride, problem.padding, problem.dilation, behind,
        strict=True,
    ):  # fmt: skip
        reach = d * (k - 1) + 1
        if problem.adjoint:
            lengths.append((n - 1) * s + reach - 2 * p + more)
        else:
            lengths.append((n + 2 * p + more - reach) // s + 1)
    depth, height, width = lengths
    return depth, height, width


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
    the result is rounded to ``dtype``, by a whole spacing: a GPU rounds to the nearest, but the
    interpreter cuts a bfloat16 off.
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


def run(
    kernel: Callable[..., None], problem: Problem, tile: Tile, x: Tensor, size: Triple, *,
    scale: Tensor | None = None,
    bias: Tensor | None = None, activation: Any = "none", out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The kernel's output, which was NaN before, and the weight it took."""
    weight = draw((problem.groups * problem.multiplier, problem.taps), x.dtype, seed=1)
    if out is None:
        out = torch.empty(x.shape[0], problem.out_channels, *size, dtype=x.dtype)
        if x.stride(1) == 1 and x.shape[1] > 1:
            out = out.to(memory_format=LAST)
    out.fill_(float("nan"))
    kernel(x, weight, scale, bias, out, problem, activation, tile, lambda same: same)
    return out, weight


def check(
    kernel: Callable[..., None], problem: Problem, tile: Tile, x: Tensor, size: Triple,
    out: Tensor | None = None,
) -> None:  # fmt: skip
    """Fails where the kernel's output is further from the map than rounding can take it."""
    found, weight = run(kernel, problem, tile, x, size, out=out)
    expected = reference(x, weight, size, problem)
    products = reference(x.abs(), weight.abs(), size, problem)
    count = problem.taps * (problem.multiplier if problem.reduce else 1)
    assert_close(found, expected, error_bound(expected, products, count, x.dtype))
