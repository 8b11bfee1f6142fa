"""Two models, compared module by module without running them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from dwr_rewrite.passes.fx.linked import UNDO, base_class, linked_class
from dwr_rewrite.passes.fx.notes import RECORD, RUNTIME
from dwr_rewrite.passes.fx.verify.findings import Findings, became, where
from dwr_rewrite.passes.fx.verify.graphs import compare_graphs
from dwr_rewrite.passes.fx.verify.lemma import prove
from dwr_rewrite.passes.fx.verify.same import same, tensor_difference
from dwr_rewrite.passes.fx.verify.sites import undo_of

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Attributes of a module that change what a call of it does."""


class Missing:
    """Stands for an attribute that a module has not."""


_NOT_PLAIN = frozenset({*vars(nn.Module()), UNDO, RECORD, RUNTIME})


def compare_modules(reference: nn.Module, candidate: nn.Module) -> Findings:
    """Compares two models by name: classes, configuration, graphs, and every tensor bit by bit.

    Args:
        reference: a module, or what :func:`~dwr_rewrite.passes.fx.verify.sites.as_module` gives.
        candidate: another.
    """
    findings = Findings()
    _compare("", reference, candidate, findings, set())
    return findings


def _compare(
    name: str, one: nn.Module, other: nn.Module, findings: Findings, seen: set[tuple[int, int]]
) -> None:
    if (id(one), id(other)) in seen:
        return
    seen.add((id(one), id(other)))
    dot = f"{name}." if name else ""
    if isinstance(one, GraphModule) and isinstance(other, GraphModule):
        for sentence in _hook_differences(name, one, other):
            findings.differs(name, sentence)
        for target in compare_graphs(name, one, other, findings):
            modules = one.get_submodule(target), other.get_submodule(target)
            _compare(dot + target, *modules, findings, seen)
        return
    kind = _kind_difference(name, one, other)
    site = bool(undo_of(one) or undo_of(other)) and not kind
    found = [kind] if kind else list(_own_differences(name, one, other, site))
    for sentence in found:
        findings.differs(name, sentence)
    if site:
        findings.lemmas[name] = prove(name, one, other, "; ".join(found))
    elif not found:
        findings.identical += 1
    if not kind:
        for key, child in _children(one).items():
            _compare(dot + key, child, _children(other)[key], findings, seen)


def _kind_difference(name: str, one: nn.Module, other: nn.Module) -> str:
    """Another class or other children: then there is nothing further to compare."""
    before, after = _class_of(one), _class_of(other)
    if before is not after:
        return became(where(name), before, after)
    inside = [list(_children(module)) for module in (one, other)]
    return became(f"what {where(name)} holds", *inside) if inside[0] != inside[1] else ""


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """Under every name that they have; ``named_children`` gives a module only once."""
    return {key: child for key, child in vars(module)["_modules"].items() if child is not None}


def _class_of(module: nn.Module) -> type:
    """The class before the rewrite, without what a parametrization laid over it."""
    cls, base = base_class(type(module)), getattr(undo_of(module), "base", None)
    return base if base is not None and cls is linked_class(base) else cls


def _own_differences(name: str, one: nn.Module, other: nn.Module, site: bool) -> Iterator[str]:
    """Sentences about the module without its children.

    Args:
        name: of the module.
        one: in the reference.
        other: in the candidate.
        site: leave the weight and the groups to the lemma.
    """
    plain = [_plain(module) for module in (one, other)]
    for key in dict.fromkeys((*plain[0], *plain[1])):
        before, after = (values.get(key, Missing) for values in plain)
        if not (site and key == "groups") and not same(before, after):
            yield became(f"{key} of {where(name)}", before, after)
    tensors = [_tensors(module) for module in (one, other)]
    for key in dict.fromkeys((*tensors[0], *tensors[1])):
        before, after = (values.get(key) for values in tensors)
        path = f"{name}.{key}" if name else key
        if site and key == "weight":
            continue
        if before is None or after is None:
            if before is not after:
                yield f"{path!r} is {'gone' if after is None else 'new'}"
        elif sentence := tensor_difference(path, before, after):
            yield sentence
    yield from _hook_differences(name, one, other)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that are neither torch's nor this package's bookkeeping."""
    return {key: value for key, value in vars(module).items() if key not in _NOT_PLAIN}


def _tensors(module: nn.Module) -> dict[str, Tensor | None]:
    return {**vars(module)["_parameters"], **vars(module)["_buffers"]}


def _hook_differences(name: str, one: nn.Module, other: nn.Module) -> Iterator[str]:
    for kind in HOOKS:
        before, after = (
            [hook for hook in getattr(module, kind).values() if not _checks_inputs(hook)]
            for module in (one, other)
        )
        if not same(before, after):
            yield became(f"{kind.strip('_')} of {where(name)}", before, after)


def _checks_inputs(hook: Any) -> bool:
    """Whether it is what torch.export lays around a program, and what a copy of it loses."""
    return getattr(hook, "__module__", "").startswith("torch.export.")
