"""Rewrites the convolutions that a torch.fx graph calls as functions or aten operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.fx.attributes import Origin, Step, Uses, assign, attribute_of, value_of
from dwr_rewrite.passes.fx.calls import (
    GENERAL,
    SIGNATURES,
    Signature,
    chain,
    depthwise_conv,
    update_meta,
)
from dwr_rewrite.passes.fx.decide import Chosen, Options, choose, left, spec_of
from dwr_rewrite.passes.fx.functional import pack, unpack
from dwr_rewrite.passes.fx.geometry import Forms, packing_of
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec

UNDO = "dwr_undo"
"""Key in ``Node.meta`` of a rewritten call: an :class:`Undo`."""

NOT_DIAGONAL = Rejection(
    "not-diagonal", "its weight holds more than a diagonal now: it was changed after the rewrite"
)


@dataclass(frozen=True)
class Undo:
    """What a rewritten call was.

    Attributes:
        target: the function that it called.
        spec: the depthwise convolution.
        forms: of its three directions now.
        form: for the report.
        positional: how many of its arguments were given by position.
        keywords: names of the others that were given.
        origin: where the compact weight of a precomputed call came from; None where the packed one
            has taken its place.
        numbers: those of its arguments that a kernel is told otherwise, by name.
    """

    target: Any
    spec: ConvSpec
    forms: Forms
    form: str
    positional: int = 0
    keywords: tuple[str, ...] = ()
    origin: Origin | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def call(self, node: Node, arguments: Mapping[str, Any]) -> None:
        """Makes a node this call again, with these arguments by name."""
        names = SIGNATURES[self.target].names
        node.target = self.target
        node.args = tuple(arguments[name] for name in names[: self.positional])
        node.kwargs = {name: arguments[name] for name in self.keywords}


def rewrite(model: nn.Module, options: Options) -> list[SiteReport]:
    """Rewrites every depthwise call in the graphs of ``model`` in place, control flow included."""
    reports: list[SiteReport] = []
    uses = Uses.of(model)
    for prefix, module in model.named_modules():
        if not isinstance(module, GraphModule):
            continue
        dot = f"{prefix}." if prefix else ""
        changed = False
        for node in list(module.graph.nodes):
            if node.op != "call_function":
                continue
            name = dot + node.name
            if UNDO in node.meta:
                form = node.meta[UNDO].form
                reason = Rejection("already-rewritten", f"already in the form {form}; "
                                   f"dwr.restore undoes it")  # fmt: skip
                reports.append(left(name, _op(node), reason))
                continue
            signature = SIGNATURES.get(node.target)
            if signature is None:
                continue
            result = _match(module, name, node, signature, options, uses)
            if isinstance(result, Rejection):
                reports.append(left(name, _op(node), result))
            elif result is not None:
                _emit(module, node, signature, result, uses)
                reports.append(result.report)
                changed = True
        if changed:
            module.graph.lint()
            module.recompile()
    return reports


def _op(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _match(
    module: GraphModule, name: str, node: Node, signature: Signature, options: Options, uses: Uses
) -> Chosen | Rejection | None:
    arguments = signature.read(node)
    groups, source = arguments["groups"], arguments["weight"]
    if groups == 1:
        return None
    numbers = [v for k, v in arguments.items() if k not in ("input", "weight", "bias")]
    if any(isinstance(item, Node) for value in numbers for item in _flat(value)):
        return Rejection(
            "run-time-geometry", "its stride, padding or groups is computed at run time"
        )
    weight = value_of(module, source)
    known = weight if weight is not None else _meta_value(source)
    if known is None:
        return Rejection("runtime-weight", f"its weight {source} is computed at run time and its "
                         f"shape is not known")  # fmt: skip
    spec = spec_of(signature, arguments, known)
    if not isinstance(spec, ConvSpec):
        return spec
    linked = options.linked or weight is None
    if not (linked or options.is_kernel) and id(value_of(module, chain(source)[0])) in uses.written:
        return Rejection("weight-written", "the graph changes its weight in place; "
                         "weights='linked' reads it anew each time")  # fmt: skip
    return choose(name, _op(node), spec, options, linked)


def _meta_value(node: Node) -> Tensor | None:
    """What export ("val") or Dynamo ("example_value") know of a node's value."""
    value = node.meta.get("val", node.meta.get("example_value"))
    return value if isinstance(value, Tensor) else None


def _flat(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _emit(
    module: GraphModule, node: Node, signature: Signature, chosen: Chosen, uses: Uses
) -> None:
    arguments, spec = signature.read(node), chosen.spec
    source: Node = arguments["weight"]
    undo = Undo(
        node.target, spec, chosen.forms, chosen.report.form, len(node.args), tuple(node.kwargs)
    )
    if chosen.report.weights == "linked":
        node.target = depthwise_conv
        node.args = (
            arguments["input"], source, arguments["bias"], arguments["stride"],
            arguments["padding"], arguments["dilation"], spec.transposed,
            arguments.get("output_padding", 0), spec.channels, tuple(chosen.forms),
        )  # fmt: skip
        node.kwargs = {}
        node.meta["is_wrapped"] = True  # whoever traces the graph again leaves the call whole
    else:
        weight = value_of(module, source)
        assert weight is not None
        packing = packing_of(spec, chosen.forms)
        packed = pack(weight.detach(), packing)
        if source.op == "get_attr" and uses.readers[id(weight)] == 1:
            assign(module, str(source.target), packed, weight)
            compact = source
        else:
            compact, origin = _store(module, node, source, packed)
            undo = replace(undo, origin=origin)
        update_meta(compact, lambda value: pack(value, packing))
        signature.write(node, weight=compact, groups=spec.channels // packing.width)
        _erase_unused(module, source)
    node.meta[UNDO] = undo


def _store(module: GraphModule, node: Node, source: Node, packed: Tensor) -> tuple[Node, Origin]:
    """A new attribute beside the compact weight, and the node before ``node`` that reads it."""
    root, *later = chain(source)
    tensor = value_of(module, root)
    assert tensor is not None
    wanted = f"{node.name}_dwr_weight"
    name, count = wanted, 1
    while hasattr(module, name):
        count += 1
        name = f"{wanted}_{count}"
    assign(module, name, packed, tensor)
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(name)
    stored.meta.update(source.meta)
    return stored, Origin(Step.of(root), tensor, tuple(map(Step.of, later)), name)


def _erase_unused(module: GraphModule, node: Node) -> None:
    """Erases a node without users, and then what only it used."""
    if node.users or node.op == "placeholder":
        return
    operands = node.all_input_nodes
    module.graph.erase_node(node)
    for operand in operands:
        _erase_unused(module, operand)


def restore(model: nn.Module) -> Iterator[SiteReport]:
    """Undoes every rewritten call in the graphs of ``model`` in place."""
    for prefix, module in model.named_modules():
        if not isinstance(module, GraphModule):
            continue
        for node in list(module.graph.nodes):
            undo = node.meta.get(UNDO)
            if undo is None:
                continue
            linked = node.target is depthwise_conv
            rejection = _unlink(node, undo) if linked else _unpack(module, node, undo)
            if rejection is None:
                del node.meta[UNDO]
            name = f"{prefix}.{node.name}" if prefix else node.name
            form = undo.form if rejection else "keep"
            yield SiteReport(name, _op(node), form, rejection, undo.spec, undone=undo.form)
        module.graph.lint()
        module.recompile()


def _unlink(node: Node, undo: Undo) -> None:
    undo.call(node, dict(zip(GENERAL, node.args, strict=False)))
    del node.meta["is_wrapped"]


def _unpack(module: GraphModule, node: Node, undo: Undo) -> Rejection | None:
    signature, origin = SIGNATURES[node.target], undo.origin
    source: Node = signature.read(node)["weight"]
    packed = value_of(module, source)
    packing = packing_of(undo.spec, undo.forms)
    if packed is None or packed.shape != packing.packed:
        return Rejection("weight-replaced", "its weight is not the stored one any more")
    compact = unpack(packed.detach(), packing)
    if compact.count_nonzero() != packed.count_nonzero():
        return NOT_DIAGONAL
    signature.write(node, groups=undo.spec.channels)
    if origin is not None and _equal(origin.value().to(compact), compact):
        signature.write(node, weight=_source(module, node, origin))
        _erase_unused(module, source)
        if not any(n.target == origin.stored for n in module.graph.find_nodes(op="get_attr")):
            delattr(module, origin.stored)
    else:
        assign(module, str(source.target), compact, packed)
        update_meta(source, lambda value: unpack(value, packing))
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether the values are the same, NaN included."""
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _source(module: GraphModule, node: Node, origin: Origin) -> Node:
    """The nodes that make the compact weight, before ``node``; a lost attribute comes back."""
    target = str(origin.root.target)
    if not isinstance(attribute_of(module, target), Tensor):
        tensor = attribute_of(module, origin.stored)
        assign(module, target, origin.tensor.detach().clone().to(tensor), tensor)
    with module.graph.inserting_before(node):
        current = module.graph.get_attr(target)
        current.meta.update(origin.root.meta)
        for step in origin.steps:
            arguments = (current, *step.args)
            current = module.graph.create_node(step.op, step.target, arguments, step.kwargs)
            current.meta.update(step.meta)
    return current
