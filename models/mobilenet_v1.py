"""MobileNetV1 (Howard et al., 2017, arXiv:1704.04861, table 1) in plain torch."""

from __future__ import annotations

import torch
from torch import nn

from models.entry import Entry

# (output channels at width 1, stride) of each depthwise separable block
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    *((512, 1),) * 5,
    (1024, 2), (1024, 1),
)  # fmt: skip


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class MobileNetV1(nn.Module):
    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = int(32 * width)
        layers = [conv_bn_relu(3, channels, 3, 2, 1)]
        for base, stride in BLOCKS:
            outputs = int(base * width)
            layers.append(conv_bn_relu(channels, channels, 3, stride, channels))
            layers.append(conv_bn_relu(channels, outputs, 1, 1, 1))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def entry(width: float = 1.0, size: int = 224, classes: int = 1000) -> Entry:
    return Entry(
        name="mobilenet_v1",
        architecture=lambda: MobileNetV1(width, classes),
        shapes=((1, 3, size, size),),
        depthwise=len(BLOCKS),
        family="MobileNetV1",
        exported=True,
    )


def build(seed: int = 0, width: float = 1.0, size: int = 224, classes: int = 1000) -> MobileNetV1:
    """MobileNetV1 in eval mode; the statistics of its BatchNorms are seeded and non-trivial."""
    module = entry(width, size, classes).build(seed).module
    assert isinstance(module, MobileNetV1)
    return module
