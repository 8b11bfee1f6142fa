"""Networks with large kernels, and those whose training form sums parallel branches."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks import Branches, Residual, Size, classifier, conv, conv_norm, depthwise
from models.entry import Entry

IMAGE = ((1, 3, 64, 64),)


def branch(channels: int, kernel: Size, stride: int = 1, multiplier: int = 1, dilation: int = 1):
    """Depthwise convolution and BatchNorm: what a reparameterization later adds up."""
    return depthwise(channels, kernel, stride, multiplier=multiplier, dilation=dilation, act=None)


def mobileone() -> nn.Module:
    """Vasu et al., 2023, arXiv:2206.04040: four 3x3, a 1x1 scale and an identity branch."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        branches = [*(branch(inputs, 3, stride) for _ in range(4)), branch(inputs, 1, stride)]
        if stride == 1:
            branches.append(nn.BatchNorm2d(inputs))
        return [Branches(*branches), nn.ReLU(), conv_norm(inputs, outputs, 1)]

    stem = conv_norm(3, 32, 3, 2)
    return nn.Sequential(stem, *block(32, 64, 2), *block(64, 64, 1), classifier(64))


def repvit() -> nn.Module:
    """Wang et al., 2024, arXiv:2307.09283: 3x3 + 1x1 with bias + identity, then a norm."""

    def mixer(channels: int) -> list[nn.Module]:
        scale = conv(channels, channels, 1, groups=channels, bias=True)
        token = Branches(branch(channels, 3), scale, nn.Identity())
        mlp = Residual(
            conv_norm(channels, 2 * channels, 1, act=nn.GELU), conv(2 * channels, channels, 1)
        )
        return [token, nn.BatchNorm2d(channels), mlp]

    down = [branch(32, 3, 2), conv_norm(32, 64, 1, act=None)]
    return nn.Sequential(conv_norm(3, 32, 3, 4), *mixer(32), *down, *mixer(64), classifier(64))


def fastvit() -> nn.Module:
    """Vasu et al., 2023, arXiv:2303.14189: 7x7 of stride 2 with two outputs per channel."""

    def down(channels: int) -> nn.Module:
        large = branch(channels, 7, 2, multiplier=2)
        return nn.Sequential(
            Branches(large, branch(channels, 3, 2, multiplier=2)),
            conv_norm(2 * channels, 2 * channels, 1, act=nn.GELU),
        )

    def mixer(channels: int) -> nn.Module:
        mix = Branches(branch(channels, 3), branch(channels, 1), nn.BatchNorm2d(channels))
        return nn.Sequential(
            mix, Residual(branch(channels, 7), conv(channels, channels, 1, bias=True))
        )

    stem = conv_norm(3, 32, 3, 2, act=nn.GELU)
    return nn.Sequential(stem, mixer(32), down(32), mixer(64), down(64), classifier(128))


def convmixer() -> nn.Module:
    """Trockman and Kolter, 2022, arXiv:2201.09792: 9x9 between patches and pointwise."""

    def block(channels: int) -> list[nn.Module]:
        mix = Residual(
            conv(channels, channels, 9, groups=channels, bias=True),
            nn.GELU(),
            nn.BatchNorm2d(channels),
        )
        return [mix, conv_norm(channels, channels, 1, act=nn.GELU)]

    stem = conv_norm(3, 64, 4, 4, act=nn.GELU)
    return nn.Sequential(stem, *block(64), *block(64), *block(64), classifier(64))


class InceptionMixer(nn.Module):
    """3x3, 1x11 and 11x1 on an eighth of the channels each; the rest passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 8
        self.sizes = (channels - 3 * part, part, part, part)
        self.convs = nn.ModuleList(
            conv(part, part, kernel, groups=part, bias=True) for kernel in (3, (1, 11), (11, 1))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest, *parts = x.split(self.sizes, 1)
        mixed = (layer(part) for layer, part in zip(self.convs, parts, strict=True))
        return torch.cat([rest, *mixed], 1)


def inception_next() -> nn.Module:
    """Yu et al., 2024, arXiv:2303.16900."""

    def block(channels: int) -> nn.Module:
        return Residual(
            InceptionMixer(channels),
            nn.BatchNorm2d(channels),
            conv(channels, 2 * channels, 1, bias=True),
            nn.GELU(),
            conv(2 * channels, channels, 1, bias=True),
        )

    stem = conv_norm(3, 64, 4, 4, act=None)
    down = conv(64, 96, 2, 2, bias=True)
    return nn.Sequential(stem, block(64), down, block(96), classifier(96))


def replknet() -> nn.Module:
    """Ding et al., 2022, arXiv:2203.06717: 31x31 with a parallel 5x5, stem and transitions 3x3."""

    def block(channels: int, kernel: int) -> nn.Module:
        large = Branches(branch(channels, kernel), branch(channels, 5))
        inner = [conv_norm(channels, channels, 1), large, nn.ReLU(), conv(channels, channels, 1)]
        return Residual(*inner)

    stem = [conv_norm(3, 32, 3, 2), depthwise(32, 3), conv_norm(32, 32, 1), depthwise(32, 3, 2)]
    transition = [conv_norm(32, 64, 1), depthwise(64, 3, 2)]
    return nn.Sequential(*stem, block(32, 31), *transition, block(64, 29), classifier(64))


def unireplknet() -> nn.Module:
    """Ding et al., 2024, arXiv:2311.15599: 13x13 beside dilated 5, 9, 3, 3 and 3 wide branches."""
    dilated = ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7))

    def block(channels: int) -> nn.Module:
        branches = (branch(channels, size, dilation=step) for size, step in dilated)
        mix = Branches(branch(channels, 13), *branches)
        return Residual(mix, conv(channels, channels, 1, bias=True), nn.GELU())

    stem = conv_norm(3, 32, 4, 4, act=None)
    return nn.Sequential(stem, block(32), depthwise(32, 3, 2), block(32), classifier(32))


def slak() -> nn.Module:
    """Liu et al., 2023, arXiv:2207.03620: 51x5 + 5x51 + 5x5."""
    mix = Branches(branch(32, (51, 5)), branch(32, (5, 51)), branch(32, 5))
    stem = conv_norm(3, 32, 4, 4, act=None)
    return nn.Sequential(stem, Residual(mix, conv(32, 32, 1), nn.GELU()), classifier(32))


ENTRIES = (
    Entry("mobileone", mobileone, IMAGE, 8, family="MobileOne: 3x3 + 1x1 scale branches"),
    Entry("repvit", repvit, IMAGE, 3, family="RepViT: 3x3 + 1x1 scale branches"),
    Entry("fastvit", fastvit, IMAGE, 8, family="FastViT: 7x7 stride 2, multiplier 2"),
    Entry("convmixer", convmixer, IMAGE, 3, family="ConvMixer: 9x9"),
    Entry("inception_next", inception_next, IMAGE, 6, family="InceptionNeXt: 1x11 and 11x1"),
    Entry("replknet", replknet, IMAGE, 7, family="RepLKNet: 31x31"),
    Entry("unireplknet", unireplknet, IMAGE, 13, family="UniRepLKNet: dilated branches"),
    Entry("slak", slak, IMAGE, 3, family="SLaK: 51x5 and 5x51"),
)
