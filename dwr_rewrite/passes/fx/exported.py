"""Rewrites the convolutions of a torch.export.ExportedProgram in place, shapes and guards kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.passes.fx.calls import SIGNATURES, as_tuple, padding_of
from dwr_rewrite.passes.fx.decide import Chosen, Options, choose, inspect, left
from dwr_rewrite.passes.fx.functional import pack, unpack
from dwr_rewrite.passes.fx.graph import UNDO, Undo
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec


def rewrite(program: ExportedProgram, options: Options) -> list[SiteReport]:
    """Rewrites every depthwise call of ``program`` in place, with stored weights.

    A weight is an input of the graph here; its tensor in ``state_dict`` (or among the constants) is
    replaced by the packed one under the same name.
    """
    reports: list[SiteReport] = []
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target not in SIGNATURES:
            continue
        result = _match(program, node, options)
        if isinstance(result, Rejection):
            reports.append(left(node.name, str(node.target), result))
        elif result is not None:
            _emit(program, node, result)
            reports.append(result.report)
    program.graph_module.recompile()
    return reports


def _match(program: ExportedProgram, node: Node, options: Options) -> Chosen | Rejection | None:
    if UNDO in node.meta:
        form = node.meta[UNDO].form
        return Rejection("already-rewritten", f"already in the form {form}; dwr.restore undoes it")
    signature = SIGNATURES[node.target]  # type: ignore[index]
    arguments = signature.read(node)
    groups, source = arguments["groups"], arguments["weight"]
    if groups == 1:
        return None
    weight: Tensor = source.meta["val"]
    rank = weight.dim() - 2
    spec = inspect(
        weight, groups, as_tuple(arguments["stride"], rank),
        padding_of(arguments["padding"], rank), as_tuple(arguments["dilation"], rank),
        transposed=signature.transposed or arguments.get("transposed", False),
        output_padding=as_tuple(arguments.get("output_padding", 0), rank),
        bias=arguments["bias"] is not None,
    )  # fmt: skip
    if not isinstance(spec, ConvSpec):
        return spec
    if options.linked:
        return Rejection("linked-export", "an exported program stores its weights; rewrite the "
                         "module with weights='linked' before torch.export")  # fmt: skip
    if _name(program, source) is None:
        return Rejection("runtime-weight", f"its weight {source.name!r} is computed in the program")
    if len(source.users) > 1:
        return Rejection("shared-weight", f"{len(source.users)} nodes read its weight "
                         f"{source.name!r}")  # fmt: skip
    return choose(node.name, str(node.target), spec, options, linked=False)


def _name(program: ExportedProgram, source: Node) -> str | None:
    """The name under which a graph input is stored in the program."""
    signature = program.graph_signature
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if source.name in names:
            return names[source.name]
    return None


def _emit(program: ExportedProgram, node: Node, chosen: Chosen) -> None:
    signature, spec = SIGNATURES[node.target], chosen.spec  # type: ignore[index]
    source: Node = signature.read(node)["weight"]
    packing = diagonal(spec, chosen.widths.forward).packing
    _replace(program, source, lambda weight: pack(weight, packing))
    signature.write(node, groups=spec.channels // packing.width)
    node.meta[UNDO] = Undo(node.target, spec, chosen.widths, chosen.report.form)


def _replace(program: ExportedProgram, source: Node, change: Callable[[Tensor], Tensor]) -> None:
    """Changes a stored tensor, and what the graph knows of its shape."""
    name = _name(program, source)
    assert name is not None
    store: dict[str, Any] = program.state_dict if name in program.state_dict else program.constants
    old: Tensor = store[name]
    value = change(old.detach())
    if isinstance(old, nn.Parameter):
        store[name] = nn.Parameter(value, old.requires_grad)
    else:
        store[name] = value
    source.meta["val"] = change(source.meta["val"])
    source.meta.pop("tensor_meta", None)


def restore(program: ExportedProgram) -> Iterator[SiteReport]:
    """Undoes every rewritten call of ``program`` in place."""
    for node in program.graph.nodes:
        undo = node.meta.pop(UNDO, None)
        if undo is None:
            continue
        signature = SIGNATURES[node.target]
        packing = diagonal(undo.spec, undo.widths.forward).packing
        _replace(
            program, signature.read(node)["weight"],
            lambda weight, packing=packing: unpack(weight, packing).contiguous(),
        )  # fmt: skip
        signature.write(node, groups=undo.spec.channels)
        yield SiteReport(node.name, str(node.target), undo.form, spec=undo.spec, undone=undo.form)
    program.graph_module.recompile()
