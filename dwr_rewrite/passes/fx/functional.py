"""A depthwise convolution whose forward and both gradients each take a form of their own.

The compact weight is the parameter. Each of the three convolutions of a training step packs it onto
the diagonal at its own group width just before it runs, and the gradient of the weight comes out
compact, so nothing larger than one packed weight is alive, and nothing off the diagonal learns. Or
a kernel of our own takes the compact weight as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from dwr_rewrite.kernels import ops
from dwr_rewrite.passes.fx.geometry import Form, Forms, Geometry, tile_of, width_of
from dwr_rewrite.recipe import Packing
from dwr_rewrite.spec import Pads

aten = torch.ops.aten


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
    if _is_last(weight):
        last = other.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        return last.movedim(-1, 1)
    return other.contiguous()


def _is_last(weight: Tensor) -> bool:
    return weight.dim() > 3 and weight.stride(1) == 1


def _blank(weight: Tensor, packing: Packing) -> Tensor:
    """Memory as the packed weight has it, with nothing in it."""
    first, second, *kernel = packing.packed
    if packing.width > 1 and _is_last(weight):
        return weight.new_empty((first, *kernel, second)).movedim(-1, 1)
    return weight if packing.width == 1 else weight.new_empty(packing.packed)


class _Depthwise(torch.autograd.Function):
    """A convolution in one form, with gradients in others; that of the weight is compact."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, forms: Forms
    ) -> Tensor:
        return _in_form(x, weight, bias, geometry, forms.forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.geometry, ctx.forms = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if for_x:
            grad_x = gradient_of(gradient, x, weight, ctx.geometry, ctx.forms.grad_input, 0)
        form = ctx.forms.grad_weight
        if for_weight and for_bias and isinstance(form, str):  # both from one reading
            grad_weight, grad_bias = _by_kernel(gradient, x, weight, ctx.geometry, form, bias=True)
        elif for_weight:
            grad_weight = gradient_of(gradient, x, weight, ctx.geometry, form, 1)
        if for_bias and grad_bias is None:
            grad_bias = gradient.sum([0, *range(2, gradient.dim())])
        return grad_x, grad_weight, grad_bias, None, None


def _in_form(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, form: Form
) -> Tensor:
    """The convolution of a batch with a compact weight."""
    if isinstance(form, str):
        call = geometry.call(geometry.lengths(x.shape[2:]))
        y = ops.depthwise(x, weight, None, bias, *call, "none", tile_of(form))
        # In one dimension torch's result is contiguous, and a model may take views of it.
        return y.contiguous() if x.dim() == 3 else y
    packed = pack(weight, geometry.packing(form))
    return aten.convolution(x, packed, bias, *geometry.arguments(form))


def gradient_of(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, form: Form, which: int
) -> Tensor:
    """One gradient of the convolution: 0 of the input, 1 of the weight, which is compact.

    Only the shapes and layouts of ``x`` (for 0) and of ``weight`` (for 1) count.
    """
    if isinstance(form, str) and which:
        return _by_kernel(gradient, x, weight, geometry, form, bias=False)[0]
    if isinstance(form, str):
        call = geometry.call(x.shape[2:], reduce=True)
        return ops.depthwise(gradient, weight, None, None, *call, "none", tile_of(form))
    packing, mask = geometry.packing(form), [which == 0, which == 1, False]
    packed = _blank(weight, packing) if which else pack(weight, packing)
    found = aten.convolution_backward(
        gradient, x, packed, None, *geometry.arguments(form), mask
    )[which]  # fmt: skip
    return unpack(found, packing) if which else found


def _by_kernel(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, form: str, *, bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight and, if wanted, of the bias."""
    _, *call, _ = geometry.call(())
    return ops.depthwise_weight(x, gradient, [*weight.shape], *call, bias=bias, tile=tile_of(form))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, forms: Forms
) -> Tensor:
    """The depthwise convolution of ``x`` [N, C, ...] (or [C, ...]) with a compact ``weight``.

    Autocast casts the compact weight before it is packed. Where no gradient is wanted it is one
    convolution in the form of the forward. Where TorchScript records it, or tangents flow forward,
    it consists of torch's own operators: a kernel of ours is then the depthwise convolution.
    """
    x, weight, bias = _autocast(x, weight, bias)
    if x.dim() == weight.dim() - 1:  # no batch
        return convolve(x.unsqueeze(0), weight, bias, geometry, forms).squeeze(0)
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    tracing: bool = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    tangents = getattr(forward_ad, "_current_level", -1) >= 0
    if tracing or tangents:
        return _in_form(x, weight, bias, geometry, width_of(forms.forward))
    if forms.is_operator or not (wanted and torch.is_grad_enabled()):
        return _in_form(x, weight, bias, geometry, forms.forward)
    return _Depthwise.apply(x, weight, bias, geometry, forms)


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


def pad(x: Tensor, pads: Pads, mode: str = "zeros") -> Tensor:
    """Pads the spatial axes of ``x``; ``mode`` as in ``nn.Conv2d.padding_mode``."""
    if not pads:
        return x
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, mode="constant" if mode == "zeros" else mode)
