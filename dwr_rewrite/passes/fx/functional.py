"""A depthwise convolution whose forward and both gradients each take a form of their own.

The compact weight is the parameter. Each of the three convolutions of a training step packs it onto
the diagonal at its own group width just before it runs, and the gradient of the weight comes out
compact, so nothing larger than one packed weight is alive, and nothing off the diagonal learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import Packing
from dwr_rewrite.spec import ConvSpec, Pads

aten = torch.ops.aten


class Widths(NamedTuple):
    """Group width of each convolution of a training step; 1 is the depthwise one."""

    forward: int = 1
    grad_input: int = 1
    grad_weight: int = 1


@dataclass(frozen=True)
class Geometry:
    """What ``aten.convolution`` is told besides its tensors; padding is symmetric.

    All of it is plain numbers, so that a tracer sees no shape computed.
    """

    channels: int
    kernel: tuple[int, ...]
    multiplier: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def arguments(self, width: int) -> tuple[Any, ...]:
        """The arguments from ``stride`` to ``groups`` at a group width."""
        extra = self.output_padding or (0,) * len(self.stride)
        groups = self.channels // width
        return (self.stride, self.padding, self.dilation, self.transposed, extra, groups)

    def packing(self, width: int) -> Packing:
        """How the compact weight is packed at a group width."""
        spec = ConvSpec(
            self.channels, self.kernel, multiplier=self.multiplier, transposed=self.transposed
        )
        return diagonal(spec, width).packing


def pack(weight: Tensor, packing: Packing) -> Tensor:
    """The diagonal weight; differentiable, zeros stay zeros beside Inf and NaN, layout is kept."""
    if packing.width == 1:
        return weight
    eye = torch.eye(packing.width, dtype=torch.bool, device=weight.device).reshape(packing.eye)
    zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
    packed = torch.where(eye, weight.reshape(packing.split), zero).reshape(packing.packed)
    return _laid_out_as(weight, packed)


def unpack(packed: Tensor, packing: Packing) -> Tensor:
    """The compact weight, or its gradient, read off the diagonal."""
    if packing.width == 1:
        return packed
    full = list(packing.split)
    full[packing.column] = packing.width
    on_diagonal = packed.reshape(full).diagonal(dim1=1, dim2=packing.column)
    return _laid_out_as(packed, on_diagonal.movedim(-1, 1).reshape(packing.compact))


def _laid_out_as(weight: Tensor, other: Tensor) -> Tensor:
    """``other`` contiguous, or channels_last as ``weight`` is.

    Only the stride of axis 1 tells the two apart when a weight has one channel there, and no vmap
    takes a ``memory_format``.
    """
    if weight.dim() > 3 and weight.stride(1) == 1:
        last = other.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        return last.movedim(-1, 1)
    return other.contiguous()


class _Depthwise(torch.autograd.Function):
    """``aten.convolution`` of the packed weight, with a compact gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, widths: Widths
    ) -> Tensor:
        packed = pack(weight, geometry.packing(widths.forward))
        return aten.convolution(x, packed, bias, *geometry.arguments(widths.forward))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.geometry, ctx.widths = inputs
        ctx.bias_size = None if bias is None else tuple(bias.shape)
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient_of(gradient, x, weight, ctx.geometry, ctx.widths.grad_input, 0)
        if ctx.needs_input_grad[1]:
            width = ctx.widths.grad_weight
            grad_weight = gradient_of(gradient, x, weight, ctx.geometry, width, 1)
        if ctx.bias_size is not None and ctx.needs_input_grad[2]:
            grad_bias = gradient.sum([0, *range(2, gradient.dim())])
        return grad_x, grad_weight, grad_bias, None, None


def gradient_of(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, width: int, which: int
) -> Tensor:
    """One gradient of the packed convolution: 0 of the input, 1 of the weight, which is compact.

    Only the shapes of ``x`` (for 0) and of ``weight`` (for 1) count.
    """
    packing, mask = geometry.packing(width), [which == 0, which == 1, False]
    found = aten.convolution_backward(
        gradient, x, pack(weight, packing), None, *geometry.arguments(width), mask
    )[which]
    return unpack(found, packing) if which else found


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, widths: Widths
) -> Tensor:
    """The depthwise convolution of ``x`` [N, C, ...] (or [C, ...]) with a compact ``weight``.

    Autocast casts the compact weight before it is packed. Where no gradient is wanted, a tracer
    records plain operators, or tangents flow forward, it is the packed convolution itself.
    """
    x, weight, bias = _autocast(x, weight, bias)
    if x.dim() == weight.dim() - 1:  # no batch
        return convolve(x.unsqueeze(0), weight, bias, geometry, widths).squeeze(0)
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    tracing: bool = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    tangents = getattr(forward_ad, "_current_level", -1) >= 0
    if tracing or tangents or not (wanted and torch.is_grad_enabled()):
        packed = pack(weight, geometry.packing(widths.forward))
        return aten.convolution(x, packed, bias, *geometry.arguments(widths.forward))
    return _Depthwise.apply(x, weight, bias, geometry, widths)


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if not _casts(x):
        return x, weight, bias
    dtype = runs_in(x)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _casts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def runs_in(x: Tensor) -> torch.dtype:
    """The type in which ``x`` is convolved: autocast's where it is on, but for float64."""
    return torch.get_autocast_dtype(x.device.type) if _casts(x) else x.dtype


def around(pads: Pads) -> tuple[Pads, tuple[int, ...]]:
    """What has to be padded before a convolution, and what it pads itself: both sides alike."""
    if all(before == after for before, after in pads):
        return (), tuple(before for before, _ in pads)
    return pads, (0,) * len(pads)


def pad(x: Tensor, pads: Pads, mode: str = "zeros") -> Tensor:
    """Pads the spatial axes of ``x``; ``mode`` as in ``nn.Conv2d.padding_mode``."""
    if not pads:
        return x
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, mode="constant" if mode == "zeros" else mode)
