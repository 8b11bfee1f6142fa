"""Linked convolution classes: the weight stays compact, and is packed as the forward runs."""

from __future__ import annotations

# pyright: reportPrivateUsage=false
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from dwr_rewrite.passes.fx.calls import as_tuple
from dwr_rewrite.passes.fx.functional import convolve, pad
from dwr_rewrite.passes.fx.geometry import Forms, Geometry, around
from dwr_rewrite.spec import ConvSpec

UNDO = "_dwr_undo"
"""Attribute of a rewritten module: what it was."""


@dataclass(frozen=True)
class Undo:
    """What a rewritten module was, and what it is.

    Attributes:
        spec: the depthwise convolution.
        forms: of its three directions now.
        base: its class before; None when it is precomputed, which keeps the class.
        form: for the report.
    """

    spec: ConvSpec
    forms: Forms
    base: type[nn.Module] | None
    form: str


class Linked:
    """Mixin before a convolution class: convolves with ``self.weight``, which stays compact."""

    def _conv_forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry, x = conv_geometry(self, x)
        return convolve(x, weight, bias, geometry, getattr(self, UNDO).forms)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        """Pickles and copies by the class before: the subclass is made anew there."""
        reduced = super().__reduce_ex__(max(protocol, 2))
        base = getattr(self, UNDO).base
        if type(self) is not linked_class(base):  # something else was laid over it since
            return reduced
        return _new, (base,), *reduced[2:]


class LinkedTranspose(Linked):
    """The same for a transposed convolution, whose forward is in the class itself."""

    def forward(self: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As that of torch.nn."""
        undo: Undo = getattr(self, UNDO)
        spec, rank = undo.spec, len(undo.spec.kernel)
        extra = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation
        )
        geometry = Geometry(
            spec.channels, spec.kernel, spec.multiplier, as_tuple(self.stride, rank),
            as_tuple(self.padding, rank), as_tuple(self.dilation, rank),
            transposed=True, output_padding=as_tuple(extra, rank),
        )  # fmt: skip
        return convolve(x, self.weight, self.bias, geometry, undo.forms)


_linked_classes: dict[type, type] = {}


def linked_class(base: type) -> type:
    """The linked subclass of a convolution class, one for each."""
    if base not in _linked_classes:
        mixin = LinkedTranspose if issubclass(base, _ConvTransposeNd) else Linked
        names = {"__module__": base.__module__, "__qualname__": f"Linked{base.__qualname__}"}
        _linked_classes[base] = type(f"Linked{base.__name__}", (mixin, base), names)
    return _linked_classes[base]


def _new(base: type) -> Any:
    cls: Any = linked_class(base)
    return cls.__new__(cls)


def base_class(cls: type) -> type:
    """A class without what ``torch.nn.utils.parametrize`` laid over it."""
    return base_class(cls.__bases__[0]) if cls.__module__ == parametrize.__name__ else cls


def class_over(cls: type, base: type) -> type:
    """``base`` under what ``torch.nn.utils.parametrize`` laid over it to make ``cls``.

    It has to stay on top: to remove a parametrization, torch looks for it in a module's own class.
    """
    if cls.__module__ != parametrize.__name__:
        return base
    names = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    below = class_over(cls.__bases__[0], base)
    return type(f"Parametrized{below.__name__}", (below,), names)


def conv_geometry(module: Any, x: Tensor) -> tuple[Geometry, Tensor]:
    """The geometry of a Conv module, and its input: padded, where aten cannot pad it so itself."""
    spec: ConvSpec = getattr(module, UNDO).spec
    rank, padding = len(spec.kernel), module.padding
    if module.padding_mode != "zeros" or padding == "same":
        flat = module._reversed_padding_repeated_twice
        pairs = tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))
        zeros = module.padding_mode == "zeros"
        first, padding = around(pairs) if zeros else (pairs, (0,) * len(pairs))
        x = pad(x, first, module.padding_mode)
    elif padding == "valid":
        padding = 0
    return Geometry(
        spec.channels, spec.kernel, spec.multiplier, as_tuple(module.stride, rank),
        as_tuple(padding, rank), as_tuple(module.dilation, rank),
    ), x  # fmt: skip
