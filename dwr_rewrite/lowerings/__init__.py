"""The ways to write a depthwise convolution. One file each; this is their ordered list."""

from __future__ import annotations

from dwr_rewrite.lowerings import blocks, dense, keep

LOWERINGS = (keep, dense, blocks)
"""Each has a ``name`` and ``lower(spec) -> Recipe | Rejection``; blocks also takes a width."""

__all__ = ["LOWERINGS", "blocks", "dense", "keep"]
