"""Pieces that the hand-written networks share."""

from __future__ import annotations

import torch
from torch import nn

Size = int | tuple[int, ...]
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv(
    inputs: int,
    outputs: int,
    kernel: Size,
    stride: Size = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    rank: int = 2,
    bias: bool = False,
) -> nn.Module:
    """A convolution padded so that an odd kernel of stride 1 keeps the size."""
    sizes = (kernel,) * rank if isinstance(kernel, int) else kernel
    padding = tuple(dilation * (size - 1) // 2 for size in sizes)
    return CONVS[rank](
        inputs, outputs, sizes, stride, padding, dilation=dilation, groups=groups, bias=bias
    )


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: Size,
    stride: Size = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    rank: int = 2,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, BatchNorm and an activation."""
    main = conv(inputs, outputs, kernel, stride, groups=groups, dilation=dilation, rank=rank)
    return nn.Sequential(main, NORMS[rank](outputs), *([act()] if act else []))


def depthwise(
    channels: int,
    kernel: Size,
    stride: Size = 1,
    *,
    multiplier: int = 1,
    dilation: int = 1,
    rank: int = 2,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Depthwise convolution, BatchNorm and an activation."""
    return conv_norm(
        channels,
        channels * multiplier,
        kernel,
        stride,
        groups=channels,
        dilation=dilation,
        rank=rank,
        act=act,
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, rank: int = 2) -> None:
        super().__init__()
        self.reduce = conv(channels, channels // 4, 1, rank=rank, bias=True)
        self.expand = conv(channels // 4, channels, 1, rank=rank, bias=True)
        self.axes = tuple(range(2, 2 + rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = self.reduce(x.mean(self.axes, keepdim=True)).relu()
        return x * self.expand(squeezed).sigmoid()


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Branches(nn.Module):
    """The sum of parallel branches, as before a reparameterization."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


class Inverted(nn.Module):
    """Inverted bottleneck: expand, depthwise, squeeze-and-excitation, project."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Size,
        stride: Size = 1,
        *,
        expand: int = 4,
        excite: bool = False,
        dilation: int = 1,
        rank: int = 2,
        act: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        self.layers = nn.Sequential(
            conv_norm(inputs, hidden, 1, rank=rank, act=act),
            depthwise(hidden, kernel, stride, dilation=dilation, rank=rank, act=act),
            *([SqueezeExcite(hidden, rank)] if excite else []),
            conv_norm(hidden, outputs, 1, rank=rank, act=None),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def classifier(channels: int, rank: int = 2, classes: int = 10) -> nn.Sequential:
    """Global average pool and a linear layer."""
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[rank]
    return nn.Sequential(pool(1), nn.Flatten(), nn.Linear(channels, classes))
