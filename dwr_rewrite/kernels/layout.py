"""How activations lie in memory: their format, and their view with three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Whether neighbouring channels of ``x`` [N, C, spatial...] are neighbours in memory.

    It looks at strides alone, so a slice of a channels_last tensor counts as one, and so does a
    [N, L, C] tensor that was transposed to [N, C, L], for which torch has no memory format.
    """
    return x.shape[1] > 1 and x.stride(1) == 1 and x.stride(-1) > 1


def empty(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An uninitialized [N, channels, size...] with the batch, dtype, device and format of ``x``."""
    if channels_last(x):
        return x.new_empty((x.shape[0], *size, channels)).movedim(-1, 1)
    return x.new_empty((x.shape[0], channels, *size))


def like(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the format of ``x``: itself where it is so already, else a copy."""
    if channels_last(x):
        return y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y.contiguous()


def volume(x: Tensor) -> Tensor:
    """[N, C, spatial...] as a view [N, C, D, H, W]; axes of length 1 stand in front of fewer."""
    return x[(slice(None), slice(None), *(None,) * (5 - x.dim()))]
