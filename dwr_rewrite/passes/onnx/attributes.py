"""The attributes of two nodes held against each other; their order does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import AttributeProto, NodeProto, helper

from dwr_rewrite.passes.onnx import bits


def attribute_differences(reference: NodeProto, candidate: NodeProto) -> Iterator[tuple[str, str]]:
    """Names of the attributes that differ, each with a sentence that says how.

    A body is only looked for; what is in it is not compared.

    Raises:
        DwrError: a tensor is corrupt, or lies in a file that was not loaded.
    """
    before = {attribute.name: attribute for attribute in reference.attribute}
    after = {attribute.name: attribute for attribute in candidate.attribute}
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        if other is None:
            yield name, f"it has no {name}, the reference has {_value(one)}"
        elif one is None:
            yield name, f"its {name} {_verb(other)} {_value(other)}, the reference leaves it out"
        elif found := _difference(one, other):
            yield name, f"its {name} {_verb(other)} {found}"


def _difference(reference: AttributeProto, candidate: AttributeProto) -> str:
    """What follows "its pads are"; empty where they are the same."""
    if reference.type != candidate.type or reference.ref_attr_name != candidate.ref_attr_name:
        return f"{_value(candidate)}, the reference has {_value(reference)}"
    if reference.type == AttributeProto.GRAPH and not reference.ref_attr_name:
        return ""
    if reference.type == AttributeProto.TENSOR:
        pairs = [(reference.t, candidate.t)]
    elif reference.type == AttributeProto.SPARSE_TENSOR:
        pairs = [(reference.sparse_tensor, candidate.sparse_tensor)]
    elif reference.type == AttributeProto.TENSORS:
        if len(reference.tensors) != len(candidate.tensors):
            return f"{len(candidate.tensors)} tensors, expected {len(reference.tensors)}"
        pairs = [*zip(reference.tensors, candidate.tensors, strict=True)]
    else:
        same = bits.serialized(reference) == bits.serialized(candidate)
        return "" if same else f"{_value(candidate)}, the reference has {_value(reference)}"
    found = (bits.difference(one, other) for one, other in pairs)
    return next((f"another tensor: {text}" for text in found if text), "")


def _verb(attribute: AttributeProto) -> str:
    plural = attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)
    return "are" if plural and attribute.name.endswith("s") else "is"


def _value(attribute: AttributeProto | None) -> str:
    """A value for a sentence: numbers and text as they are, anything larger by its kind."""
    if attribute is None or attribute.ref_attr_name:
        return f"the function's {attribute.ref_attr_name!r}" if attribute else "none"
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, int | float):
        return str(value)
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return str([*value])
    return f"a value of type {AttributeProto.AttributeType.Name(attribute.type)}"
