"""Two graphs, compared node by node."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from dwr_rewrite.passes.fx import graph, operator
from dwr_rewrite.passes.fx.attributes import attribute_of
from dwr_rewrite.passes.fx.calls import as_tuple
from dwr_rewrite.passes.fx.decide import spec_of
from dwr_rewrite.passes.fx.verify.findings import Findings, became, where
from dwr_rewrite.passes.fx.verify.lemma import prove
from dwr_rewrite.passes.fx.verify.running import qualified
from dwr_rewrite.passes.fx.verify.same import same, tensor_difference
from dwr_rewrite.passes.fx.verify.sites import (
    arguments_of,
    is_linked,
    is_transposed,
    signature_of,
    undo_of,
    weight_of,
)
from dwr_rewrite.spec import ConvSpec

Nodes = Mapping[str, Node]


def compare_graphs(
    prefix: str, reference: GraphModule, candidate: GraphModule, findings: Findings
) -> Iterator[str]:
    """Compares the graphs of two modules.

    Args:
        prefix: name of the modules.
        reference: the one.
        candidate: the other.
        findings: gets what is found.

    Yields:
        The attributes of the modules that both graphs run, which are still to be compared.
    """
    before, after = ({node.name: node for node in g.graph.nodes} for g in (reference, candidate))
    sites = [n for n in before if n in after and (undo_of(before[n]) or undo_of(after[n]))]
    packing = [_weights_only(nodes, sites) for nodes in (before, after)]
    findings.helpers += len(packing[1])
    for name, node in before.items():
        other, place = after.get(name), qualified(prefix, node)
        if name in packing[0] and (other is None or name in packing[1]):
            continue
        if other is None:
            findings.differs(place, f"the node {place!r} is gone")
        elif name in sites:
            rest = _other_arguments(place, node, other)
            findings.lemmas[place] = prove(place, node, other, rest)
        elif text := _difference(place, node, other):
            findings.differs(place, text)
        else:
            findings.identical += 1
            if node.op == "call_module" or isinstance(_attribute(node), nn.Module):
                yield str(node.target)
    for name in after:
        if name not in before and name not in packing[1]:
            place = qualified(prefix, after[name])
            findings.differs(place, f"the node {place!r} is new")
    if [name for name in before if name in after] != [name for name in after if name in before]:
        findings.differs(prefix, f"{where(prefix)} runs its nodes in another order")
    if not same(*(_structures(module) for module in (reference, candidate))):
        findings.differs(prefix, f"{where(prefix)} takes or gives other structures")


def _structures(module: GraphModule) -> Any:
    """What arguments and results are flattened from; None where they are as the graph has them."""
    return getattr(vars(module.graph)["_codegen"], "pytree_info", None)


def _weights_only(nodes: Nodes, sites: Collection[str]) -> set[str]:
    """Nodes that only make what the lemmas compare: stored weights of these sites, and lengths."""
    found: set[str] = set()
    arguments = [(nodes[site], arguments_of(nodes[site])) for site in sites]
    pending: list[Any] = [a["weight"] for place, a in arguments if weight_of(place) is not None]
    lengths = [each for _, a in arguments for each in a.get("size", ()) if isinstance(each, Node)]
    while pending or lengths:
        node: Node = pending.pop() if pending else lengths.pop()
        users = {user.name for user in node.users}
        if node.op != "placeholder" and users <= found.union(sites):
            found.add(node.name)
            inputs = node.all_input_nodes
            if operator.is_length(node):
                lengths += filter(operator.is_length, inputs)
            else:
                pending += inputs
    return found


def _other_arguments(place: str, reference: Node, candidate: Node) -> str:
    """How two convolutions differ besides the weight and the groups; empty for not at all."""
    undo = undo_of(candidate) or undo_of(reference)
    assert undo is not None
    if operator.OPERATOR in (reference.target, candidate.target):
        before, after = (_as_operator(node) for node in (reference, candidate))
    else:
        before, after = (_geometry(node, len(undo.spec.kernel)) for node in (reference, candidate))
    for name, value in before.items():
        if value != after[name]:
            return became(f"{name} of {place!r}", value, after[name])
    return ""


def _as_operator(node: Node) -> dict[str, Any]:
    """What our operator is told in place of a call of a convolution, or is told already."""
    found, weight = arguments_of(node), weight_of(node)
    if node.target is not operator.OPERATOR:
        signature = signature_of(node)
        assert signature is not None
        spec = spec_of(signature, found, found["weight"].meta["val"])
        assert isinstance(spec, ConvSpec)  # it is the other side of a site
        found = operator.arguments_of(node, spec, found)
    lengths = (n.meta["val"] if isinstance(n, Node) else n for n in found["size"])
    return {name: str(found[name]) for name in found if name not in ("tile", "groups")} | {
        "weight": "stored" if weight is not None else str(found["weight"]),
        "size": str(list(lengths)),
        **{name: list(found[name]) for name in ("stride", "padding", "dilation")},
    }  # fmt: skip


def _geometry(node: Node, rank: int) -> dict[str, Any]:
    """Arguments besides a stored weight and the groups, in one notation for every call."""
    arguments, undo = arguments_of(node), undo_of(node)
    function = undo.target if isinstance(undo, graph.Undo) and is_linked(node) else node.target
    transposed = is_transposed(node)
    numbers = ("stride", "padding", "dilation", *(["output_padding"] if transposed else []))
    return {
        "function": str(function),
        "input": str(arguments["input"]),
        "weight": "stored" if weight_of(node) is not None else str(arguments["weight"]),
        "bias": str(arguments["bias"]),
        "transposed": transposed,
        **{
            name: value if isinstance(value := arguments[name], str) else as_tuple(value, rank)
            for name in numbers
        },
    }


def _difference(place: str, reference: Node, candidate: Node) -> str:
    """How two nodes differ; empty for not at all."""
    for what in ("op", "target"):
        before, after = getattr(reference, what), getattr(candidate, what)
        if before != after:
            return became(f"{what} of {place!r}", before, after)
    before, after = (
        map_arg((node.args, node.kwargs), lambda operand: f"%{operand.name}")
        for node in (reference, candidate)
    )
    if not same(before, after):
        return became(f"call of {place!r}", before, after)
    before, after = _attribute(reference), _attribute(candidate)
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return tensor_difference(str(reference.target), before, after)
    if isinstance(before, nn.Module) or same(before, after):
        return ""
    return became(repr(str(reference.target)), before, after)


def _attribute(node: Node) -> Any:
    """What a ``get_attr`` reads; None for another node."""
    owner = node.graph.owning_module
    assert owner is not None
    return attribute_of(owner, str(node.target)) if node.op == "get_attr" else None
