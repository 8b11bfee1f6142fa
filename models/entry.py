"""What a network of the table is, and how its weights are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A module in eval mode whose forward takes and returns tensors, with one example input."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A network of the table; `build` makes the module, nothing is downloaded.

    `shapes` are those of the inputs, batch first; `depthwise` is the number of calls of depthwise
    convolutions in one forward, which tests compare with what runs (`models.calls`). `family` says
    for which kind it stands. Tests export to ONNX, with both exporters, the networks that are
    `exported`; in those every call is a module of its own.
    """

    name: str
    architecture: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    depthwise: int
    input_names: tuple[str, ...] = ("x",)
    output_names: tuple[str, ...] = ("y",)
    family: str = ""
    exported: bool = False

    def build(self, seed: int = 0) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.architecture().eval().requires_grad_(False)
        randomize(module, self.shapes, seed)
        generator = torch.Generator().manual_seed(seed)
        inputs = tuple(torch.randn(shape, generator=generator) for shape in self.shapes)
        return Network(module, inputs, self.input_names, self.output_names)


def is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd)
        and module.groups == module.in_channels > 1
        and math.prod(module.kernel_size) > 1
    )


def count_depthwise(module: nn.Module) -> int:
    return sum(map(is_depthwise, module.modules()))


@torch.no_grad()
def randomize(module: nn.Module, shapes: tuple[Shape, ...], seed: int) -> None:
    """Give `module` seeded weights that keep activations O(1), and BatchNorm real statistics.

    The statistics are those of a random batch of `shapes`, disturbed, so that no BatchNorm is close
    to the identity and folding one into a convolution changes every weight.
    """
    generator = torch.Generator().manual_seed(seed)
    norms: list[_BatchNorm] = []
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            norms.append(child)
        if isinstance(child, _BatchNorm | nn.LayerNorm | nn.GroupNorm) and child.weight is not None:
            child.weight.uniform_(0.5, 1.5, generator=generator)
            if child.bias is not None:
                child.bias.normal_(0, 0.2, generator=generator)
        elif isinstance(child, _ConvNd | nn.Linear) and "weight" in child._parameters:  # noqa: SLF001
            gain = 2.0 if isinstance(child, _ConvNd) else 1.0  # half the variance dies in a ReLU
            child.weight.normal_(0, (gain / child.weight[0].numel()) ** 0.5, generator=generator)
            if child.bias is not None:
                child.bias.normal_(0, 0.1, generator=generator)
    if norms:
        _calibrate(module, norms, shapes, generator)


def _calibrate(
    module: nn.Module, norms: list[_BatchNorm], shapes: tuple[Shape, ...], gen: torch.Generator
) -> None:
    def disturbed_statistics(norm: nn.Module, args: tuple[torch.Tensor]) -> None:
        # Set before the norm runs, so that what follows is calibrated on what it will receive.
        var, mean = torch.var_mean(args[0], dim=[0, *range(2, args[0].dim())])
        norm.running_mean = mean + 0.2 * var.sqrt() * torch.randn(mean.shape, generator=gen)
        norm.running_var = var * (0.8 + 0.45 * torch.rand(var.shape, generator=gen))

    hooks = [norm.register_forward_pre_hook(disturbed_statistics) for norm in norms]
    module(*(torch.randn((4, *shape[1:]), generator=gen) for shape in shapes))
    for hook in hooks:
        hook.remove()
