"""The same two maps in aten: what runs where the kernels do not, and what export decomposes to.

They take the arguments of the operators in :mod:`dwr_rewrite.kernels.ops` and ask no guard of a
size that is traced. Aten pads alike in front and behind. Where that gives the size that is asked
for, aten pads itself; otherwise the input is padded, or the output cropped, by a step of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from dwr_rewrite.kernels.checks import known
from dwr_rewrite.kernels.layout import like

aten = torch.ops.aten


def _summed_in(x: Tensor) -> torch.dtype:
    """The type that aten is given: on a CPU it sums some convolutions of float16 in float16."""
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which an epilogue is computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def depthwise(
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
    _tile: str,
) -> Tensor:
    """``activation(map(x, weight) * scale + bias)``; see ``dwr::depthwise``."""
    exact = activation in ("none", "relu", "relu6")  # they commute with rounding
    narrow = exact and scale is None and (bias is None or bias.dtype == x.dtype)
    dtype = _summed_in(x) if narrow else wide(x.dtype)
    weight = _weight(weight, groups, adjoint, reduce)
    vectors = [None if v is None else v.to(dtype) for v in (scale, bias)]
    added = vectors[1] if scale is None else None
    convolve = _transposed if adjoint else _forward
    y = convolve(x.to(dtype), weight.to(dtype), added, size, stride, padding, dilation, groups)
    if vectors[0] is not None:
        y = y * _over_channels(vectors[0], y)
        y = y if vectors[1] is None else y + _over_channels(vectors[1], y)
    return like(activate(y, activation).to(x.dtype), x)


def depthwise_weight(
    x: Tensor,
    gradient: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    adjoint: bool,
    bias: bool,
    _tile: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight and the bias; see ``dwr::depthwise_weight``."""
    sums, zeros = channel_sums(gradient, bias), [0] * len(stride)
    dtype, given = x.dtype, _summed_in(x)
    x, gradient = x.to(given), gradient.to(given)
    weight = _weight(x.new_empty(list(weight_shape)), groups, adjoint, False)
    kernel, extra = weight.shape[2:], zeros
    if adjoint:
        extra = _output_padding(x, gradient.shape[2:], kernel, stride, padding, dilation)
        if extra is None:
            gradient = _pad(gradient, padding, _full(x.shape[2:], kernel, stride, dilation))
            padding, extra = zeros, zeros
    elif not _natural(x, gradient.shape[2:], kernel, stride, padding, dilation):
        x = _pad(x, padding, _full(gradient.shape[2:], kernel, stride, dilation))
        padding = zeros
    _, found, _ = aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, adjoint, extra, groups,
        [False, True, False],
    )  # fmt: skip
    return found.reshape(list(weight_shape)).to(dtype).contiguous(), sums


def channel_sums(gradient: Tensor, wanted: bool) -> Tensor:
    """Gradient of a bias, [channels] in the type of ``gradient``; [0] if it is not wanted."""
    if not wanted:
        return gradient.new_empty((0,))
    return gradient.sum((0, *range(2, gradient.dim())))


def activate(y: Tensor, activation: str) -> Tensor:
    """The activation of this name (:data:`~dwr_rewrite.kernels.problem.ACTIVATIONS`)."""
    if activation == "none":
        return y
    if activation.startswith("gelu"):
        return F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
    others = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
    return others[activation](y)


def _weight(weight: Tensor, groups: int, adjoint: bool, reduce: bool) -> Tensor:
    """As aten takes it: of a map from C to C*m channels, or of one from C*m to C."""
    filters = weight.shape[0] * weight.shape[1]
    rows = (filters, 1) if adjoint == reduce else (groups, filters // groups)
    return weight if tuple(weight.shape[:2]) == rows else weight.reshape(*rows, *weight.shape[2:])


def _over_channels(vector: Tensor, y: Tensor) -> Tensor:
    return vector.reshape(-1, *(1,) * (y.dim() - 2))


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    kernel, zeros = weight.shape[2:], [0] * len(size)
    if not _natural(x, size, kernel, stride, padding, dilation):
        x, padding = _pad(x, padding, _full(size, kernel, stride, dilation)), zeros
    return aten.convolution(x, weight, bias, stride, padding, dilation, False, zeros, groups)


def _transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    kernel, zeros = weight.shape[2:], [0] * len(size)
    extra = _output_padding(x, size, kernel, stride, padding, dilation)
    if extra is not None:
        return aten.convolution(x, weight, bias, stride, padding, dilation, True, extra, groups)
    dtype = x.dtype if bias is None else wide(x.dtype)
    x, weight = x.to(dtype), weight.to(dtype)
    y = aten.convolution(x, weight, None, stride, zeros, dilation, True, zeros, groups)
    y = _pad(y, [-front for front in padding], size)
    return y if bias is None else y + _over_channels(bias.to(dtype), y)


def _full(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Inputs that ``size`` outputs of a convolution span; outputs that a transposed one makes."""
    return [
        (n - 1) * s + d * (k - 1) + 1
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    ]


def _natural(
    x: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
) -> bool:  # fmt: skip
    """Whether aten gives ``size`` outputs when it pads both ends by ``padding``."""
    axes = zip(x.shape[2:], size, kernel, stride, padding, dilation, strict=True)
    return min(padding) >= 0 and all(
        known((n + 2 * p - d * (k - 1) - 1) // s + 1 == wanted) for n, wanted, k, s, p, d in axes
    )


def _output_padding(
    x: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
) -> list[int] | None:  # fmt: skip
    """With which a transposed convolution that crops both ends by ``padding`` gives ``size``.

    None if there is none that aten takes: at least 0, and below the stride or the dilation.
    """
    full = _full(x.shape[2:], kernel, stride, dilation)
    extra = [wanted - n + 2 * p for wanted, n, p in zip(size, full, padding, strict=True)]
    allowed = min(padding) >= 0 and all(
        known(e >= 0) and known(e < max(s, d))
        for e, s, d in zip(extra, stride, dilation, strict=True)
    )
    return extra if allowed else None


def _pad(x: Tensor, front: Sequence[int], size: Sequence[int]) -> Tensor:
    """Spatial axes with ``front`` zeros before them, then cut or filled to ``size``."""
    lengths = x.shape[2:]
    pairs = [(a, wanted - a - n) for a, wanted, n in zip(front, size, lengths, strict=True)]
    missed = zip(pairs, lengths, strict=True)
    if any(known(-a > n) or known(-b > n) for (a, b), n in missed):  # nothing is left of it
        return x.new_zeros((*x.shape[:2], *size))
    return aten.constant_pad_nd(x, list(chain.from_iterable(reversed(pairs))))
