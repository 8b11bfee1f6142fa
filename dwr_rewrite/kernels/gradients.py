"""Backward formulas of the two operators. They are made of the same two, so they nest.

The map is linear in input and in weight: the gradient of its input is its adjoint, that of its
weight is ``depthwise_weight``. An epilogue's scale is folded into the weight, which is small; by
the same linearity its own gradient is <weight, gradient of the weight>, channel by channel.
"""

# pyright: reportPrivateUsage=false
# ruff: noqa: SLF001
# A kernel of the dispatch key Autograd needs three names that torch keeps to itself.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dwr_rewrite.kernels.reference import channel_sums, wide

aten = torch.ops.aten
_BY_OUTPUT = ("relu", "relu6")
"""Activations whose derivative the output tells. Before any other, u is computed once more."""


def differentiable(
    op: Any, function: type[torch.autograd.Function], composite: Callable[..., Any]
) -> Callable[..., Any]:
    """The kernel of ``op`` under autograd.

    ``torch.library.register_autograd`` would raise within torch.func.grad and jvp and in forward
    mode. There the operator is differentiated as ``composite``, which is made of aten.
    """

    def run(*arguments: Any) -> Any:
        forward_mode: bool = getattr(forward_ad, "_current_level", -1) >= 0
        if forward_mode or torch._C._are_functorch_transforms_active():
            return composite(*arguments)
        wanted = any(isinstance(x, Tensor) and x.requires_grad for x in arguments[:4])
        if wanted and torch.is_grad_enabled():
            return function.apply(*arguments)
        return _below(op, arguments)

    return run


def _below(op: Any, arguments: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


class Depthwise(torch.autograd.Function):
    """``dwr::depthwise``."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Keeps what the wanted gradients need, and no more."""
        output = _below(torch.ops.dwr.depthwise.default, inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        """Gradients of input, weight, scale and bias."""
        return _depthwise(ctx, *grad_outputs)


class DepthwiseWeight(torch.autograd.Function):
    """``dwr::depthwise_weight``."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Keeps each tensor that the gradient of the other one needs."""
        x, gradient, _, *geometry, _, _ = inputs
        x_wanted, gradient_wanted = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if gradient_wanted else None, gradient if x_wanted else None)
        ctx.x_size, ctx.size, ctx.geometry = x.shape[2:], gradient.shape[2:], geometry
        return _below(torch.ops.dwr.depthwise_weight.default, inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        """What comes in acts as the weight and the bias of a map."""
        weight, bias = grad_outputs
        x, gradient = ctx.saved_tensors
        *steps, groups, adjoint = ctx.geometry
        x_grad = gradient_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = torch.ops.dwr.depthwise(
                gradient, weight, None, None, ctx.x_size, *steps, groups, not adjoint, True,
                "none", "",
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            added = bias if bias.numel() else None
            gradient_grad = torch.ops.dwr.depthwise(
                x, weight, None, added, ctx.size, *steps, groups, adjoint, False, "none", ""
            )
        return x_grad, gradient_grad, *(None,) * 8


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, scale, bias, _, *geometry, groups, adjoint, reduce, activation, _ = inputs
    x_wanted, weight_wanted, scale_wanted, _ = ctx.needs_input_grad[:4]
    again = activation not in ("none", *_BY_OUTPUT)
    ctx.save_for_backward(
        x if weight_wanted or scale_wanted or again else None,
        weight if x_wanted or scale_wanted or again else None,
        scale if x_wanted or weight_wanted or again else None,
        bias if again else None,
        output if activation in _BY_OUTPUT else None,
    )
    ctx.spatial, ctx.size, ctx.weight_shape = x.shape[2:], output.shape[2:], weight.shape
    ctx.types = [None if t is None else t.dtype for t in (weight, scale, bias)]
    ctx.geometry, ctx.activation = (*geometry, groups, adjoint, reduce), activation


def _depthwise(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, weight, scale, bias, output = ctx.saved_tensors
    if ctx.activation != "none":
        u = output
        if ctx.activation not in _BY_OUTPUT:
            u = torch.ops.dwr.depthwise(
                x, weight, scale, bias, ctx.size, *ctx.geometry, "none", ""
            )  # fmt: skip
        gradient = _before(gradient, u, ctx.activation)
    *steps, groups, adjoint, reduce = ctx.geometry
    factor = None if scale is None else _over_filters(scale, ctx.weight_shape, groups, reduce)
    x_grad = None
    if ctx.needs_input_grad[0]:
        x_grad = torch.ops.dwr.depthwise(
            gradient, _times(weight, factor), None, None, ctx.spatial, *steps, groups, not adjoint,
            not reduce, "none", "",
        )  # fmt: skip
    return x_grad, *_parameters(ctx, x, weight, factor, gradient), *(None,) * 9


def _parameters(
    ctx: Any, x: Tensor, weight: Tensor, factor: Tensor | None, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of weight, scale and bias, from one reading of the activations."""
    _, weight_wanted, scale_wanted, bias_wanted = ctx.needs_input_grad[:4]
    *steps, groups, adjoint, reduce = ctx.geometry
    weight_type, scale_type, bias_type = ctx.types
    weight_grad = scale_grad = sums = None
    fused = bias_wanted and not adjoint and not reduce
    if weight_wanted or scale_wanted:
        pair = (gradient, x) if reduce else (x, gradient)
        found, sums = torch.ops.dwr.depthwise_weight(
            *pair, ctx.weight_shape, *steps, groups, adjoint != reduce, fused, ""
        )
        if weight_wanted:
            weight_grad = _times(found, factor).to(weight_type)
        if scale_wanted:
            scale_grad = _per_channel(found, weight, groups, reduce).to(scale_type)
    if not bias_wanted:
        return weight_grad, scale_grad, None
    if sums is None or not fused:
        sums = channel_sums(gradient, True)
    return weight_grad, scale_grad, sums.to(bias_type)


def _over_filters(scale: Tensor, weight_shape: Any, groups: int, reduce: bool) -> Tensor:
    """A factor for each output channel as one for each filter, beside the weight."""
    filters = weight_shape[0] * weight_shape[1]
    if reduce:
        scale = scale[:, None].expand(groups, filters // groups)
    return scale.reshape(*weight_shape[:2], *(1,) * (len(weight_shape) - 2))


def _times(weight: Tensor, factor: Tensor | None) -> Tensor:
    return weight if factor is None else (weight * factor).to(weight.dtype)


def _per_channel(found: Tensor, weight: Tensor, groups: int, reduce: bool) -> Tensor:
    """<found, weight> over the filters of an output channel."""
    product = found.to(wide(found.dtype)) * weight
    return product.reshape(groups if reduce else groups * _multiplier(weight, groups), -1).sum(1)


def _multiplier(weight: Tensor, groups: int) -> int:
    return weight.shape[0] * weight.shape[1] // groups


def _before(gradient: Tensor, u: Tensor, activation: str) -> Tensor:
    """The gradient before an activation of ``u``; for relu and relu6 its output serves as well."""
    if activation == "relu":
        return aten.threshold_backward(gradient, u, 0)
    if activation == "relu6":
        return aten.hardtanh_backward(gradient, u, 0, 6)
    if activation == "hardswish":
        return aten.hardswish_backward(gradient, u)
    if activation != "silu":
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        return aten.gelu_backward(gradient, u, approximate=approximate)
    if not torch.is_grad_enabled():
        return aten.silu_backward(gradient, u)
    s = torch.sigmoid(u.to(wide(u.dtype)))  # aten's own formula has no derivative
    return (gradient * s * (1 + u * (1 - s))).to(gradient.dtype)
