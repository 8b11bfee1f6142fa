"""MobileNetV1's depthwise layers as the authors of Diagonalwise Refactorization coded them.

Qin, Zhang, Li, Zhang and Peng, 2018 (arXiv:1803.09926), after their PyTorch code: a trainable
weight and a fixed mask, both [C, C/g, 3, 3] with g = max(C/32, 1), multiplied in every forward, so
that weights, gradients and the optimizer's state are all as large as the packed weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._layers_calls import Call, aten
from benchmarks._layers_operands import Operands
from benchmarks._layers_shapes import Layer
from benchmarks._layers_work import Group
from dwr_rewrite.passes.fx.functional import pack
from dwr_rewrite.passes.fx.geometry import Geometry
from models.entry import is_depthwise
from models.mobilenet_v1 import BLOCKS

FORM = "paper"
WIDTH = 32
"""Channels in a group."""


def groups_of(channels: int) -> int:
    return max(channels // WIDTH, 1)


class Masked(nn.Module):
    """A depthwise convolution in the authors' form, of the same function."""

    mask: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        channels, (kernel,), (stride,) = conv.in_channels, {*conv.kernel_size}, {*conv.stride}
        self.groups, self.stride, self.padding = groups_of(channels), stride, kernel // 2
        packed, mask = packed_and_mask(conv.weight.detach(), geometry_of(conv))
        self.weight = nn.Parameter(packed)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=self.groups)


def geometry_of(conv: Any) -> Geometry:
    return Geometry(conv.in_channels, conv.kernel_size, 1, conv.stride, conv.padding, conv.dilation)


def packed_and_mask(weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The weight on the diagonal of its groups, and ones there."""
    packing = geometry.packing(geometry.channels // groups_of(geometry.channels))
    return pack(weight, packing), pack(torch.ones_like(weight), packing)


def as_published(model: nn.Module) -> nn.Module:
    """Puts the authors' form in the place of every depthwise convolution; the model itself."""
    for name, child in list(model.named_modules()):
        if is_depthwise(child):
            assert isinstance(child, nn.Conv2d)
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, Masked(child))
    return model


def call_of(group: Group, given: Operands) -> Call:
    """What autograd runs for one of these layers in one direction, the mask included."""
    geometry, direction = group.layer.geometry, group.direction
    weight, mask = packed_and_mask(given.weight, geometry)
    arguments = geometry.arguments(geometry.channels // groups_of(geometry.channels))
    if direction == "forward":
        return lambda i: aten.convolution(given.x[0], weight * mask, None, *arguments)
    masked, which = weight * mask, 0 if direction == "grad_input" else 1
    wanted = [which == 0, which == 1, False]

    def backward(i: int) -> Tensor:
        found = aten.convolution_backward(
            given.gradient[0], given.x[0], masked, None, *arguments, wanted
        )[which]
        return found if which == 0 else found * mask

    return backward


def layers(size: int, width: float = 1.0) -> list[Layer]:
    """The 13 depthwise convolutions on images of ``size`` x ``size``."""
    found: list[Layer] = []
    channels, side = int(32 * width), -(-size // 2)
    for base, stride in BLOCKS:
        strides = (stride, stride)
        found.append(Layer(channels, (3, 3), (side, side), strides, (1, 1), (1, 1)))
        channels, side = int(base * width), -(-side // stride)
    return found
