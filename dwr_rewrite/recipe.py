"""The neutral program that a lowering produces, and its numpy interpreter.

A :class:`Recipe` holds shapes only: nothing is allocated until :meth:`Packing.pack` is given a
weight. Every front end emits the same recipe into its own kind of graph; :func:`run` is the
reference that they are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwr_rewrite.spec import ConvSpec, Pads

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Packing:
    """How a compact weight is laid on the diagonal, as data: reshape, keep where eye, reshape.

    The compact weight is reshaped to ``split``, broadcast along ``column`` against an identity of
    ``width``, and reshaped to ``packed``; off the diagonal stands ``fill``. Selecting instead of
    multiplying keeps the zeros zero when a weight is Inf or NaN.

    Attributes:
        width: channels per group after the rewrite, b.
        compact: shape of the depthwise weight.
        split: the compact shape with axis 0 as (groups, b) and length 1 at ``column``.
        column: the axis of ``split`` that is broadcast to b; the row of the identity is axis 1.
        packed: shape of the weight of the standard convolution.
    """

    width: int
    compact: tuple[int, ...]
    split: tuple[int, ...]
    column: int
    packed: tuple[int, ...]

    @property
    def eye(self) -> tuple[int, ...]:
        """Shape in which the b x b identity stands beside ``split``."""
        return tuple(
            self.width if axis in (1, self.column) else 1 for axis in range(len(self.split))
        )

    @property
    def growth(self) -> int:
        """Elements that the packed weight has more than the compact one."""
        return prod(self.packed) - prod(self.compact)

    def pack(self, weight: Array, fill: Array | int = 0) -> Array:
        """The diagonal weight, same dtype, bit for bit the compact one on the diagonal.

        Args:
            weight: compact weight of shape ``compact``.
            fill: what stands off the diagonal, in the weight's dtype: 0, or an integer weight's
                zero-point (broadcastable to ``compact``).
        """
        blank = np.broadcast_to(np.asarray(fill, weight.dtype), self.compact).reshape(self.split)
        on_diagonal = np.eye(self.width, dtype=bool).reshape(self.eye)
        return np.where(on_diagonal, weight.reshape(self.split), blank).reshape(self.packed)

    def unpack(self, packed: Array) -> Array:
        """The compact weight read back from the diagonal; the inverse of :meth:`pack`."""
        full = list(self.split)
        full[self.column] = self.width
        diagonal = np.diagonal(packed.reshape(full), axis1=1, axis2=self.column)
        return np.ascontiguousarray(np.moveaxis(diagonal, -1, 1)).reshape(self.compact)


@dataclass(frozen=True, slots=True)
class Conv:
    """A grouped standard convolution with the geometry of ``spec`` in ``groups`` groups."""

    spec: ConvSpec
    groups: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """The depthwise convolution itself with the geometry of ``spec``, run by our own kernel.

    Attributes:
        spec: the geometry.
        tile: how the kernel cuts its work, as text; empty where a heuristic chooses.
    """

    spec: ConvSpec
    tile: str = ""

    @property
    def groups(self) -> int:
        """One for each channel."""
        return self.spec.channels


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a site becomes: one convolution and the weight that it takes.

    Attributes:
        conv: the convolution step.
        packing: how its weight follows from the compact one; of width 1 for a kernel.
    """

    conv: Conv | Kernel
    packing: Packing


def run(recipe: Recipe, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Interprets a recipe with numpy.

    Args:
        recipe: what a lowering produced.
        x: input [N, C, spatial...].
        weight: the compact weight, shape ``recipe.packing.compact``.
        bias: [C*m] or None.

    Returns:
        [N, C*m, spatial...] in the dtype of ``x``.
    """
    spec = recipe.conv.spec.at(x.shape[2:])
    assert not isinstance(spec.padding, str)
    return convolve(
        x,
        recipe.packing.pack(weight),
        bias,
        groups=recipe.conv.groups,
        stride=spec.stride,
        dilation=spec.dilation,
        padding=spec.padding,
        transposed=spec.transposed,
        output_padding=spec.output_padding,
    )


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Pads,
    transposed: bool = False,
    output_padding: tuple[int, ...] | None = None,
) -> Array:
    """Grouped convolution of any rank: one batched matrix product per kernel tap.

    Args:
        x: input [N, C, spatial...].
        weight: [M, C/groups, k...]; [C, M/groups, k...] when transposed.
        bias: [M] or None.
        groups: number of groups.
        stride: step along each axis.
        dilation: distance between taps along each axis.
        padding: (before, after) along each axis; a negative amount crops.
        transposed: a ConvTranspose.
        output_padding: extra output length along each axis (transposed only).

    Returns:
        [N, M, spatial...] in the common dtype of ``x`` and ``weight``.
    """
    operate = _transposed if transposed else _forward
    extra = output_padding or (0,) * len(stride)
    y = operate(x, weight, groups, stride, dilation, padding, extra)
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(stride))


def _forward(
    x: Array, weight: Array, groups: int, stride: tuple[int, ...], dilation: tuple[int, ...],
    padding: Pads, _extra: tuple[int, ...],
) -> Array:  # fmt: skip
    kernel = weight.shape[2:]
    padded = _pad(x, padding)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [max(0, (n - r) // s + 1) for n, r, s in
            zip(padded.shape[2:], reach, stride, strict=True)]  # fmt: skip
    batch, channels = x.shape[:2]
    filters = _taps_first(weight.reshape(groups, -1, weight.shape[1], *kernel))
    y = np.zeros((batch, groups, weight.shape[0] // groups, prod(size)), np.result_type(x, weight))
    for tap in product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) if n else slice(0, 0)
            for t, d, n, s in zip(tap, dilation, size, stride, strict=True)
        )
        columns = padded[(..., *window)].reshape(batch, groups, channels // groups, -1)
        y += _product(filters[tap], columns)
    return y.reshape(batch, -1, *size)


def _transposed(
    x: Array, weight: Array, groups: int, stride: tuple[int, ...], dilation: tuple[int, ...],
    padding: Pads, extra: tuple[int, ...],
) -> Array:  # fmt: skip
    kernel, (batch, channels), size = weight.shape[2:], x.shape[:2], x.shape[2:]
    full = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in
            zip(size, stride, dilation, kernel, extra, strict=True)]  # fmt: skip
    filters = _taps_first(
        np.moveaxis(weight.reshape(groups, channels // groups, *weight.shape[1:]), 1, 2)
    )
    out_channels = groups * weight.shape[1]
    y = np.zeros((batch, out_channels, *full), np.result_type(x, weight))
    columns = x.reshape(batch, groups, channels // groups, -1)
    for tap in product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilation, size, stride, strict=True)
        )
        y[(..., *window)] += _product(filters[tap], columns).reshape(batch, out_channels, *size)
    return _pad(y, tuple((-before, -after) for before, after in padding))


def _taps_first(filters: Array) -> Array:
    """[groups, M, C, k...] -> [k..., groups, M, C], contiguous: else matmul takes its slow path."""
    return np.ascontiguousarray(np.moveaxis(filters, (0, 1, 2), (-3, -2, -1)))


def _product(filters: Array, columns: Array) -> Array:
    """[groups, M, C] x [N, groups, C, P] -> [N, groups, M, P]."""
    if filters.shape[-1] == 1:  # depthwise: an outer product, which matmul is slow at
        return filters * columns
    return np.matmul(filters, columns)


def _pad(x: Array, padding: Pads) -> Array:
    """Zero-pads the spatial axes; negative amounts crop."""
    grown = np.pad(x, ((0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in padding)))
    crop = tuple(
        slice(max(-a, 0), n - max(-b, 0))
        for (a, b), n in zip(padding, grown.shape[2:], strict=True)
    )
    return grown[(..., *crop)]
