"""The geometry of a convolution as operators take it, and the form of each of its directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dwr_rewrite.lowerings import KERNEL, form_of
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import Kernel, Packing, Recipe
from dwr_rewrite.spec import ConvSpec, Pads

Form = int | str
"""Group width of a standard convolution, where 1 is torch's depthwise one; or the name of a kernel
of our own, ``kernel`` or ``kernel:TILE``."""


class Forms(NamedTuple):
    """Of each convolution of a training step."""

    forward: Form = 1
    grad_input: Form = 1
    grad_weight: Form = 1

    @property
    def is_operator(self) -> bool:
        """Whether it is the operator ``dwr::depthwise``, with the gradients that this has."""
        return isinstance(self.forward, str) and self[1:] == (KERNEL, KERNEL)


def entry(recipe: Recipe) -> Form:
    """A recipe as an entry of :class:`Forms`."""
    return form_of(recipe) if isinstance(recipe.conv, Kernel) else recipe.packing.width


def width_of(form: Form) -> int:
    """Channels per group of the weight that a form convolves with."""
    return form if isinstance(form, int) else 1


def packing_of(spec: ConvSpec, forms: Forms) -> Packing:
    """How a stored weight is packed: at the width of the forward."""
    return diagonal(spec, width_of(forms.forward)).packing


def tile_of(form: str) -> str:
    """How a kernel cuts its work; empty where a heuristic chooses."""
    return form.partition(":")[2]


@dataclass(frozen=True)
class Geometry:
    """What ``aten.convolution`` is told besides its tensors; padding is symmetric.

    All of it is plain numbers, so that a tracer sees no shape computed.
    """

    channels: int
    kernel: tuple[int, ...]
    multiplier: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def arguments(self, width: int) -> tuple[Any, ...]:
        """The arguments from ``stride`` to ``groups`` at a group width."""
        extra = self.output_padding or (0,) * len(self.stride)
        groups = self.channels // width
        return (self.stride, self.padding, self.dilation, self.transposed, extra, groups)

    def call(self, lengths: Sequence[int], reduce: bool = False) -> tuple[Any, ...]:
        """The arguments of ``dwr::depthwise`` from ``size`` to ``reduce``.

        Args:
            lengths: of the output.
            reduce: for the gradient of the input, which is the adjoint map.
        """
        adjoint = self.transposed is not reduce
        return [*lengths], self.stride, self.padding, self.dilation, self.channels, adjoint, reduce

    def lengths(self, spatial: Sequence[int]) -> list[int]:
        """Lengths of the output for an input of these lengths."""
        extra = self.output_padding or (0,) * len(self.stride)
        axes = zip(self.kernel, self.stride, self.padding, self.dilation, extra, strict=True)
        if self.transposed:
            return [(n - 1) * s + d * (k - 1) + 1 + e - 2 * p
                    for n, (k, s, p, d, e) in zip(spatial, axes, strict=True)]  # fmt: skip
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, (k, s, p, d, _) in zip(spatial, axes, strict=True)]  # fmt: skip

    def packing(self, width: int) -> Packing:
        """How the compact weight is packed at a group width."""
        spec = ConvSpec(
            self.channels, self.kernel, multiplier=self.multiplier, transposed=self.transposed
        )
        return diagonal(spec, width).packing


def around(pads: Pads) -> tuple[Pads, tuple[int, ...]]:
    """What has to be padded before a convolution, and what it pads itself: both sides alike."""
    if all(before == after for before, after in pads):
        return (), tuple(before for before, _ in pads)
    return pads, (0,) * len(pads)
