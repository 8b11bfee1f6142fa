"""Mobile classifiers, at reduced width and depth; kernels, strides and order are the papers'."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks import Inverted, classifier, conv, conv_norm, depthwise
from models.entry import Entry

IMAGE = ((1, 3, 64, 64),)


def mobilenet_v3() -> nn.Module:
    """Howard et al., 2019, arXiv:1905.02244: 3x3 and 5x5, squeeze-and-excitation, hard swish."""
    return nn.Sequential(
        conv_norm(3, 16, 3, 2, act=nn.Hardswish),
        Inverted(16, 16, 3, 1, expand=1),
        Inverted(16, 24, 3, 2),
        Inverted(24, 40, 5, 2, excite=True),
        Inverted(40, 40, 5, excite=True),
        Inverted(40, 64, 3, 2, act=nn.Hardswish),
        Inverted(64, 64, 5, excite=True, act=nn.Hardswish),
        Inverted(64, 96, 5, 2, excite=True, act=nn.Hardswish),
        conv_norm(96, 192, 1, act=nn.Hardswish),
        classifier(192),
    )


def mnasnet() -> nn.Module:
    """Tan et al., 2019, arXiv:1807.11626: a separable stem, then 3x3 and 5x5 blocks."""
    return nn.Sequential(
        conv_norm(3, 32, 3, 2),
        depthwise(32, 3),
        conv_norm(32, 16, 1, act=None),
        Inverted(16, 24, 3, 2, expand=3),
        Inverted(24, 24, 3, expand=3),
        Inverted(24, 40, 5, 2, expand=3, excite=True),
        Inverted(40, 80, 3, 2, expand=6),
        Inverted(80, 96, 5, 2, expand=6, excite=True),
        classifier(96),
    )


class MixedDepthwise(nn.Module):
    """Channels in equal parts, one kernel size for each."""

    def __init__(self, channels: int, kernels: tuple[int, ...], stride: int = 1) -> None:
        super().__init__()
        self.part = channels // len(kernels)
        self.convs = nn.ModuleList(
            conv(self.part, self.part, kernel, stride, groups=self.part) for kernel in kernels
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(self.part, 1)
        mixed = [layer(part) for layer, part in zip(self.convs, parts, strict=True)]
        return self.norm(torch.cat(mixed, 1)).relu()


def mixnet() -> nn.Module:
    """Tan and Le, 2019, arXiv:1907.09595: kernels from 3 to 11 within one layer."""
    return nn.Sequential(
        conv_norm(3, 16, 3, 2),
        conv_norm(16, 60, 1),
        MixedDepthwise(60, (3, 5, 7), 2),
        conv_norm(60, 24, 1, act=None),
        conv_norm(24, 80, 1),
        MixedDepthwise(80, (3, 5, 7, 9)),
        conv_norm(80, 40, 1, act=None),
        conv_norm(40, 120, 1),
        MixedDepthwise(120, (3, 5, 7, 9, 11), 2),
        classifier(120),
    )


class Shuffle(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass, or both halves shrink."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.stride = stride
        if stride > 1:
            self.left = nn.Sequential(depthwise(half, 3, 2, act=None), conv_norm(half, half, 1))
        self.right = nn.Sequential(
            conv_norm(half, half, 1), depthwise(half, 3, stride, act=None), conv_norm(half, half, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            left, right = self.left(x), self.right(x)
        else:
            left, right = x.chunk(2, 1)
            right = self.right(right)
        batch, half, height, width = right.shape
        paired = torch.stack([left, right], 2)  # the channel shuffle of two groups
        return paired.reshape(batch, 2 * half, height, width)


def shufflenet_v2() -> nn.Module:
    """Ma et al., 2018, arXiv:1807.11164: BatchNorm without activation after each depthwise."""
    return nn.Sequential(
        conv_norm(3, 24, 3, 2),
        conv_norm(24, 32, 1),
        Shuffle(64, 2),  # each half of the 64 sees all 32 channels
        Shuffle(64, 1),
        Shuffle(128, 2),
        Shuffle(128, 1),
        classifier(128),
    )


def separable(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = conv(inputs, inputs, 3, stride, groups=inputs, dilation=dilation)
    return nn.Sequential(nn.ReLU(), first, conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))


def xception() -> nn.Module:
    """Chollet, 2017, arXiv:1610.02357: no norm between depthwise and pointwise.

    The last blocks are dilated, as at output stride 16.
    """
    return nn.Sequential(
        conv_norm(3, 32, 3, 2),
        separable(32, 64),
        separable(64, 64, 2),
        separable(64, 96),
        separable(96, 96, 2),
        separable(96, 128, dilation=2),
        separable(128, 128, dilation=2),
        classifier(128),
    )


class LongRange(nn.Module):
    """The decoupled attention of GhostNetV2: 1x5, then 5x1, at half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(2),
            conv_norm(inputs, outputs, 1, act=None),
            depthwise(outputs, (1, 5), act=None),
            depthwise(outputs, (5, 1), act=None),
            nn.Sigmoid(),
            nn.Upsample(scale_factor=2),
        )
        self.primary = conv_norm(inputs, outputs // 2, 1)
        self.cheap = depthwise(outputs // 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1) * self.layers(x)


def ghostnet_v2() -> nn.Module:
    """Tang et al., 2022, arXiv:2211.12905."""
    return nn.Sequential(
        conv_norm(3, 16, 3, 2),
        LongRange(16, 48),
        depthwise(48, 5, 2, act=None),
        LongRange(48, 64),
        classifier(64),
    )


def nasnet() -> nn.Module:
    """Zoph et al., 2018, arXiv:1707.07012: each separable convolution twice, 3, 5 and 7 wide."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2)]
    for kernel in (3, 5, 7):
        for stride in (2, 1):
            layers += [nn.ReLU(), conv(32, 32, kernel, stride, groups=32), conv_norm(32, 32, 1)]
    return nn.Sequential(*layers, classifier(32))


def pp_ocr() -> nn.Module:
    """A text line recognizer: height and width shrink separately (PP-OCR, arXiv:2009.09941)."""
    return nn.Sequential(
        conv_norm(3, 16, 3, 2, act=nn.Hardswish),
        depthwise(16, 3, act=nn.Hardswish),
        conv_norm(16, 32, 1, act=nn.Hardswish),
        depthwise(32, 3, (2, 1), act=nn.Hardswish),
        conv_norm(32, 64, 1, act=nn.Hardswish),
        depthwise(64, 3, (1, 2), act=nn.Hardswish),
        depthwise(64, 5, (2, 1), act=nn.Hardswish),
        conv_norm(64, 96, 1, act=nn.Hardswish),
        classifier(96),
    )


ENTRIES = (
    Entry("mobilenet_v3", mobilenet_v3, IMAGE, 7, family="MobileNetV3: SE, hard swish"),
    Entry("mnasnet", mnasnet, IMAGE, 6, family="MNASNet: SE"),
    Entry("mixnet", mixnet, IMAGE, 12, family="MixNet: kernels 3 to 11 in one layer"),
    Entry("shufflenet_v2", shufflenet_v2, IMAGE, 6, family="ShuffleNetV2: channel shuffle"),
    Entry("xception", xception, IMAGE, 6, family="Xception: dilated at output stride 16"),
    Entry("ghostnet_v2", ghostnet_v2, IMAGE, 7, family="GhostNetV2: 1x5 and 5x1"),
    Entry("nasnet", nasnet, IMAGE, 6, family="NASNet: separable twice"),
    Entry("pp_ocr", pp_ocr, ((1, 3, 32, 96),), 4, family="PP-OCR: strides (2, 1) and (1, 2)"),
)
