"""Rewrites the convolutions that a torch.fx graph calls as functions or aten operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.passes.fx.calls import (
    GENERAL,
    SIGNATURES,
    Signature,
    as_tuple,
    depthwise_conv,
    is_layout,
    padding_of,
)
from dwr_rewrite.passes.fx.decide import Chosen, Options, choose, inspect, left
from dwr_rewrite.passes.fx.functional import Widths, pack, unpack
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec

UNDO = "dwr_undo"
"""Key in ``Node.meta`` of a rewritten call: an :class:`Undo`."""


@dataclass(frozen=True)
class Undo:
    """What a rewritten call was.

    Attributes:
        target: the function that it called.
        spec: the depthwise convolution.
        widths: its group widths now.
        form: for the report.
        stored: attribute of the packed weight; None for a linked call.
        attribute: attribute of the compact weight; None where it was laid out anew by operators.
    """

    target: Any
    spec: ConvSpec
    widths: Widths
    form: str
    stored: str | None = None
    attribute: str | None = None


def rewrite(model: GraphModule, options: Options) -> list[SiteReport]:
    """Rewrites every depthwise call of ``model`` in place, bodies of control flow included."""
    reports: list[SiteReport] = []
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
            signature = SIGNATURES.get(node.target)  # type: ignore[arg-type]
            if signature is None:
                continue
            result = _match(module, name, node, signature, options)
            if isinstance(result, Rejection):
                reports.append(left(name, _op(node), result))
            elif result is not None:
                _emit(module, node, signature, result)
                reports.append(result.report)
                changed = True
        if changed:
            module.graph.lint()
            module.recompile()
    return reports


def _op(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _match(
    module: GraphModule, name: str, node: Node, signature: Signature, options: Options
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
    rank = known.dim() - 2
    spec = inspect(
        known, groups, as_tuple(arguments["stride"], rank),
        padding_of(arguments["padding"], rank), as_tuple(arguments["dilation"], rank),
        transposed=signature.transposed or arguments.get("transposed", False),
        output_padding=as_tuple(arguments.get("output_padding", 0), rank),
        bias=arguments["bias"] is not None,
    )  # fmt: skip
    if not isinstance(spec, ConvSpec):
        return spec
    return choose(name, _op(node), spec, options, options.linked or weight is None)


def _meta_value(node: Node) -> Tensor | None:
    """What export ("val") or Dynamo ("example_value") know of a node's value."""
    value = node.meta.get("val", node.meta.get("example_value"))
    return value if isinstance(value, Tensor) else None


def _flat(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def value_of(module: GraphModule, node: Node) -> Tensor | None:
    """The tensor that a node gives, if it is an attribute that was only laid out anew."""
    if node.op == "get_attr":
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part, None)
        return value if isinstance(value, Tensor) else None
    if not is_layout(node) or not node.args or not isinstance(node.args[0], Node):
        return None
    others = [item for argument in node.args[1:] for item in _flat(argument)]
    if any(isinstance(item, Node) for item in (*others, *node.kwargs.values())):
        return None
    value = value_of(module, node.args[0])
    if value is None:
        return None
    rest = node.args[1:]
    with torch.no_grad():
        if node.op == "call_method":
            return getattr(value, str(node.target))(*rest, **node.kwargs)
        target: Any = node.target
        return target(value, *rest, **node.kwargs)


def _emit(module: GraphModule, node: Node, signature: Signature, chosen: Chosen) -> None:
    arguments, spec = signature.read(node), chosen.spec
    source: Node = arguments["weight"]
    undo = Undo(node.target, spec, chosen.widths, chosen.report.form)
    if chosen.report.weights == "linked":
        node.target = depthwise_conv
        node.args = (
            arguments["input"], source, arguments["bias"], arguments["stride"],
            arguments["padding"], arguments["dilation"], spec.transposed,
            arguments.get("output_padding", 0), spec.channels, tuple(chosen.widths),
        )  # fmt: skip
        node.kwargs = {}
    else:
        weight = value_of(module, source)
        assert weight is not None
        packing = diagonal(spec, chosen.widths.forward).packing
        packed = nn.Parameter(pack(weight.detach(), packing), requires_grad=weight.requires_grad)
        stored = _store(module, node, packed)
        signature.write(node, weight=stored, groups=spec.channels // packing.width)
        attribute = str(source.target) if source.op == "get_attr" else None
        undo = replace(undo, stored=str(stored.target), attribute=attribute)
        _erase_unused(module, source)
    node.meta[UNDO] = undo


def _store(module: GraphModule, node: Node, value: nn.Parameter) -> Node:
    """A new parameter, and the node before ``node`` that reads it."""
    wanted = f"{node.name}_dwr_weight"
    name, count = wanted, 1
    while hasattr(module, name):
        count += 1
        name = f"{wanted}_{count}"
    module.register_parameter(name, value)
    with module.graph.inserting_before(node):
        return module.graph.get_attr(name)


def _erase_unused(module: GraphModule, node: Node) -> None:
    """Erases a node without users, and then what only it used."""
    if node.users or node.op == "placeholder":
        return
    operands = node.all_input_nodes
    module.graph.erase_node(node)
    for operand in operands:
        _erase_unused(module, operand)


def restore(model: GraphModule) -> Iterator[SiteReport]:
    """Undoes every rewritten call of ``model`` in place."""
    for prefix, module in model.named_modules():
        if not isinstance(module, GraphModule):
            continue
        for node in list(module.graph.nodes):
            undo = node.meta.get(UNDO)
            if undo is None:
                continue
            _restore(module, node, undo)
            del node.meta[UNDO]
            name = f"{prefix}.{node.name}" if prefix else node.name
            yield SiteReport(name, _op(node), undo.form, spec=undo.spec, undone=undo.form)
        module.graph.lint()
        module.recompile()


def _restore(module: GraphModule, node: Node, undo: Undo) -> None:
    if undo.stored is None:
        signature = SIGNATURES[undo.target]
        arguments = dict(zip(GENERAL, node.args, strict=False))
        node.target = undo.target
        node.args = tuple(arguments[name] for name in signature.names)
        return
    signature = SIGNATURES[undo.target]
    packed: Node = signature.read(node)["weight"]
    if undo.attribute is not None:
        with module.graph.inserting_before(node):
            compact = module.graph.get_attr(undo.attribute)
        delattr(module, undo.stored)
    else:  # the chain of layout operators is gone: the compact weight takes the packed one's place
        compact, old = packed, module.get_parameter(undo.stored)
        packing = diagonal(undo.spec, undo.widths.forward).packing
        value = unpack(old.detach(), packing).contiguous()
        module.register_parameter(undo.stored, nn.Parameter(value, old.requires_grad))
    signature.write(node, weight=compact, groups=undo.spec.channels)
    _erase_unused(module, packed)
