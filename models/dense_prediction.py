"""Networks that give a map per input: segmentation and restoration."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks import Inverted, conv, conv_norm, depthwise
from models.entry import Entry


class DeepLab(nn.Module):
    """MobileNetV3 with dilated 5x5 blocks in place of its last stride, and a separable ASPP.

    Chen et al., 2018, arXiv:1802.02611; backbone as in Howard et al., 2019, arXiv:1905.02244.
    """

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv_norm(3, 16, 3, 2, act=nn.Hardswish),
            Inverted(16, 24, 3, 2),
            Inverted(24, 32, 5, 2, excite=True),
            Inverted(32, 32, 5, dilation=2, excite=True, act=nn.Hardswish),
            Inverted(32, 32, 5, dilation=2, excite=True, act=nn.Hardswish),
        )
        self.pyramid = nn.ModuleList(
            nn.Sequential(depthwise(32, 3, dilation=rate), conv_norm(32, 32, 1))
            for rate in (6, 12, 18)
        )
        self.head = nn.Sequential(
            conv_norm(96, 32, 1), depthwise(32, 3), conv(32, classes, 1, bias=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.backbone(x)
        pyramid = torch.cat([level(features) for level in self.pyramid], 1)
        return F.interpolate(self.head(pyramid), x.shape[-2:], mode="bilinear")


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of an NCHW tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleGate(nn.Module):
    """Half of the channels times the other half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1)
        return left * right


class NafBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.spatial = nn.Sequential(
            ChannelNorm(channels),
            conv(channels, wide, 1, bias=True),
            conv(wide, wide, 3, groups=wide, bias=True),
            SimpleGate(),
        )
        self.attend = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(channels, channels, 1, bias=True))
        self.project = conv(channels, channels, 1, bias=True)
        self.mlp = nn.Sequential(
            ChannelNorm(channels),
            conv(channels, wide, 1, bias=True),
            SimpleGate(),
            conv(channels, channels, 1, bias=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.spatial(x)
        x = x + self.project(y * self.attend(y))
        return x + self.mlp(x)


def nafnet() -> nn.Module:
    """Chen et al., 2022, arXiv:2204.04676: 3x3 with bias between a LayerNorm and a gate."""
    return nn.Sequential(
        conv(3, 16, 3, bias=True),
        NafBlock(16),
        conv(16, 32, 2, 2, bias=True),
        NafBlock(32),
        conv(32, 64, 1),
        nn.PixelShuffle(2),
        NafBlock(16),
        conv(16, 3, 3, bias=True),
    )


def learned_upsampling() -> nn.Module:
    """Depthwise transposed convolutions that start as bilinear upsampling (FCN, CenterNet)."""
    return nn.Sequential(
        conv_norm(3, 32, 3, 4),
        nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=32, bias=False),
        conv_norm(32, 16, 1),
        nn.ConvTranspose2d(16, 16, 3, 2, 1, output_padding=1, groups=16),
        conv(16, 5, 1, bias=True),
    )


IMAGE = ((1, 3, 64, 64),)
ENTRIES = (
    Entry("deeplab", DeepLab, IMAGE, 8, family="DeepLab: dilated 5x5, separable ASPP"),
    Entry("nafnet", nafnet, ((1, 3, 32, 32),), 3, family="NAFNet: 3x3 with bias, SimpleGate"),
    Entry("learned_upsampling", learned_upsampling, IMAGE, 2, family="FCN: ConvTranspose2d"),
)
