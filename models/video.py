"""Video networks (batch, channels, time, height, width), and attention that pools its tokens."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks import Inverted, Size, classifier, conv_norm
from models.entry import Entry


def x3d() -> nn.Module:
    """Feichtenhofer, 2020, arXiv:2004.04730: a 5x1x1 stem, 3x3x3 of stride (1, 2, 2), Swish."""
    return nn.Sequential(
        conv_norm(3, 24, (1, 3, 3), (1, 2, 2), rank=3, act=None),
        conv_norm(24, 24, (5, 1, 1), groups=24, rank=3),
        Inverted(24, 24, 3, (1, 2, 2), expand=2, rank=3, act=nn.SiLU),
        Inverted(24, 24, 3, expand=2, rank=3, excite=True, act=nn.SiLU),
        Inverted(24, 48, 3, (1, 2, 2), expand=2, rank=3, act=nn.SiLU),
        classifier(48, rank=3),
    )


class PoolingAttention(nn.Module):
    """Attention whose queries, keys and values are pooled by depthwise convolutions.

    Heads share the weights of the pooling: they are folded into the batch, so that the depthwise
    convolution has the channels of one head.
    """

    def __init__(self, channels: int, heads: int, query_stride: Size, key_stride: Size) -> None:
        super().__init__()
        self.heads = heads
        width = channels // heads
        self.rank = len(query_stride)
        pool = {2: nn.Conv2d, 3: nn.Conv3d}[self.rank]
        self.qkv = nn.Linear(channels, 3 * channels)
        self.pools = nn.ModuleList(
            pool(width, width, 3, stride, 1, groups=width, bias=False)
            for stride in (query_stride, key_stride, key_stride)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.pools)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, *sizes] to the same at the resolution of the pooled queries."""
        batch, channels, *sizes = x.shape
        width = channels // self.heads
        grid: list[int] = []
        pooled: list[torch.Tensor] = []
        tokens = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, 2)
        for part, pool, norm in zip(tokens, self.pools, self.norms, strict=True):
            heads = part.reshape(batch, -1, self.heads, width).permute(0, 2, 3, 1)
            small = pool(heads.reshape(batch * self.heads, width, *sizes))
            grid = grid or list(small.shape[2:])
            small = small.reshape(batch, self.heads, width, -1).transpose(2, 3)
            pooled.append(norm(small))
        query, key, value = pooled
        mixed = F.scaled_dot_product_attention(query, key, value) + query
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, -1, channels))
        return mixed.transpose(1, 2).reshape(batch, channels, *grid)


def mvit() -> nn.Module:
    """Fan et al., 2021, arXiv:2104.11227: Conv3d of strides (1, 1..8, 1..8)."""
    return nn.Sequential(
        conv_norm(3, 32, (3, 7, 7), (2, 4, 4), rank=3, act=None),
        PoolingAttention(32, 2, (1, 1, 1), (1, 8, 8)),
        PoolingAttention(32, 2, (1, 2, 2), (1, 4, 4)),
        classifier(32, rank=3),
    )


def mvit_v2() -> nn.Module:
    """Li et al., 2022, arXiv:2112.01526, on images: 3x3 of strides 1, 2 and 4."""
    return nn.Sequential(
        conv_norm(3, 32, 7, 4, act=None),
        PoolingAttention(32, 2, (1, 1), (4, 4)),
        PoolingAttention(32, 2, (2, 2), (2, 2)),
        classifier(32),
    )


def pit() -> nn.Module:
    """Heo et al., 2021, arXiv:2103.16302: between stages a 3x3 of stride 2 doubles the channels."""
    return nn.Sequential(
        conv_norm(3, 32, 8, 4, act=None),
        nn.Conv2d(32, 64, 3, 2, 1, groups=32),
        nn.GELU(),
        nn.Conv2d(64, 128, 3, 2, 1, groups=64),
        classifier(128),
    )


CLIP = ((1, 3, 4, 32, 32),)
IMAGE = ((1, 3, 64, 64),)
ENTRIES = (
    Entry("x3d", x3d, CLIP, 4, family="X3D: 3x3x3 and 5x1x1"),
    Entry("mvit", mvit, ((1, 3, 4, 64, 64),), 6, family="MViT: pooling by Conv3d"),
    Entry("mvit_v2", mvit_v2, IMAGE, 6, family="MViTv2: pooling by 3x3, stride to 4"),
    Entry("pit", pit, IMAGE, 2, family="PiT: 3x3 stride 2, multiplier 2"),
)
