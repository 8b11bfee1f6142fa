"""Rewrites the convolution modules of a model where they are, without tracing it.

The module objects stay: hooks, wrappers, names and user attributes survive. A linked module gets a
subclass whose forward packs the compact weight; a precomputed one stays the plain ``nn.ConvNd``
that it is, with a diagonal weight and fewer groups.
"""

# pyright: reportPrivateUsage=false
# nn.Module has no public way to replace a parameter without running its setters.

from __future__ import annotations

import inspect as python_inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.passes.fx.calls import as_tuple
from dwr_rewrite.passes.fx.decide import Chosen, Options, choose, inspect, left
from dwr_rewrite.passes.fx.functional import Geometry, Widths, convolve, pack, pad, unpack
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec, Pads, Same

UNDO = "_dwr_undo"
"""Attribute of a rewritten module: what it was."""

STOCK = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Undo:
    """What a rewritten module was, and what it is.

    Attributes:
        spec: the depthwise convolution.
        widths: its group widths now.
        base: its class before; None when it is precomputed, which keeps the class.
        form: for the report.
    """

    spec: ConvSpec
    widths: Widths
    base: type[nn.Module] | None
    form: str


class Linked:
    """Mixin before a convolution class: packs ``self.weight``, which stays compact."""

    def _conv_forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry, x = conv_geometry(self, x)
        return convolve(x, weight, bias, geometry, getattr(self, UNDO).widths)

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
        return convolve(x, self.weight, self.bias, geometry, undo.widths)


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


def _base(cls: type) -> type:
    """A class without what ``torch.nn.utils.parametrize`` laid over it."""
    return _base(cls.__bases__[0]) if cls.__module__ == parametrize.__name__ else cls


def _over(cls: type, base: type) -> type:
    """``base`` under what ``torch.nn.utils.parametrize`` laid over it to make ``cls``.

    It has to stay on top: to remove a parametrization, torch looks for it in a module's own class.
    """
    if cls.__module__ != parametrize.__name__:
        return base
    names = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    below = _over(cls.__bases__[0], base)
    return type(f"Parametrized{below.__name__}", (below,), names)


def conv_geometry(module: Any, x: Tensor) -> tuple[Geometry, Tensor]:
    """The geometry of a Conv module, and its input padded where padding is not symmetric zeros."""
    spec: ConvSpec = getattr(module, UNDO).spec
    rank, padding = len(spec.kernel), module.padding
    if module.padding_mode != "zeros" or padding == "same":
        flat = module._reversed_padding_repeated_twice
        pairs = tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))
        x, padding = pad(x, pairs, module.padding_mode), (0,) * len(pairs)
    elif padding == "valid":
        padding = 0
    return Geometry(
        spec.channels, spec.kernel, spec.multiplier, as_tuple(module.stride, rank),
        as_tuple(padding, rank), as_tuple(module.dilation, rank),
    ), x  # fmt: skip


def rewrite(model: nn.Module, options: Options, read: Iterable[Tensor] = ()) -> list[SiteReport]:
    """Rewrites every depthwise convolution module of ``model`` in place.

    Args:
        model: the model.
        options: what to do.
        read: tensors that a graph reads as attributes, whatever module holds them.
    """
    users = Counter(map(id, read))
    users.update(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    reports: list[SiteReport] = []
    for name, module in model.named_modules():
        result = _match(model, name, module, options, users)
        if isinstance(result, Rejection):
            reports.append(left(name, type(module).__name__, result))
        elif result is not None:
            _emit(module, result)
            reports.append(result.report)
    return reports


def _match(
    model: nn.Module, name: str, module: nn.Module, options: Options, users: Counter[int]
) -> Chosen | Rejection | None:
    if hasattr(module, UNDO):
        form = getattr(module, UNDO).form
        return Rejection("already-rewritten", f"already in the form {form}; dwr.restore undoes it")
    if type(module).__module__.startswith("torch.ao.nn.") and getattr(module, "groups", 1) > 1:
        return Rejection("quantized", f"{torch.typename(module)} quantizes its weight; rewrite the "
                         f"model before it is quantized")  # fmt: skip
    if not isinstance(module, _ConvNd):
        return None
    if module.groups == 1:
        return None
    if isinstance(module, LazyModuleMixin) or isinstance(
        module._parameters.get("weight"), UninitializedParameter
    ):
        return Rejection("lazy", "it is lazy: run the model once, so that its shape is known")
    if not _is_stock(module):
        return Rejection("own-forward", f"{type(module).__name__} has a forward of its own; "
                         f"rewrite the traced model to reach the convolution in it")  # fmt: skip
    computed = module._parameters.get("weight") is None  # a parametrization or a hook makes it
    rank = len(module.kernel_size)
    spec = inspect(
        _blank(module) if computed else module.weight, module.groups,
        as_tuple(module.stride, rank), _padding(module), as_tuple(module.dilation, rank),
        transposed=isinstance(module, _ConvTransposeNd),
        output_padding=as_tuple(module.output_padding, rank), bias=module.bias is not None,
    )  # fmt: skip
    if not isinstance(spec, ConvSpec):
        return spec
    if not options.linked and not computed:
        if users[id(module.weight)] > 1:
            return Rejection("shared-weight", "another module has the same weight, which would be "
                             "changed for it too; weights='linked' leaves it as it is")  # fmt: skip
        reader = _reader(model, name)
        if reader:
            return Rejection("weight-read", f"{reader} reads its weight itself; weights='linked' "
                             f"leaves it as it is")  # fmt: skip
    return choose(name, type(module).__name__, spec, options, options.linked or computed)


def _is_stock(module: nn.Module) -> bool:
    """Whether forward and _conv_forward are those of torch.nn."""
    cls, base = type(module), next((c for c in STOCK if isinstance(module, c)), None)
    if base is None:
        return False
    names = ("forward",) if issubclass(base, _ConvTransposeNd) else ("forward", "_conv_forward")
    return all(getattr(cls, name) is getattr(base, name) for name in names) and not any(
        name in module.__dict__ for name in names
    )


def _blank(module: Any) -> Tensor:
    """A stand-in for a computed weight: computing it may change the module (spectral_norm does)."""
    inputs, outputs = module.in_channels, module.out_channels
    sizes = (inputs, outputs) if isinstance(module, _ConvTransposeNd) else (outputs, inputs)
    shape = (sizes[0], sizes[1] // module.groups, *module.kernel_size)
    tensor = next(chain(module.parameters(), module.buffers()), torch.empty(()))
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _padding(module: Any) -> Pads | Same:
    if module.padding == "same":
        return "same_upper"
    amounts = (0,) * len(module.kernel_size) if module.padding == "valid" else module.padding
    return tuple((amount, amount) for amount in as_tuple(amounts, len(module.kernel_size)))


def _reader(model: nn.Module, name: str) -> str | None:
    """A class around the module whose code mentions ``<attribute>.weight``, as Mamba's does."""
    parts = name.split(".")
    path = rf"\.{parts[-1]}"
    if len(parts) > 1 and parts[-1].isdecimal():  # of a list
        path = rf"\.{parts[-2]}\[[^]]*\]"
    mention = re.compile(rf"{path}\.weight\b")
    for depth in range(len(parts)):
        parent = type(model.get_submodule(".".join(parts[:depth])))
        if any(mention.search(_source(cls)) for cls in parent.__mro__):
            return parent.__name__
    return None


@cache
def _source(cls: type) -> str:
    """The code of a class; empty for torch's own and where it is not to be had."""
    if cls is object or cls.__module__.startswith("torch."):
        return ""
    try:
        return python_inspect.getsource(cls)
    except (OSError, TypeError):
        return ""


def _emit(module: Any, chosen: Chosen) -> None:
    report, spec = chosen.report, chosen.spec
    linked = report.weights == "linked"
    base = _base(type(module))
    undo = Undo(spec, chosen.widths, base if linked else None, report.form)
    if linked:
        module.__class__ = _over(type(module), linked_class(base))
    else:
        packing = diagonal(spec, chosen.widths.forward).packing
        replace_weight(module, pack(module.weight.detach(), packing))
        module.groups = spec.channels // packing.width
    module.__dict__[UNDO] = undo


def replace_weight(module: nn.Module, value: Tensor) -> None:
    """Gives a module another weight with the old one's ``requires_grad``."""
    old = module._parameters["weight"]
    assert old is not None
    module._parameters["weight"] = nn.Parameter(value, requires_grad=old.requires_grad)


def restore(model: nn.Module) -> Iterator[SiteReport]:
    """Undoes every rewritten module of ``model`` in place."""
    for name, module in model.named_modules():
        undo = module.__dict__.get(UNDO)
        if undo is None:
            continue
        rejection = _restore(module, undo)
        op = type(module).__name__
        form = "keep" if rejection is None else undo.form
        yield SiteReport(name, op, form, rejection, undo.spec, undone=undo.form)


def _restore(module: Any, undo: Undo) -> Rejection | None:
    if undo.base is not None:
        if _base(type(module)) is not linked_class(undo.base):
            return Rejection("wrapped", f"its class is {type(module).__name__} now: undo first "
                             f"what wrapped it after the rewrite")  # fmt: skip
        module.__class__ = _over(type(module), undo.base)
    else:
        packing = diagonal(undo.spec, undo.widths.forward).packing
        weight = module.weight.detach()
        compact = unpack(weight, packing)
        if compact.count_nonzero() != weight.count_nonzero():
            return Rejection("not-diagonal", "its weight holds more than a diagonal now: it was "
                             "changed after the rewrite")  # fmt: skip
        replace_weight(module, compact)
        module.groups = undo.spec.channels
    del module.__dict__[UNDO]
    return None
