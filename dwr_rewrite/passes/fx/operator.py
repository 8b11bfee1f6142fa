"""``dwr::depthwise`` in the graph of an exported program, which holds operators only."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import Node

from dwr_rewrite.passes.fx.calls import Signature
from dwr_rewrite.passes.fx.geometry import tile_of
from dwr_rewrite.spec import ConvSpec

aten = torch.ops.aten
OPERATOR = torch.ops.dwr.depthwise.default  # dwr_rewrite.kernels.ops is loaded by now

SIGNATURE = Signature((
    "input", "weight", "scale", "bias", "size", "stride", "padding", "dilation", "groups",
    "transposed", "reduce", "activation", "tile",
))  # fmt: skip
"""Its arguments, by the names that those of convolutions have. ``padding`` is the one in front, and
what is behind follows from ``size``, the lengths of the output."""


def write(node: Node, form: str, spec: ConvSpec, arguments: Mapping[str, Any]) -> None:
    """Makes a call of a convolution, whose input has a batch, one of a kernel of ours.

    Args:
        node: the call.
        form: the kernel.
        spec: its geometry.
        arguments: of the call, by name.
    """
    found = arguments_of(node, spec, arguments) | {
        "size": list(_lengths(node, spec, arguments["input"])), "tile": tile_of(form),
    }  # fmt: skip
    node.target, node.kwargs = OPERATOR, {}
    node.args = tuple(found[name] for name in SIGNATURE.names)


def arguments_of(node: Node, spec: ConvSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the operator would be told in place of a call of a convolution, but for the tile.

    ``size`` is what the program knows of the call's result.
    """
    axes = range(len(spec.kernel))
    return {
        **{name: arguments[name] for name in ("input", "weight", "bias")},
        "scale": None,
        "size": list(node.meta["val"].shape[2:]),
        "stride": spec.stride,
        "padding": tuple(spec.pads(axis, 1)[0] for axis in axes),  # "same" has a stride of 1
        "dilation": spec.dilation,
        "groups": spec.channels,
        "transposed": spec.transposed,
        "reduce": False,
        "activation": "none",
    }


def is_length(node: Node) -> bool:
    """Whether a node computes a length, as those do that :func:`write` makes."""
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def erase_lengths(node: Node, size: list[Any]) -> None:
    """Erases the nodes that compute lengths of an output, where nothing else uses them."""
    pending = [length for length in size if isinstance(length, Node)]
    while pending:
        length = pending.pop()
        if is_length(length) and not length.users and length.op == "call_function":
            pending += length.all_input_nodes
            node.graph.erase_node(length)


def _lengths(node: Node, spec: ConvSpec, x: Node) -> Iterator[int | Node]:
    """The lengths of a call's result: numbers, and nodes for what is dynamic."""
    for axis, length in enumerate(node.meta["val"].shape[2:]):
        if isinstance(length, int):
            yield length
            continue
        stride, reach = spec.stride[axis], spec.dilation[axis] * (spec.kernel[axis] - 1) + 1
        padding = sum(spec.pads(axis, 1))
        with node.graph.inserting_before(node):
            found = _node(node, aten.sym_size.int, x, 2 + axis)
            if spec.transposed:
                more = reach - stride + spec.output_padding[axis] - padding
                yield _node(node, operator.add, _node(node, operator.mul, found, stride), more)
            else:
                room = _node(node, operator.add, found, padding - reach)
                steps = _node(node, operator.floordiv, room, stride)
                yield _node(node, operator.add, steps, 1)


def _node(place: Node, target: Any, *arguments: Any) -> Node:
    """A new node with the value that it has."""
    values = [a.meta["val"] if isinstance(a, Node) else a for a in arguments]
    node = place.graph.call_function(target, arguments)
    node.meta["val"] = target(*values)
    return node
