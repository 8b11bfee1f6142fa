"""Small networks that differ in how a depthwise convolution is padded or laid out in memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks import classifier, conv_norm, depthwise
from models.entry import Entry

IMAGE = ((1, 3, 45, 50),)  # odd, so that "same" of stride 2 pads one axis by more on one side


class Conv2dSame(nn.Conv2d):
    """TensorFlow's "same": the amount depends on the input, and may be uneven."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for axis in (1, 0):
            size, stride = x.shape[2 + axis], self.stride[axis]
            span = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(
            F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


def conv2d_same() -> nn.Module:
    """As the EfficientNets that were ported from TensorFlow (timm's tf_efficientnet)."""
    return nn.Sequential(
        Conv2dSame(3, 24, 3, 2, bias=False),
        nn.BatchNorm2d(24),
        nn.SiLU(),
        Conv2dSame(24, 24, 3, groups=24, bias=False),
        Conv2dSame(24, 24, 5, 2, groups=24, bias=False),
        nn.BatchNorm2d(24),
        nn.SiLU(),
        Conv2dSame(24, 24, 3, dilation=2, groups=24),
        classifier(24),
    )


def padding_modes() -> nn.Module:
    """nn.Conv2d and nn.Conv1d pad by F.pad first when the mode is not zeros."""
    layers: list[nn.Module] = [conv_norm(3, 16, 3, 2)]
    for mode in ("reflect", "circular", "replicate"):
        layers += [nn.Conv2d(16, 16, 5, padding=2, groups=16, padding_mode=mode), nn.SiLU()]
    one_axis = nn.Conv1d(16, 16, 3, padding="same", groups=16, padding_mode="circular")
    return nn.Sequential(*layers, nn.Flatten(2), one_axis, classifier(16, rank=1))


def even_same() -> nn.Module:
    """Even kernels with padding="same": one element more after than before."""
    return nn.Sequential(
        conv_norm(3, 16, 3, 2),
        nn.Conv2d(16, 16, 2, padding="same", groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 32, (4, 3), padding="same", dilation=(1, 2), groups=16),
        nn.ReLU(),
        nn.Conv2d(32, 32, 6, padding="same", groups=32, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding="valid", groups=32),
        classifier(32),
    )


class ChannelsLast(nn.Module):
    """A network whose weights and activations are channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm(3, 32, 3, 2),
            depthwise(32, 3, act=nn.ReLU6),
            conv_norm(32, 64, 1, act=nn.ReLU6),
            depthwise(64, 5, 2, act=nn.ReLU6),
            depthwise(64, 7, act=nn.ReLU6),
            classifier(64),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last))


class Unbatched(nn.Module):
    """One frame at a time, without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.down = nn.Conv1d(16, 16, 5, 2, groups=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = [self.down(self.conv(frame).relu().mean(-1)) for frame in x]
        return torch.stack(frames)


ENTRIES = (
    Entry("conv2d_same", conv2d_same, IMAGE, 3, family='"same" computed in a subclass'),
    Entry("padding_modes", padding_modes, IMAGE, 4, family="reflect, circular, replicate"),
    Entry("even_same", even_same, IMAGE, 4, family='even kernels, padding="same"'),
    Entry("channels_last", ChannelsLast, IMAGE, 3, family="channels_last memory format"),
    Entry("unbatched", Unbatched, ((1, 8, 20, 20),), 2, family="calls without a batch axis"),
)
