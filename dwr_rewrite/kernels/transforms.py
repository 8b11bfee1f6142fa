"""torch.vmap and torch.autocast over the two operators.

Where only activations are mapped, the mapped axis joins the batch. Where a weight is, it joins the
channels: a depthwise map over B * C channels is B maps over C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def vmap_depthwise(
    info: Any,
    axes: Sequence[int | None],
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    adjoint: bool,
    reduce: bool,
    activation: str,
    tile: str,
) -> tuple[Tensor, int]:
    """``dwr::depthwise`` with any of its tensors mapped; ``axes`` says along which axis."""
    op, count = torch.ops.dwr.depthwise, info.batch_size
    steps = (size, stride, padding, dilation)
    if all(axis is None for axis in axes[1:4]):
        y = op(_fold(x, axes[0], count, 0), weight, scale, bias, *steps, groups, adjoint, reduce,
               activation, tile)  # fmt: skip
        return _split(y, 0, count), 0
    y = op(
        _fold(x, axes[0], count, 1),
        _fold(weight, axes[1], count, 0),
        None if scale is None else _fold(scale, axes[2], count, 0),
        None if bias is None else _fold(bias, axes[3], count, 0),
        *steps, count * groups, adjoint, reduce, activation, tile,
    )  # fmt: skip
    return _split(y, 1, count), 1


def vmap_depthwise_weight(
    info: Any,
    axes: Sequence[int | None],
    x: Tensor,
    gradient: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    adjoint: bool,
    bias: bool,
    tile: str,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """``dwr::depthwise_weight`` with either tensor mapped."""
    count = info.batch_size
    shape = [count * weight_shape[0], *weight_shape[1:]]
    weight, sums = torch.ops.dwr.depthwise_weight(
        _fold(x, axes[0], count, 1), _fold(gradient, axes[1], count, 1), shape, stride, padding,
        dilation, count * groups, adjoint, bias, tile,
    )  # fmt: skip
    return (_split(weight, 0, count), _split(sums, 0, count)), (0, 0)


def _fold(x: Tensor, axis: int | None, count: int, into: int) -> Tensor:
    """Joins the mapped axis to the axis ``into`` of what is mapped, as its slower part."""
    x = x.expand(count, *x.shape) if axis is None else x.movedim(axis, 0)
    return x.movedim(0, into).flatten(into, into + 1)


def _split(x: Tensor, axis: int, count: int) -> Tensor:
    """The inverse; an axis may be empty."""
    return x.unflatten(axis, (count, x.shape[axis] // count))


def register_autocast(library: torch.library.Library, op: Any) -> None:
    """Casts the first two arguments where autocast is on, as torch does for a convolution.

    ``torch.library.register_autocast`` takes one type for all time; here it is the type that the
    region asks for. A scale and a bias stay as they are: the epilogue is computed in float32.
    """
    for device in ("cuda", "cpu"):
        library.impl(op, _cast(op, device), f"Autocast{device.upper()}")


def _cast(op: Any, device: str) -> Callable[..., Any]:
    def run(x: Tensor, other: Tensor, *rest: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return op(_to(x, dtype, device), _to(other, dtype, device), *rest)

    return run


def _to(x: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """float64 stays, as it does in torch."""
    eligible = x.device.type == device and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if eligible else x
