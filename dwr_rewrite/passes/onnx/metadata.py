"""What a rewritten node says about itself, in its metadata_props under ``dwr.``."""

from __future__ import annotations

from onnx import NodeProto

PREFIX = "dwr."


def stamp(node: NodeProto, **values: str | int) -> None:
    """Adds ``dwr.<key>`` entries to a node."""
    for key, value in values.items():
        node.metadata_props.add(key=PREFIX + key, value=str(value))


def read(node: NodeProto) -> dict[str, str]:
    """The ``dwr.`` entries of a node, without the prefix."""
    return {
        entry.key.removeprefix(PREFIX): entry.value
        for entry in node.metadata_props
        if entry.key.startswith(PREFIX)
    }


def erase(node: NodeProto) -> None:
    """Removes the ``dwr.`` entries and leaves the others in their order."""
    others = [entry for entry in node.metadata_props if not entry.key.startswith(PREFIX)]
    kept = [(entry.key, entry.value) for entry in others]
    del node.metadata_props[:]
    for key, value in kept:
        node.metadata_props.add(key=key, value=value)
