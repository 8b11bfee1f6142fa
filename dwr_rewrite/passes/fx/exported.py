"""Rewrites the convolutions of a torch.export.ExportedProgram in place, shapes and guards kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.fx import operator
from dwr_rewrite.passes.fx.calls import SIGNATURES, update_meta, writes
from dwr_rewrite.passes.fx.decide import Chosen, Options, choose, left, spec_of
from dwr_rewrite.passes.fx.functional import pack, unpack
from dwr_rewrite.passes.fx.geometry import packing_of
from dwr_rewrite.passes.fx.graph import NOT_DIAGONAL, UNDO, Undo
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec


def rewrite(program: ExportedProgram, options: Options) -> list[SiteReport]:
    """Rewrites every depthwise call of ``program`` in place, with stored weights or by kernels.

    A weight is an input of the graph here; its tensor in ``state_dict`` (or among the constants) is
    replaced by the packed one under the same name; a kernel takes it as it is. Bodies of control
    flow get theirs as arguments.
    """
    options = options.by(options.choosers[0])  # one operator has one form
    reports = list(_in_bodies(program))
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not (node.target in SIGNATURES or UNDO in node.meta):
            continue
        result = _match(program, node, options)
        if isinstance(result, Rejection):
            reports.append(left(node.name, str(node.target), result))
        elif result is not None:
            _emit(program, node, result)
            reports.append(result.report)
    program.graph_module.recompile()
    return reports


def _in_bodies(program: ExportedProgram) -> Iterator[SiteReport]:
    """Depthwise calls inside of control flow, which are kept."""
    reason = Rejection("control-flow", "it is in the body of control flow, where weights are "
                       "arguments; rewrite the module before torch.export")  # fmt: skip
    for prefix, body in program.graph_module.named_modules():
        if not prefix or not isinstance(body, GraphModule):
            continue
        for node in body.graph.nodes:
            signature = SIGNATURES.get(node.target) if node.op == "call_function" else None
            if signature is not None and signature.read(node)["groups"] != 1:
                yield left(f"{prefix}.{node.name}", str(node.target), reason)


def _match(program: ExportedProgram, node: Node, options: Options) -> Chosen | Rejection | None:
    if UNDO in node.meta:
        form = node.meta[UNDO].form
        return Rejection("already-rewritten", f"already in the form {form}; dwr.restore undoes it")
    signature = SIGNATURES[node.target]
    arguments = signature.read(node)
    groups, source = arguments["groups"], arguments["weight"]
    if groups == 1:
        return None
    weight: Tensor = source.meta["val"]
    spec = spec_of(signature, arguments, weight)
    if not isinstance(spec, ConvSpec):
        return spec
    if not options.is_kernel:
        rejection = _cannot_store(program, source, options)
        if rejection is not None:
            return rejection
    chosen = choose(node.name, str(node.target), spec, options, linked=False)
    batch = arguments["input"].meta["val"].dim() == len(spec.kernel) + 2
    if isinstance(chosen, Chosen) and chosen.report.weights == "linked" and not batch:
        return Rejection("no-batch", "its input has no batch, which the kernels' operator needs")
    return chosen


def _cannot_store(program: ExportedProgram, source: Node, options: Options) -> Rejection | None:
    """Why a packed weight cannot take the place of the compact one."""
    if options.linked:
        return Rejection("linked-export", "an exported program stores its weights; rewrite the "
                         "module with weights='linked' before torch.export")  # fmt: skip
    if _name(program, source) is None:
        return Rejection("runtime-weight", f"its weight {source.name!r} is computed in the program")
    mutated = program.graph_signature.buffers_to_mutate.values()
    if _name(program, source) in mutated or any(map(writes, source.users)):
        return Rejection("weight-written", f"the program changes its weight {source.name!r}")
    if len(source.users) > 1:
        return Rejection("shared-weight", f"{len(source.users)} nodes read its weight "
                         f"{source.name!r}")  # fmt: skip
    return None


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
    signature, spec, form = SIGNATURES[node.target], chosen.spec, chosen.forms.forward
    arguments = signature.read(node)
    undo = Undo(
        node.target, spec, chosen.forms, chosen.report.form, len(node.args), tuple(node.kwargs)
    )
    if isinstance(form, str):
        tensors = {name: arguments.pop(name) for name in ("input", "weight", "bias")}
        undo = replace(undo, numbers=arguments)
        operator.write(node, form, spec, tensors)
    else:
        packing = packing_of(spec, chosen.forms)
        _replace(program, arguments["weight"], lambda weight: pack(weight, packing))
        signature.write(node, groups=spec.channels // packing.width)
    node.meta[UNDO] = undo


def _replace(program: ExportedProgram, source: Node, change: Callable[[Tensor], Tensor]) -> None:
    """Changes a stored tensor, and what the graph knows of its shape."""
    store, name = _stored(program, source)
    old = store[name]
    value = change(old.detach())
    store[name] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    update_meta(source, change)


def _stored(program: ExportedProgram, source: Node) -> tuple[dict[str, Any], str]:
    name = _name(program, source)
    assert name is not None
    return program.state_dict if name in program.state_dict else program.constants, name


def restore(program: ExportedProgram) -> Iterator[SiteReport]:
    """Undoes every rewritten call of ``program`` in place."""
    for node in list(program.graph.nodes):
        undo = node.meta.get(UNDO)
        if undo is None:
            continue
        rejection = _restore(program, node, undo)
        form = "keep" if rejection is None else undo.form
        yield SiteReport(node.name, str(node.target), form, rejection, undo.spec, undone=undo.form)
    program.graph_module.recompile()


def _restore(program: ExportedProgram, node: Node, undo: Undo) -> Rejection | None:
    if node.target is operator.OPERATOR:
        arguments = operator.SIGNATURE.read(node)
        undo.call(node, {**arguments, **undo.numbers})
        operator.erase_lengths(node, arguments["size"])
    else:
        signature, packing = SIGNATURES[node.target], packing_of(undo.spec, undo.forms)
        source: Node = signature.read(node)["weight"]
        store, name = _stored(program, source)
        packed: Tensor = store[name]
        if unpack(packed, packing).count_nonzero() != packed.count_nonzero():
            return NOT_DIAGONAL
        _replace(program, source, lambda weight: unpack(weight, packing))
        signature.write(node, groups=undo.spec.channels)
    del node.meta[UNDO]
    return None
