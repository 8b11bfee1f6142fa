"""Speech, audio and language models over one axis, in plain torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks import Residual, conv
from models.entry import Entry


class Transposed(nn.Module):
    """`inner` over [batch, length, channels], given and returning [batch, channels, length]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class ConvolutionModule(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.norm = Transposed(nn.LayerNorm(channels))
        self.expand = conv(channels, 2 * channels, 1, rank=1, bias=True)
        self.depthwise = conv(channels, channels, kernel, groups=channels, rank=1, bias=True)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.project = conv(channels, channels, 1, rank=1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = F.glu(self.expand(self.norm(x)), dim=1)
        return x + self.project(F.silu(self.batch_norm(self.depthwise(gated))))


def conformer() -> nn.Module:
    """Gulati et al., 2020, arXiv:2005.08100: kernel 31 between a gate and BatchNorm."""
    half = [nn.LayerNorm(64), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64)]
    return nn.Sequential(
        conv(20, 64, 3, 2, rank=1, bias=True),
        Transposed(Residual(*half)),
        ConvolutionModule(64, 31),
        ConvolutionModule(64, 31),
        conv(64, 30, 1, rank=1, bias=True),
    )


class MambaMixer(nn.Module):
    """The convolution of Mamba (Gu and Dao, 2023, arXiv:2312.00752); its scan is a running mean.

    As in decoders that keep the weight for a fused kernel, the convolution is a function call on a
    view of the module's weight, padded on the left only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.split = nn.Linear(channels, 2 * channels)
        self.conv1d = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, gate = self.split(x).transpose(1, 2).chunk(2, 1)
        weight = self.conv1d.weight.squeeze(1).unsqueeze(1)
        states = F.conv1d(F.pad(states, (3, 0)), weight, self.conv1d.bias, groups=self.channels)
        states = F.silu(states)
        steps = torch.arange(1, states.shape[-1] + 1, dtype=x.dtype, device=x.device)
        mixed = states.cumsum(-1) / steps
        return x + self.out((mixed * F.silu(gate)).transpose(1, 2))


class CausalSlice(nn.Module):
    """Padded on both sides by the module, then cut to its length: how Mamba trains."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = x.transpose(1, 2)
        return x + F.silu(self.conv1d(states)[..., : states.shape[-1]]).transpose(1, 2)


def mamba() -> nn.Module:
    return nn.Sequential(MambaMixer(64), CausalSlice(64), MambaMixer(64), nn.LayerNorm(64))


def codec_upsampler() -> nn.Module:
    """Depthwise ConvTranspose1d of Mimi (kernel 4, stride 2) and Pocket TTS (32, stride 16)."""
    return nn.Sequential(
        conv(8, 64, 3, rank=1, bias=True),
        nn.ConvTranspose1d(64, 64, 4, 2, groups=64, bias=False),
        conv(64, 32, 3, rank=1, bias=True),
        nn.ELU(),
        nn.ConvTranspose1d(32, 32, 32, 16, groups=32, bias=False),
        conv(32, 1, 7, rank=1, bias=True),
    )


class DilatedSeparable(nn.Module):
    """Kernel 3 at dilations 1, 3 and 9: the duration predictor of VITS, arXiv:2106.06103."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(
            Residual(
                conv(channels, channels, 3, groups=channels, dilation=rate, rank=1, bias=True),
                Transposed(nn.LayerNorm(channels)),
                nn.GELU(),
                conv(channels, channels, 1, rank=1, bias=True),
                Transposed(nn.LayerNorm(channels)),
                nn.GELU(),
            )
            for rate in (1, 3, 9)
        ))  # fmt: skip

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.blocks(x * mask) * mask


def separable_keyword_spotter() -> nn.Module:
    """MatchboxNet (Majumdar and Ginsburg, 2020, arXiv:2004.08531): 11, 13 and 29 dilated by 2."""
    layers: list[nn.Module] = []
    for channels, kernel, stride, dilation in ((40, 11, 2, 1), (64, 13, 1, 1), (64, 29, 1, 2)):
        layers += [
            conv(channels, channels, kernel, stride, groups=channels, dilation=dilation, rank=1),
            conv(channels, 64, 1, rank=1),
            nn.BatchNorm1d(64),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, conv(64, 12, 1, rank=1, bias=True))


ENTRIES = (
    Entry("conformer", conformer, ((1, 20, 128),), 2, family="Conformer: k31"),
    Entry("mamba", mamba, ((1, 24, 64),), 3, family="Mamba: causal k4, functional"),
    Entry("codec_upsampler", codec_upsampler, ((1, 8, 12),), 2, family="Mimi: ConvTranspose1d"),
    Entry(
        "duration_predictor",
        lambda: DilatedSeparable(48),
        ((1, 48, 40), (1, 1, 40)),
        3,
        family="VITS: dilated k3, two inputs",
        input_names=("x", "mask"),
    ),
    Entry(
        "keyword_spotter",
        separable_keyword_spotter,
        ((1, 40, 128),),
        3,
        family="MatchboxNet: k29 d2",
    ),
)
