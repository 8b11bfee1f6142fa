"""The convolutions of every way, made of the product's own parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks._layers_cudnn import forced_by, operator
from benchmarks._layers_operands import Operands
from benchmarks._layers_work import Group, Way
from dwr_rewrite.kernels import ops
from dwr_rewrite.passes.fx.functional import convolve, gradient_of, pack
from dwr_rewrite.passes.fx.geometry import Forms, Geometry

aten, dwr = torch.ops.aten, torch.ops.dwr
Call = Callable[[int], Tensor]

MODES = {"compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""torch.compile's mode; the clock captures the graphs itself."""

WHICH = {"grad_input": 0, "grad_weight": 1}
"""Of the results of a backward."""


def forward(
    x: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry, width: int
) -> Tensor:
    return aten.convolution(x, packed, bias, *geometry.arguments(width))


def call_of(group: Group, way: Way, given: Operands, rotated: int) -> Call:
    """A call that takes the operands in turn, and no gradient of its own.

    Args:
        group: what is run.
        way: how.
        given: the operands in the layout of ``way``.
        rotated: how many copies of a precomputed weight take turns.
    """
    if way.is_kernel:
        return _kernel(group, given, way.tile)
    if way.setting == "cudnn" and forced_by(group, given) == "operator":
        return operator(group, given)
    if way.setting in MODES:
        return _compiled(group, given, MODES[way.setting])
    geometry, width = group.layer.geometry, way.width
    if group.direction != "forward":
        which = WHICH[group.direction]
        return lambda i: gradient_of(
            _turn(given.gradient, i), _turn(given.x, i), given.weight, geometry, width, which
        )
    if way.precomputed or way.form == "keep":
        stored = [pack(given.weight, geometry.packing(width)) for _ in range(rotated)]
        return lambda i: forward(_turn(given.x, i), _turn(stored, i), given.bias, geometry, width)
    widths = Forms(forward=width)
    return lambda i: convolve(_turn(given.x, i), given.weight, given.bias, geometry, widths)


def _kernel(group: Group, given: Operands, tile: str) -> Call:
    """Our own operators, as ``dwr_rewrite.nn`` and a rewritten model call them."""
    layer, transposed = group.layer, group.layer.transposed
    window = (layer.stride, layer.padding, layer.dilation, layer.channels)
    if group.direction == "forward":
        size = layer.output_spatial
        return lambda i: dwr.depthwise(
            _turn(given.x, i), given.weight, None, given.bias, size, *window, transposed, False,
            "none", tile,
        )  # fmt: skip
    if group.direction == "grad_input":
        return lambda i: dwr.depthwise(
            _turn(given.gradient, i), given.weight, None, None, layer.spatial, *window,
            not transposed, True, "none", tile,
        )  # fmt: skip
    shape = layer.spec.weight_shape
    return lambda i: dwr.depthwise_weight(
        _turn(given.x, i), _turn(given.gradient, i), shape, *window, transposed, False, tile
    )[0]


def runs_by(device: torch.device) -> str:
    """What runs our kernels there."""
    if not ops.available(device):
        return "aten"
    return "Triton" if device.type == "cuda" else "Triton's interpreter"


def _turn(tensors: Sequence[Tensor], i: int) -> Tensor:
    return tensors[i % len(tensors)]


def _compiled(group: Group, given: Operands, mode: str) -> Call:
    geometry = group.layer.geometry

    def plain(x: Tensor, gradient: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
        if gradient is None:
            return forward(x, weight, bias, geometry, 1)
        return gradient_of(gradient, x, weight, geometry, 1, WHICH[group.direction])

    run = torch.compile(plain, mode=mode, dynamic=False, fullgraph=True)
    gradients: Sequence[Tensor | None] = given.gradient or [None]
    return lambda i: run(_turn(given.x, i), gradients[i % len(gradients)], given.weight, given.bias)
