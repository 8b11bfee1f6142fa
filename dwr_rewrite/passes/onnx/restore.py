"""Gives back the depthwise form of what this tool has rewritten, from the nodes' metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.passes.onnx.emit import Emitter
from dwr_rewrite.passes.onnx.fold import fold
from dwr_rewrite.passes.onnx.graphs import Scope, label
from dwr_rewrite.passes.onnx.metadata import erase, read
from dwr_rewrite.passes.onnx.weights import Array, along
from dwr_rewrite.planner import Selection
from dwr_rewrite.recipe import Packing
from dwr_rewrite.spec import ConvSpec


@dataclass(frozen=True)
class Restored:
    """What became of one rewritten node: its old form, and why it could not be undone, if so."""

    name: str
    op: str
    form: str
    rejection: Rejection | None = None


@dataclass(frozen=True)
class _Notes:
    """A rewritten convolution and what its metadata says."""

    proto: NodeProto
    form: str
    channels: int
    weight: str

    @property
    def width(self) -> int:
        groups = next((a.i for a in self.proto.attribute if a.name == "group"), 1)
        return self.channels // groups

    def packing(self, shape: tuple[int, ...]) -> Packing | None:
        """How a weight of this shape was packed; None when the metadata does not fit it."""
        transposed = self.proto.op_type == "ConvTranspose"
        out = shape[1] * self.channels // self.width if transposed else shape[0]
        try:
            spec = ConvSpec(
                self.channels, shape[2:], multiplier=out // self.channels, transposed=transposed
            )
        except ValueError:
            return None
        packing = diagonal(spec, self.width).packing
        return packing if packing.packed == shape else None


def restore(model: ModelProto, scopes: list[Scope], selection: Selection) -> list[Restored]:
    """Undoes every selected rewrite in ``model``, in place.

    A node whose weight is no longer diagonal (it was trained or quantized since) stays.
    """
    undo = _Undo(Emitter(model, scopes), selection)
    results = [
        undo.node(scope, index, notes)
        for scope in scopes
        for index, proto in enumerate(scope.proto.node)
        if (notes := _read(proto)) is not None
    ]
    undo.emitter.finish()
    return results


def _read(proto: NodeProto) -> _Notes | None:
    notes = read(proto)
    channels, weight = notes.get("group", ""), notes.get("weight", "")
    if "form" not in notes or not channels.isdecimal() or not weight:
        return None
    return _Notes(proto, notes["form"], int(channels), weight)


class _Undo:
    def __init__(self, emitter: Emitter, selection: Selection) -> None:
        self.emitter, self.selection = emitter, selection
        self._compact: dict[tuple[int, str], gs.Tensor] = {}

    def node(self, scope: Scope, index: int, notes: _Notes) -> Restored:
        name = scope.path + label(notes.proto)
        excluded = self.selection.reject(name)
        if excluded is not None:
            return Restored(name, notes.proto.op_type, notes.form, excluded)
        compact = self._compact_weight(scope, scope.view.nodes[index].inputs[1], notes)
        if isinstance(compact, Rejection):
            return Restored(name, notes.proto.op_type, notes.form, compact)
        self.emitter.replace_weight(scope, index, compact, notes.channels)
        erase(notes.proto)
        return Restored(name, notes.proto.op_type, notes.form)

    def _compact_weight(
        self, scope: Scope, packed: gs.Tensor, notes: _Notes
    ) -> gs.Tensor | Rejection:
        producer = next(iter(packed.inputs), None)
        if producer is None or producer.op == "Constant":
            return self._unpack(scope, packed, notes, notes.weight)
        home, index = scope.locate(producer)
        proto = home.proto.node[index]
        role = read(proto).get("role")
        if role == "diagonal":  # linked: the compact weight is still there
            return _upstream(packed, notes.weight) or _lost(packed)
        if producer.op == "DequantizeLinear" and role == "dequantize":
            rejection = self._restore_operands(home, index, notes)
            if rejection is not None:
                return rejection
            erase(proto)
            if self.emitter.fresh.claim(notes.weight):
                packed.name = proto.output[0] = notes.weight
            return packed
        if producer.op == "DequantizeLinear":  # restored already, for a site that shares it
            return packed
        return _lost(packed)

    def _restore_operands(self, home: Scope, index: int, notes: _Notes) -> Rejection | None:
        """Gives our DequantizeLinear the operands that the original one had."""
        node, proto = home.view.nodes[index], home.proto.node[index]
        names: list[str] = json.loads(read(proto)["inputs"])
        packed = fold(node.inputs[0], home)
        if isinstance(packed, Rejection):
            return packed
        values = [fold(tensor, home) for tensor in node.inputs[1:]]
        operands: list[gs.Tensor] = []
        fill: Array | int = 0
        axis = int(node.attrs.get("axis", 1)) % packed.ndim
        for tensor, name, array in zip(node.inputs[1:], names[1:], values, strict=True):
            if isinstance(array, Rejection):
                return array
            tiled = tensor.name != name  # because it ran along axis 1
            own = array[: array.size // notes.width] if tiled else array
            operands.append(self._store(home, tensor.name, name, own) if tiled else tensor)
            fill = along(own, axis, packed.ndim) if own.size > 1 else own
        integers = self._unpack(home, node.inputs[0], notes, names[0], fill)
        if isinstance(integers, Rejection):
            return integers
        self.emitter.replace_operands(home, index, [integers, *operands])
        return None

    def _unpack(
        self, scope: Scope, packed: gs.Tensor, notes: _Notes, wanted: str, fill: Array | int = 0
    ) -> gs.Tensor | Rejection:
        """The compact weight as a stored value."""
        array = fold(packed, scope)
        if isinstance(array, Rejection):
            return _lost(packed)
        packing = notes.packing(array.shape)
        if packing is None:
            return Rejection("not-ours", f"its weight has shape {list(array.shape)}, which is not "
                             f"the form {notes.form} of {notes.channels} channels")  # fmt: skip
        compact = packing.unpack(array)
        if packing.pack(compact, fill).tobytes() != array.tobytes():
            return Rejection("not-diagonal", "its weight holds more than a diagonal now: it was "
                             "changed after the rewrite")  # fmt: skip
        return self._store(scope, packed.name, wanted, compact)

    def _store(self, scope: Scope, slot: str, wanted: str, array: Array) -> gs.Tensor:
        """One stored value for each one that it replaces."""
        stored = scope.find_initializer(slot)
        owner = stored[0] if stored else scope
        key = (id(owner), slot)
        if key not in self._compact:
            self._compact[key] = self.emitter.store(owner, wanted, array, slot)
        return self._compact[key]


def _lost(packed: gs.Tensor) -> Rejection:
    return Rejection(
        "not-stored", f"the compact weight behind {packed.name!r} is not there any more"
    )


def _upstream(value: gs.Tensor, name: str) -> gs.Tensor | None:
    """The value of this name among those that ``value`` is computed from."""
    pending = [value]
    while pending:
        tensor = pending.pop()
        if tensor.name == name:
            return tensor
        pending += [operand for node in tensor.inputs for operand in node.inputs]
    return None
