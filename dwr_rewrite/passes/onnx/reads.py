"""What a node reads: its operands, and what its bodies take from the graph around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, NodeProto


def reads(node: NodeProto) -> list[str]:
    """Names of the values that a node reads from its own graph, each once."""
    taken = (name for body in _bodies(node) for name in _free(body))
    return list(dict.fromkeys([*filter(None, node.input), *taken]))


def rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Lets a node and its bodies read other values, in place."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for body in _bodies(node):
        own = _defined(body)
        outside = {name: new for name, new in names.items() if name not in own}
        for inner in body.node:
            rename(inner, outside)
        for value in body.output:
            value.name = outside.get(value.name, value.name)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _free(body: GraphProto) -> list[str]:
    own = _defined(body)
    names = [name for node in body.node for name in reads(node)]
    return [name for name in (*names, *(v.name for v in body.output)) if name not in own]


def _defined(body: GraphProto) -> set[str]:
    found = {value.name for value in (*body.input, *body.initializer)}
    found.update(sparse.values.name for sparse in body.sparse_initializer)
    return found.union(*(node.output for node in body.node))
