"""The reference with only some of the candidate's changes: which of them make the check fail?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx import graph
from dwr_rewrite.passes.fx.attributes import assign, attribute_of
from dwr_rewrite.passes.fx.verify.running import copied
from dwr_rewrite.passes.fx.verify.sites import arguments_of, signature_of, weight_of


def hybrid(reference: nn.Module, candidate: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy of the reference in which these modules and nodes are the candidate's.

    Its tensors share the memory of the two models.

    Args:
        reference: it stays as it is.
        candidate: it stays as it is.
        names: of modules and nodes that differ, as
            :attr:`~dwr_rewrite.passes.fx.verify.findings.Findings.changed` has them.

    Raises:
        DwrError: a change cannot be made alone, as what is around it differs too.
    """
    result, sources = copied(reference, _shared), dict(candidate.named_modules())
    for name in names:
        modules = dict(result.named_modules())
        if name in modules and not isinstance(modules[name], GraphModule):
            result = _replace(result, name, copied(sources[name], _shared))
            continue
        prefix, _, node = name.rpartition(".")
        owner, source = modules.get(prefix), sources.get(prefix)
        if not (isinstance(owner, GraphModule) and isinstance(source, GraphModule)):
            raise _refusal(name)
        _take(name, owner, source, node)
        owner.recompile()
    return result


def _shared(tensor: Tensor) -> Tensor:
    return tensor


def _refusal(name: str) -> DwrError:
    return DwrError(f"the change of {name or 'the model'!r} cannot be made alone")


def _replace(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Puts a module in another's place; children of the same names stay."""
    old = root.get_submodule(name)
    inside, others = vars(old)["_modules"], vars(module)["_modules"]
    if list(inside) == list(others):
        vars(module)["_modules"] = inside
    if not name:
        return module
    parent, _, key = name.rpartition(".")
    setattr(root.get_submodule(parent), key, module)
    return root


def _take(name: str, owner: GraphModule, other: GraphModule, short: str) -> None:
    """Makes a node what it is in another graph; the weight of a convolution comes with it."""
    nodes, sources = ({node.name: node for node in g.graph.nodes} for g in (owner, other))
    node, source = nodes.get(short), sources.get(short)
    if node is None or source is None:
        raise _refusal(name)
    if source.op == "get_attr":
        node.target = _store(name, owner, source, attribute_of(other, str(source.target)))
        return
    stored = weight_of(source) if signature_of(source) else None
    weight = None if stored is None else arguments_of(source)["weight"]

    def operand(given: Node) -> Node:
        if given is not weight and given.name in nodes:
            return nodes[given.name]
        if given is not weight and given.op != "get_attr":
            raise _refusal(name)
        value = stored if given is weight else attribute_of(other, str(given.target))
        fresh = _store(name, owner, given, value)
        with owner.graph.inserting_before(node):
            return owner.graph.get_attr(fresh)

    args: Any = map_arg(source.args, operand)
    kwargs: Any = map_arg(source.kwargs, operand)
    node.op, node.target, node.args, node.kwargs = source.op, source.target, args, kwargs
    for key in (graph.UNDO, "is_wrapped"):
        node.meta.pop(key, None)
        if key in source.meta:
            node.meta[key] = source.meta[key]


def _store(name: str, owner: GraphModule, source: Node, value: Any) -> str:
    """A new attribute: what a node of the other graph gives."""
    if not isinstance(value, Tensor):
        raise _refusal(name)
    fresh = f"candidate_{source.name}"
    assign(owner, fresh, value.detach(), value)
    return fresh
