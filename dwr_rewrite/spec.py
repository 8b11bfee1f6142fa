"""The geometry of a depthwise convolution, and the one place where padding is resolved.

Lengths are in elements, sizes in channels; every tuple has one entry per spatial axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Pads = tuple[tuple[int, int], ...]
Same = Literal["same_upper", "same_lower"]

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Element types of a site and their size in bytes."""


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A depthwise convolution: group == input channels, in one to three spatial dimensions.

    Attributes:
        channels: input channels C, which is also the number of groups.
        kernel: taps along each spatial axis.
        multiplier: output channels per input channel, m.
        stride: step of the window (of the output for a transposed convolution).
        dilation: distance between taps.
        padding: (before, after) for each axis, or ``"same_upper"`` / ``"same_lower"`` as long as
            the amount depends on a spatial size that is not known (ONNX ``auto_pad``; torch's
            ``"same"`` is ``"same_upper"``). See :meth:`at`.
        transposed: a ConvTranspose.
        output_padding: extra length of a transposed convolution's output; zeros otherwise.
        bias: whether a bias is added.
        dtype: element type, a key of :data:`DTYPES`.
        spatial: input length along each axis where known; None for an axis that is dynamic.

    Raises:
        ValueError: a field is out of range or has the wrong number of entries.
    """

    channels: int
    kernel: tuple[int, ...]
    multiplier: int = 1
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: Pads | Same = ()
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    bias: bool = False
    dtype: str = "float32"
    spatial: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        """Fills the defaults that depend on the rank and checks every field."""
        rank = len(self.kernel)
        defaults: dict[str, tuple[object, ...]] = {
            "stride": (1,) * rank,
            "dilation": (1,) * rank,
            "padding": ((0, 0),) * rank,
            "output_padding": (0,) * rank,
            "spatial": (None,) * rank,
        }
        for field, default in defaults.items():
            if getattr(self, field) == ():
                object.__setattr__(self, field, default)
        self._check(rank)

    def _check(self, rank: int) -> None:
        if not 1 <= rank <= 3:
            raise ValueError(f"kernel {self.kernel} has {rank} spatial axes; 1, 2 or 3 expected")
        for field in ("stride", "dilation", "padding", "output_padding", "spatial"):
            value = getattr(self, field)
            if not isinstance(value, str) and len(value) != rank:
                raise ValueError(f"{field} {value} has {len(value)} entries; {rank} expected")
        for field in ("kernel", "stride", "dilation"):
            if min(getattr(self, field)) < 1:
                raise ValueError(f"{field} {getattr(self, field)} must be at least 1 everywhere")
        if self.channels < 1 or self.multiplier < 1:
            raise ValueError("channels and multiplier must be at least 1")
        if any(self.output_padding) and not self.transposed:
            raise ValueError("output_padding belongs to a transposed convolution")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")

    @property
    def out_channels(self) -> int:
        """Output channels, C * m."""
        return self.channels * self.multiplier

    @property
    def taps(self) -> int:
        """Products that are summed for one output element (one per kernel tap)."""
        return prod(self.kernel)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The compact weight: [C*m, 1, k...], or [C, m, k...] when transposed."""
        if self.transposed:
            return (self.channels, self.multiplier, *self.kernel)
        return (self.out_channels, 1, *self.kernel)

    def pads(self, axis: int, length: int) -> tuple[int, int]:
        """(before, after) along one axis for an input of this length."""
        if not isinstance(self.padding, str):
            return self.padding[axis]
        return same_padding(
            self.padding,
            length,
            self.kernel[axis],
            self.stride[axis],
            self.dilation[axis],
            self.output_padding[axis] if self.transposed else None,
        )

    def at(self, spatial: tuple[int, ...]) -> ConvSpec:
        """The same convolution on an input of this length, with its padding as numbers."""
        pads = tuple(self.pads(axis, length) for axis, length in enumerate(spatial))
        return replace(self, spatial=spatial, padding=pads)

    def output_spatial(self) -> tuple[int | None, ...]:
        """Output length along each axis; None where the input length is not known."""
        return tuple(
            None if length is None else self._output_length(axis, length)
            for axis, length in enumerate(self.spatial)
        )

    def _output_length(self, axis: int, length: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        padding = sum(self.pads(axis, length))
        if self.transposed:
            return (length - 1) * self.stride[axis] + reach + self.output_padding[axis] - padding
        return max(0, (length + padding - reach) // self.stride[axis] + 1)


def same_padding(
    mode: Same,
    length: int,
    kernel: int,
    stride: int,
    dilation: int,
    output_padding: int | None = None,
) -> tuple[int, int]:
    """Padding of one axis for which output = ceil(input / stride).

    ``same_upper`` puts the odd element after, ``same_lower`` before (ONNX Conv, opset 1 on). The
    window's reach counts dilation: dilation * (kernel - 1) + 1. With an ``output_padding`` (which
    only a transposed convolution has) output = input * stride.
    """
    reach = dilation * (kernel - 1) + 1
    if output_padding is None:
        total = max(0, (-(-length // stride) - 1) * stride + reach - length)
    else:
        total = max(0, reach + output_padding - stride)
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "same_upper" else (large, small)


def resolve_padding(
    auto_pad: str,
    pads: tuple[int, ...],
    rank: int,
) -> Pads | Same:
    """Padding of an ONNX or torch convolution.

    Args:
        auto_pad: ``NOTSET``, ``VALID``, ``SAME_UPPER``, ``SAME_LOWER``; or torch's ``"same"`` and
            ``"valid"``. Upper or lower case.
        pads: ONNX order, all the befores and then all the afters; empty means zeros. Read only
            when ``auto_pad`` is ``NOTSET``.
        rank: number of spatial axes.

    Returns:
        (before, after) pairs; or the rule's name, which :meth:`ConvSpec.pads` turns into numbers
        where a length is known.

    Raises:
        ValueError: an unknown ``auto_pad``, or the wrong number of ``pads``.
    """
    mode = auto_pad.upper() or "NOTSET"
    if mode == "NOTSET" and len(pads) in (0, 2 * rank):
        return tuple(zip(pads[:rank], pads[rank:], strict=True)) or ((0, 0),) * rank
    if mode == "NOTSET":
        raise ValueError(f"pads {list(pads)} has {len(pads)} entries; {2 * rank} expected")
    if mode == "VALID":
        return ((0, 0),) * rank
    if mode in ("SAME", "SAME_UPPER"):
        return "same_upper"
    if mode == "SAME_LOWER":
        return "same_lower"
    raise ValueError(f"auto_pad {auto_pad!r}: NOTSET, VALID, SAME_UPPER or SAME_LOWER expected")


@dataclass(frozen=True, slots=True)
class Site:
    """One depthwise convolution found in a model.

    Attributes:
        name: unique and readable: the scope's path and the node's (or its output's) name.
        op: operator as the model names it (``Conv``, ``com.microsoft::FusedConv`` ...).
        spec: its geometry.
        weight: names the stored weight; sites with the same value share one.
        weight_bytes: size of one stored weight element (1 for an int8 weight behind a
            DequantizeLinear).
    """

    name: str
    op: str
    spec: ConvSpec
    weight: str
    weight_bytes: int
