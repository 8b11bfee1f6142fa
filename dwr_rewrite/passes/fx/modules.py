"""Rewrites the convolution modules of a model where they are, without tracing it.

The module objects stay: hooks, wrappers, names and user attributes survive. A linked module gets a
subclass whose forward packs the compact weight, or hands it to a kernel; a precomputed one stays
the plain ``nn.ConvNd`` that it is, with a diagonal weight and fewer groups.
"""

# pyright: reportPrivateUsage=false
# nn.Module has no public way to replace a parameter without running its setters.

from __future__ import annotations

import inspect as python_inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.fx.calls import as_tuple
from dwr_rewrite.passes.fx.decide import Chosen, Options, choose, inspect, left
from dwr_rewrite.passes.fx.functional import pack, unpack
from dwr_rewrite.passes.fx.geometry import packing_of
from dwr_rewrite.passes.fx.linked import UNDO, Undo, base_class, class_over, linked_class
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec, Pads, Same

STOCK = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


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
    linked = options.linked or computed
    if not (linked or options.is_kernel):
        if users[id(module.weight)] > 1:
            return Rejection("shared-weight", "another module has the same weight, which would be "
                             "changed for it too; weights='linked' leaves it as it is")  # fmt: skip
        reader = _reader(model, name)
        if reader:
            return Rejection("weight-read", f"{reader} reads its weight itself; weights='linked' "
                             f"leaves it as it is")  # fmt: skip
    return choose(name, type(module).__name__, spec, options, linked)


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
    base = base_class(type(module))
    undo = Undo(spec, chosen.forms, base if linked else None, report.form)
    if linked:
        module.__class__ = class_over(type(module), linked_class(base))
    else:
        packing = packing_of(spec, chosen.forms)
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
        if base_class(type(module)) is not linked_class(undo.base):
            return Rejection("wrapped", f"its class is {type(module).__name__} now: undo first "
                             f"what wrapped it after the rewrite")  # fmt: skip
        module.__class__ = class_over(type(module), undo.base)
    else:
        packing = packing_of(undo.spec, undo.forms)
        weight = module.weight.detach()
        compact = unpack(weight, packing)
        if compact.count_nonzero() != weight.count_nonzero():
            return Rejection("not-diagonal", "its weight holds more than a diagonal now: it was "
                             "changed after the rewrite")  # fmt: skip
        replace_weight(module, compact)
        module.groups = undo.spec.channels
    del module.__dict__[UNDO]
    return None
