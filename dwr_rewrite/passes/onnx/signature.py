"""What stands around the nodes: versions, inputs and outputs, of a model, a body or a function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    OperatorSetIdProto,
    TypeProto,
    ValueInfoProto,
)

from dwr_rewrite.passes.onnx import bits
from dwr_rewrite.passes.onnx.fold import dtype_name
from dwr_rewrite.passes.onnx.graphs import OVERRIDABLE_SINCE_IR

SHOWN = 3
"""Names that a sentence lists before it only counts them."""


def model_differences(reference: ModelProto, candidate: ModelProto) -> Iterator[str]:
    """Sentences on the versions and on what has to be fed and is given back."""
    if reference.ir_version != candidate.ir_version:
        yield f"the IR version is {candidate.ir_version}, expected {reference.ir_version}"
    yield from _opset_differences(reference.opset_import, candidate.opset_import, "")
    stored = {tensor.name for tensor in reference.graph.initializer}
    before, after = _inputs(reference), _inputs(candidate)
    fixed = [name for name in before if name not in after and name in stored]
    if fixed:
        yield f"stored values that cannot be fed any more: {_names(fixed)}"
    for name in dict.fromkeys([*before, *after]):
        if name not in after and name not in fixed:
            yield f"the input {name!r} is only in the reference"
        elif name not in before:
            yield f"the input {name!r} is only in the candidate"
    yield from _type_differences("input", "", before, after)
    yield from _output_differences(reference.graph, candidate.graph, "")


def body_differences(reference: GraphProto, candidate: GraphProto, path: str) -> Iterator[str]:
    """Sentences on what a body takes, by position, and what it gives back."""
    before, after = ([value.name for value in g.input] for g in (reference, candidate))
    if before != after:
        yield f"the inputs of {path!r} are {after}, expected {before}"
    where = f" of {path!r}"
    yield from _type_differences("input", where, _types(reference.input), _types(candidate.input))
    yield from _output_differences(reference, candidate, where)


def function_differences(
    reference: FunctionProto, candidate: FunctionProto, path: str
) -> Iterator[str]:
    """Sentences on what a local function takes and gives back."""
    for field in ("input", "output", "attribute"):
        before, after = ([*getattr(function, field)] for function in (reference, candidate))
        if sorted(before) != sorted(after) if field == "attribute" else before != after:
            yield f"the {field}s of {path!r} are {after}, expected {before}"
    defaults = (
        {a.name: bits.serialized(a) for a in function.attribute_proto}
        for function in (reference, candidate)
    )
    if len({tuple(sorted(found.items())) for found in defaults}) > 1:
        yield f"the default attributes of {path!r} are others"
    yield from _opset_differences(reference.opset_import, candidate.opset_import, f" of {path!r}")


def _inputs(model: ModelProto) -> Mapping[str, TypeProto]:
    """What a caller can feed, by name; before IR 4 a stored value was listed but fixed."""
    stored = {tensor.name for tensor in model.graph.initializer}
    fixed = stored if model.ir_version < OVERRIDABLE_SINCE_IR else set[str]()
    return {v.name: v.type for v in model.graph.input if v.name not in fixed}


def opsets(imports: Iterable[OperatorSetIdProto]) -> dict[str, int]:
    """Versions by domain; the standard one is the empty name."""
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in imports}


def _names(listed: Sequence[str]) -> str:
    """A few names and how many more there are, for a sentence."""
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(map(repr, listed[:SHOWN])) + more


def _describe(value: TypeProto) -> str:
    """A type for a sentence: ``float32 [batch, 3, ?]``."""
    kind = value.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(value, kind)
        dims = ", ".join(
            str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
            for d in tensor.shape.dim
        )
        shape = f" [{dims}]" if tensor.HasField("shape") else ""
        return f"{kind.removesuffix('tensor_type')}{dtype_name(tensor.elem_type)}{shape}"
    if kind in ("sequence_type", "optional_type"):
        return f"{kind.removesuffix('_type')} of {_describe(getattr(value, kind).elem_type)}"
    return f"{kind or 'a value of no type'}"


def _opset_differences(
    reference: Iterable[OperatorSetIdProto], candidate: Iterable[OperatorSetIdProto], where: str
) -> Iterator[str]:
    before, after = opsets(reference), opsets(candidate)
    for domain in dict.fromkeys([*before, *after]):
        found, expected = (versions.get(domain, "none") for versions in (after, before))
        if found != expected:
            yield f"the opset {domain or 'ai.onnx'}{where} is {found}, expected {expected}"


def _output_differences(reference: GraphProto, candidate: GraphProto, where: str) -> Iterator[str]:
    before, after = ([value.name for value in g.output] for g in (reference, candidate))
    if before != after:
        yield f"the outputs{where} are {after}, expected {before}"
    types = _types(reference.output), _types(candidate.output)
    yield from _type_differences("output", where, *types)


def _types(values: Iterable[ValueInfoProto]) -> dict[str, TypeProto]:
    return {value.name: value.type for value in values}


def _type_differences(
    what: str, where: str, reference: Mapping[str, TypeProto], candidate: Mapping[str, TypeProto]
) -> Iterator[str]:
    for name, expected in reference.items():
        found = candidate.get(name, expected)
        if _describe(found) != _describe(expected):
            kinds = f"{_describe(found)}, expected {_describe(expected)}"
            yield f"the {what} {name!r}{where} is {kinds}"
