"""What a kernel is asked: a depthwise map in one of four forms, which are each other's adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

Triple = tuple[int, int, int]
Activation = Literal["none", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish"]
ACTIVATIONS: tuple[Activation, ...] = (
    "none", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """The geometry of a depthwise map; always three spatial axes, ones in front of fewer.

    With t over the taps, o and i over positions::

        adjoint=False    out[o] = sum_t w[t] in[o * stride + t * dilation - padding]
        adjoint=True     out[i] = sum_t w[t] in[(i + padding - t * dilation) / stride]

    where a term counts only if its position is whole and inside the input. A convolution is
    (False, reduce=False); the gradient of its input (True, reduce=True); a transposed convolution
    (True, reduce=False); the gradient of that one's input (False, reduce=True).

    Attributes:
        groups: channels C of the depthwise convolution.
        multiplier: m; the weight has C * m filters.
        kernel: taps along depth, height and width.
        stride: step along each.
        padding: in front of each; what is behind follows from the output's size.
        dilation: distance between taps.
        adjoint: the taps scatter instead of gather.
        reduce: the input has C * m channels and the m of a group are summed into one of C;
            otherwise the input has C channels and each gives m.
    """

    groups: int
    multiplier: int
    kernel: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    adjoint: bool = False
    reduce: bool = False

    @property
    def taps(self) -> int:
        """Products that are summed for an output, without those of ``reduce``."""
        return prod(self.kernel)

    @property
    def in_channels(self) -> int:
        """Of the input."""
        return self.groups * (self.multiplier if self.reduce else 1)

    @property
    def out_channels(self) -> int:
        """Of the output."""
        return self.groups * (1 if self.reduce else self.multiplier)


def triple(values: Sequence[int], blank: int = 1) -> Triple:
    """Numbers of one to three axes as those of three: (3, 5) -> (1, 3, 5)."""
    depth, height, width = (blank,) * (3 - len(values)) + tuple(values)
    return depth, height, width
