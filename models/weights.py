"""Small networks that differ in where the weight of a depthwise convolution comes from."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from models.blocks import classifier, conv, conv_norm, depthwise
from models.entry import Entry

IMAGE = ((1, 3, 48, 48),)


def shared_weight() -> nn.Module:
    """Two convolutions, of dilation 1 and 2, that own one weight (TridentNet, arXiv:1901.01892)."""
    first = conv(32, 32, 3, groups=32, bias=True)
    second = conv(32, 32, 3, groups=32, dilation=2, bias=True)
    second.weight = first.weight
    stem = conv_norm(3, 32, 3, 2)
    return nn.Sequential(stem, first, nn.ReLU(), second, nn.ReLU(), classifier(32))


class TiedModule(nn.Module):
    """One module called three times at two resolutions, as a detection head over a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, 3, 2)
        self.head = depthwise(32, 3)
        self.score = conv(32, 6, 1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x)
        levels = (self.head(self.head(fine)), self.head(F.max_pool2d(fine, 2)))
        return torch.cat([self.score(level).flatten(2) for level in levels], 2)


class Resampler(nn.Module):
    """One windowed-sinc filter for all channels, expanded where it is used (Qwen2.5-Omni)."""

    def __init__(self, taps: int = 12) -> None:
        super().__init__()
        time = torch.arange(taps) - (taps - 1) / 2
        filter_ = torch.sinc(time / 2) * torch.hann_window(taps + 2, periodic=False)[1:-1]
        self.register_buffer("filter", (filter_ / filter_.sum()).view(1, 1, taps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        weight = self.filter.expand(channels, -1, -1)
        up = F.conv_transpose1d(
            F.pad(x, (5, 5), mode="replicate"), weight, stride=2, groups=channels
        )
        up = F.leaky_relu(2 * up[..., 15:-15], 0.1)
        return F.conv1d(F.pad(up, (5, 6), mode="replicate"), weight, stride=2, groups=channels)


class BlurPool(nn.Module):
    """Zhang, 2019, arXiv:1904.11486: a fixed binomial filter, here 2x2 and 4x4, repeated."""

    def __init__(self, channels: int, taps: int, stride: int) -> None:
        super().__init__()
        row = torch.tensor({2: [1.0, 1.0], 4: [1.0, 3.0, 3.0, 1.0]}[taps])
        window = row.outer(row) / row.sum() ** 2
        self.register_buffer("window", window.repeat(channels, 1, 1, 1))
        self.pad = ((taps - 1) // 2, taps // 2) * 2
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, self.pad, mode="reflect")
        return F.conv2d(padded, self.window, stride=self.stride, groups=x.shape[1])


def blur_pool() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 32, 3),
        BlurPool(32, 4, 2),
        conv_norm(32, 48, 3),
        BlurPool(48, 2, 1),
        BlurPool(48, 2, 2),
        classifier(48),
    )


def weight_norm() -> nn.Module:
    """Weights that a parametrization computes at every call."""
    first = parametrizations.weight_norm(nn.Conv1d(32, 32, 7, padding=3, groups=32))
    second = parametrizations.weight_norm(nn.ConvTranspose1d(32, 32, 4, 2, 1, groups=32))
    return nn.Sequential(conv(4, 32, 3, rank=1), first, nn.ELU(), second, conv(32, 1, 3, rank=1))


class StandardizedConv2d(nn.Conv2d):
    """Weight standardization (BiT, arXiv:1912.11370): the forward changes the weight first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * (var + 1e-5).rsqrt() / 3
        return self._conv_forward(x, weight, self.bias)


def weight_standardization() -> nn.Module:
    main = StandardizedConv2d(32, 32, 3, 2, 1, groups=32)
    return nn.Sequential(conv_norm(3, 32, 3, 2), main, nn.ReLU(), classifier(32))


class Correlation(nn.Module):
    """The template is the weight: Siamese tracking (SiamRPN++, arXiv:1812.11703).

    Each image of the batch has its own filters, so there are batch * channels groups.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = conv_norm(3, 16, 3, 2)
        self.score = conv(16, 2, 1, bias=True)

    def forward(self, search: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
        image, kernel = self.features(search), self.features(template)
        batch, channels = image.shape[:2]
        groups = batch * channels
        kernel = kernel.reshape(groups, 1, *kernel.shape[2:])
        scores = F.conv2d(image.reshape(1, groups, *image.shape[2:]), kernel, groups=groups)
        return self.score(scores.reshape(batch, channels, *scores.shape[2:]) / 8)


ENTRIES = (
    Entry("shared_weight", shared_weight, IMAGE, 2, family="weight owned by two convolutions"),
    Entry("tied_module", TiedModule, IMAGE, 3, family="one module called three times"),
    Entry("resampler", Resampler, ((1, 24, 40),), 2, family="buffer.expand at every call"),
    Entry("blur_pool", blur_pool, IMAGE, 3, family="BlurPool: fixed 2x2 and 4x4 buffers"),
    Entry("weight_norm", weight_norm, ((1, 4, 40),), 2, family="parametrized weight"),
    Entry(
        "weight_standardization",
        weight_standardization,
        IMAGE,
        1,
        family="weight changed in forward",
    ),
    Entry(
        "correlation",
        Correlation,
        ((1, 3, 32, 32), (1, 3, 10, 10)),
        1,
        family="weight computed from the input",
        input_names=("search", "template"),
    ),
)
