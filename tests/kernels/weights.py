"""The gradient of a weight in float64 by its definition, and volumes to take it of."""

from __future__ import annotations

from itertools import product
from math import prod

import torch
from torch import Tensor

from dwr_rewrite.kernels.problem import Problem, Triple
from tests.kernels.maps import as_numpy, assert_close, error_bound

Gradients = tuple[Tensor, Tensor | None]


def exact(x: Tensor, gradient: Tensor, problem: Problem) -> Gradients:
    """The definition in float64, tap by tap: each picks a fine element for every coarse one."""
    x, gradient = x.double().repeat_interleave(problem.multiplier, 1), gradient.double()
    fine, coarse = (gradient, x) if problem.adjoint else (x, gradient)
    columns = []
    for taps in product(*map(range, problem.kernel)):
        picked = fine
        for axis, tap in enumerate(taps):
            positions = torch.arange(coarse.shape[2 + axis]) * problem.stride[axis]
            positions += tap * problem.dilation[axis] - problem.padding[axis]
            inside = (positions >= 0) & (positions < fine.shape[2 + axis])
            shape = [-1 if i == 2 + axis else 1 for i in range(5)]
            picked = picked.index_select(2 + axis, torch.where(inside, positions, 0))
            picked = picked * inside.view(shape)
        columns.append((picked * coarse).sum((0, 2, 3, 4)))
    return torch.stack(columns, 1), None if problem.adjoint else gradient.sum((0, 2, 3, 4))


def check(found: Gradients, x: Tensor, gradient: Tensor, problem: Problem) -> None:
    """Fails where an error is larger than sums of that many products can have."""
    coarse = x if problem.adjoint else gradient
    count = coarse.shape[0] * prod(coarse.shape[2:])
    sizes = exact(x.abs(), gradient.abs(), problem)
    for value, wanted, size in zip(found, exact(x, gradient, problem), sizes, strict=True):
        assert (value is None) == (wanted is None)
        if value is not None and wanted is not None and size is not None:
            expected = as_numpy(wanted)
            bound = error_bound(expected, as_numpy(size), count, x.dtype)
            assert_close(value, expected, bound)


LAYOUTS = ("contiguous", "channels_last", "sliced", "turned", "expanded", "cropped")


def tensor(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    """Random values of that shape, which lie as ``layout`` says."""
    generator = torch.Generator().manual_seed(seed)

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    n, c, d, h, w = shape
    if layout == "channels_last":
        return values(n, d, h, w, c).permute(0, 4, 1, 2, 3)
    if layout == "sliced":
        return values(n, c, d, h, 2 * w + 1)[..., 1::2]
    if layout == "turned":
        return values(c, w, n, h, d).permute(2, 0, 4, 3, 1)
    if layout == "expanded":
        return values(1, c, 1, 1, 1).expand(shape)
    if layout == "cropped":
        return values(n, c + 1, d, h, w + 3)[:, 1:, :, :, 2:-1]
    return values(*shape)


def volumes(
    problem: Problem, batch: int, fine: Triple, coarse: Triple,
    dtype: torch.dtype = torch.float32, layouts: tuple[str, str] = ("contiguous", "contiguous"),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x and gradient, of which the fine one has that spatial size and the coarse one the other."""
    size, out = (coarse, fine) if problem.adjoint else (fine, coarse)
    x = tensor((batch, problem.groups, *size), dtype, layouts[0], 1)
    filters = problem.groups * problem.multiplier
    return x, tensor((batch, filters, *out), dtype, layouts[1], 2)
