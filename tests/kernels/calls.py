"""Calls of the two operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dwr_rewrite.kernels import ops

C, M = 2, 2
LAST = torch.channels_last


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None,
    activation: str = "none", stride: int = 2, tile: str = "",
) -> Tensor:  # fmt: skip
    """A convolution with 1 of padding and any multiplier, as ``plain``."""
    rank = x.dim() - 2
    size = [(n + 2 - k) // stride + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
    return ops.depthwise(
        x, weight, scale, bias, size, [stride] * rank, [1] * rank, [1] * rank, x.shape[1], False,
        False, activation, tile,
    )  # fmt: skip


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 2) -> Tensor:
    return F.conv2d(x, weight, bias, stride, 1, 1, x.shape[1])


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = draw(2, C, 6, 5, dtype=dtype), draw(C * M, 1, 3, 3, seed=1, dtype=dtype)
    return x, weight, draw(C * M, seed=2, dtype=dtype)


def wanting(*items: Tensor) -> list[Tensor]:
    return [item.clone().requires_grad_() for item in items]


# (form, rank, size, stride, padding, dilation, weight's shape)
MAPS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "convolution": lambda: ((False, False), (5, 4), (3, 2), [2, 2], [1, 1], [1, 1], (4, 1, 3, 3)),
    "its gradient": lambda: ((True, True), (3, 2), (5, 4), [2, 2], [1, 1], [1, 1], (4, 1, 3, 3)),
    "transposed": lambda: ((True, False), (4,), (9,), [2], [0], [1], (2, 2, 3)),
    "its gradient too": lambda: ((False, True), (9,), (4,), [2], [0], [2], (2, 2, 3)),
    "3-D, more in front": lambda: ((False, False), (2, 3, 3), (2, 3, 2), [1, 1, 2], [1, 1, 2],
                                   [1, 1, 1], (4, 1, 2, 2, 3)),
}  # fmt: skip


def arguments(name: str, activation: str = "none", epilogue: bool = True) -> tuple[Any, ...]:
    """Of ``dwr::depthwise``, in float64, with tensors that want gradients."""
    (adjoint, reduce), spatial, size, stride, padding, dilation, shape = MAPS[name]()
    x = draw(2, C * M if reduce else C, *spatial)
    filters = draw(*shape, seed=1)
    outputs = C if reduce else C * M
    vectors = wanting(draw(outputs, seed=2), draw(outputs, seed=3)) if epilogue else (None, None)
    return (*wanting(x, filters), *vectors, size, stride, padding, dilation, C, adjoint, reduce,
            activation, "")  # fmt: skip


def weight_arguments(name: str, bias: bool) -> tuple[Any, ...]:
    """Of ``dwr::depthwise_weight``."""
    (adjoint, reduce), spatial, size, stride, padding, dilation, shape = MAPS[name]()
    assert not reduce
    pair = wanting(draw(2, C, *spatial), draw(2, C * M, *size, seed=1))
    return (*pair, list(shape), stride, padding, dilation, C, adjoint, bias, "")
