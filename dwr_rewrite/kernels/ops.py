"""The operators ``dwr::depthwise`` and ``dwr::depthwise_weight``; importing this registers them.

They are opaque to torch.compile and torch.export, and no triton_ops, which show their launches:

- A tile, how wide a lane loads, the splits of a gradient and the shape of its scratch follow from
  the sizes of a call. A traced launch has those of the sizes seen first, or a guard on each size;
  an opaque one chooses at every call, and one graph serves all sizes.
- Tracing a launch analyses which arguments the kernel writes. Where that fails, torch warns and
  takes every argument to be written, the weights too.
- Triton's interpreter cannot be traced, and the fake implementation of a triton_op is its body.

The price is the dispatch of a Python operator at each call from a compiled graph, none under CUDA
graphs, and that Inductor's ahead-of-time packages, which run without Python, cannot hold it:
:func:`decompositions` leads to aten. They are defined by ``torch.library.Library`` and not by
``custom_op``, because the autograd that this registers refuses torch.func and forward mode; see
:func:`dwr_rewrite.kernels.gradients.differentiable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dwr_rewrite.kernels import checks, gradients, launch, reference, transforms
from dwr_rewrite.kernels.launch import allow_atomics, available
from dwr_rewrite.kernels.layout import empty
from dwr_rewrite.kernels.problem import Problem

__all__ = ["allow_atomics", "available", "decompositions", "depthwise", "depthwise_weight"]

_library = torch.library.Library("dwr", "FRAGMENT")


def _operator(
    schema: str, fake: Callable[..., Any], function: type[torch.autograd.Function],
    composite: Callable[..., Any], rule: Callable[..., Any],
) -> Callable[[Callable[..., Any]], Any]:  # fmt: skip
    """Registers a function as an operator, which takes its place."""

    def register(implementation: Callable[..., Any]) -> Any:
        name = implementation.__name__
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
        _library.define(name + schema, tags=tags)
        op = getattr(torch.ops.dwr, name).default
        _library.impl(op, implementation, "CompositeExplicitAutograd")
        _library.impl(op, gradients.differentiable(op, function, composite), "Autograd")
        torch.library.register_fake(op, fake, lib=_library)
        torch.library.register_vmap(op, rule, lib=_library)
        transforms.register_autocast(_library, op)
        return op

    return register


# Of sizes that are numbers; those that are traced cannot be looked up.
_problem = lru_cache(maxsize=4096)(checks.problem)


def _checked(
    describe: Callable[..., Problem], x: Tensor, weight: Tensor, scale: Tensor | None,
    bias: Tensor | None, size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, adjoint: bool, reduce: bool, activation: str,
) -> Problem:  # fmt: skip
    checks.operands(x, weight=weight)
    checks.activation(activation)
    problem = describe(
        x.shape, weight.shape, tuple(size), tuple(stride), tuple(padding), tuple(dilation), groups,
        adjoint, reduce,
    )  # fmt: skip
    checks.per_channel(x, problem.out_channels, scale=scale, bias=bias)
    return problem


def _checked_weight(
    describe: Callable[..., Problem], x: Tensor, gradient: Tensor, weight_shape: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    adjoint: bool,
) -> Problem:  # fmt: skip
    checks.operands(x, gradient=gradient)
    problem = describe(
        x.shape, tuple(weight_shape), tuple(gradient.shape[2:]), tuple(stride), tuple(padding),
        tuple(dilation), groups, adjoint, False,
    )  # fmt: skip
    checks.gradient(x, gradient, problem)
    return problem


def _fake(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, size: Sequence[int],
    *rest: Any,
) -> Tensor:  # fmt: skip
    problem = _checked(checks.problem, x, weight, scale, bias, size, *rest[:-1])
    return empty(x, problem.out_channels, size)


def _fake_weight(
    x: Tensor, gradient: Tensor, weight_shape: Sequence[int], *rest: Any
) -> tuple[Tensor, Tensor]:
    *geometry, bias, _ = rest
    problem = _checked_weight(checks.problem, x, gradient, weight_shape, *geometry)
    return x.new_empty(weight_shape), x.new_empty((problem.out_channels if bias else 0,))


@_operator(
    """(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, SymInt[] size, int[] stride,
    int[] padding, int[] dilation, int groups, bool adjoint, bool reduce, str activation, str tile
    ) -> Tensor""",
    _fake, gradients.Depthwise, reference.depthwise, transforms.vmap_depthwise,
)  # fmt: skip
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
    tile: str,
) -> Tensor:
    """``activation(map(x, weight) * scale + bias)``, accumulated in float32 and rounded once.

    The map is one of the four of :class:`~dwr_rewrite.kernels.problem.Problem`; float64 is
    accumulated in float64.

    Args:
        x: [N, C or C*m, spatial...], one to three spatial axes, any strides, N may be 0.
        weight: [C*m, 1, k...] or [C, m, k...] in the type of ``x``.
        scale: one factor for each output channel, of any floating type.
        bias: one summand for each output channel, of any floating type.
        size: length of the output along each axis.
        stride: step along each.
        padding: in front of each; what is behind follows from ``size``. Negative crops.
        dilation: distance between taps along each.
        groups: C.
        adjoint: the taps scatter instead of gather.
        reduce: ``x`` has C*m channels, of which the m of a group are summed.
        activation: one of :data:`~dwr_rewrite.kernels.problem.ACTIVATIONS`.
        tile: text of a :class:`~dwr_rewrite.kernels.tile.Tile`; empty for the heuristic's.

    Returns:
        [N, C*m or C, size...] in the type and the memory format of ``x``.

    Raises:
        DwrError: arguments that do not go together.
    """
    problem = _checked(
        _problem, x, weight, scale, bias, size, stride, padding, dilation, groups, adjoint, reduce,
        activation,
    )  # fmt: skip
    if available(x.device):
        return launch.depthwise(x, weight, scale, bias, size, problem, activation, tile)
    return reference.depthwise(
        x, weight, scale, bias, size, stride, padding, dilation, groups, adjoint, reduce,
        activation, tile,
    )  # fmt: skip


@_operator(
    """(Tensor x, Tensor gradient, int[] weight_shape, int[] stride, int[] padding, int[] dilation,
    int groups, bool adjoint, bool bias, str tile) -> (Tensor, Tensor)""",
    _fake_weight, gradients.DepthwiseWeight, reference.depthwise_weight,
    transforms.vmap_depthwise_weight,
)  # fmt: skip
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
    tile: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias of a map that is not ``reduce``; bit for bit the same each time.

    Args:
        x: input of the map, [N, C, spatial...].
        gradient: of its output, [N, C*m, spatial...], in the type of ``x``.
        weight_shape: [C*m, 1, k...] or [C, m, k...].
        stride: as in :func:`depthwise`, like all that follow.
        padding: in front.
        dilation: distance between taps.
        groups: C.
        adjoint: of a transposed convolution.
        bias: whether that of the bias is wanted.
        tile: text of a tile, or empty.

    Returns:
        (weight_shape contiguous, [C*m] or else [0]) in the type of ``x``.

    Raises:
        DwrError: arguments that do not go together.
    """
    problem = _checked_weight(
        _problem, x, gradient, weight_shape, stride, padding, dilation, groups, adjoint
    )
    if available(x.device):
        return launch.depthwise_weight(x, gradient, weight_shape, problem, bias, tile)
    return reference.depthwise_weight(
        x, gradient, weight_shape, stride, padding, dilation, groups, adjoint, bias, tile
    )


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Both operators in aten: a table for ``ExportedProgram.run_decompositions`` or ``make_fx``."""
    return {
        torch.ops.dwr.depthwise.default: reference.depthwise,
        torch.ops.dwr.depthwise_weight.default: reference.depthwise_weight,
    }
