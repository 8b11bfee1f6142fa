"""Writes recipes into the model: new tensors, new nodes, and what nobody reads any more removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dwr_rewrite import __version__
from dwr_rewrite.passes.onnx.edit import Edit, apply, fill
from dwr_rewrite.passes.onnx.fold import to_array
from dwr_rewrite.passes.onnx.graphs import OVERRIDABLE_SINCE_IR, FreshNames, Scope, label
from dwr_rewrite.passes.onnx.match import Match
from dwr_rewrite.passes.onnx.metadata import stamp
from dwr_rewrite.passes.onnx.weights import Array, Quantized, along
from dwr_rewrite.planner import Decision
from dwr_rewrite.recipe import Packing

LINKED_SINCE_OPSET = 9
"""Where and EyeLike came with opset 9."""


class Emitter:
    """Emits decided sites; :meth:`finish` writes the collected edits."""

    def __init__(self, model: ModelProto, scopes: list[Scope]) -> None:
        """Prepares to edit ``model``, whose scopes are ``scopes``."""
        self.model = model
        self.scopes = scopes
        self.fresh = FreshNames(scopes)
        self.edits = {id(scope): Edit() for scope in scopes}
        self._packed: dict[tuple[object, ...], gs.Tensor] = {}
        self._needed: set[tuple[int, str]] = set()
        self._abandoned: list[tuple[gs.Tensor, Scope]] = []

    def rewrite(self, match: Match, decision: Decision, linked: bool) -> None:
        """Turns one convolution into the form of its decision.

        Args:
            match: the site.
            decision: its recipe and form.
            linked: build the diagonal in the graph from the compact weight, which stays.
        """
        assert decision.recipe is not None
        compact, packing = match.node.inputs[1], decision.recipe.packing
        if linked:
            weight = self._link(match, packing)
        elif match.weight.quantized:
            weight = self._quantize(match, packing, match.weight.quantized)
        else:
            weight = self._store(match, packing)
        self.replace_weight(match.scope, match.index, weight, decision.recipe.conv.groups)
        stamp(
            match.scope.proto.node[match.index],
            form=decision.form,
            weights="linked" if linked else "precomputed",
            group=match.site.spec.channels,
            weight=compact.name,
            version=__version__,
        )

    def replace_weight(self, scope: Scope, index: int, weight: gs.Tensor, groups: int) -> None:
        """Lets a convolution read another weight, in another number of groups."""
        node, proto = scope.view.nodes[index], scope.proto.node[index]
        self.replace_operands(scope, index, [node.inputs[0], weight, *node.inputs[2:]])
        group = next((a for a in proto.attribute if a.name == "group"), None)
        if group is None:
            proto.attribute.append(helper.make_attribute("group", groups))
        else:
            group.i = groups

    def replace_operands(self, scope: Scope, index: int, operands: list[gs.Tensor]) -> None:
        """Lets a node read other values; what nobody reads any more goes in :meth:`finish`."""
        node = scope.view.nodes[index]
        self._abandoned += [(tensor, scope) for tensor in node.inputs]
        node.inputs = operands
        scope.proto.node[index].input[:] = [tensor.name for tensor in operands]

    def store(self, owner: Scope, wanted: str, array: Array, slot: str) -> gs.Tensor:
        """A stored tensor, under the wanted name where that is free or holds the same already."""
        stored = owner.initializers.get(wanted)
        if stored is not None and to_array(stored).tobytes() == array.tobytes():
            self._needed.add((id(owner), wanted))
            return gs.Variable(wanted)
        name = wanted if self.fresh.claim(wanted) else self.fresh(wanted)
        self._add_tensor(owner, name, lambda: array, slot)
        return gs.Variable(name)

    def _store(self, match: Match, packing: Packing) -> gs.Tensor:
        """The packed weight as a stored tensor, where the compact one is stored."""
        load, owner = match.weight.load, match.weight.owner or match.scope
        assert load is not None
        name = match.weight.value.name
        return self._pack(owner, name, packing, lambda: packing.pack(load()))

    def _pack(
        self, owner: Scope, compact: str, packing: Packing, make: Callable[[], Array]
    ) -> gs.Tensor:
        """A stored tensor that is made once for each (scope, weight, width)."""
        key = (id(owner), compact, packing.width, packing.column)
        if key not in self._packed:
            name = self.fresh(f"{compact}_dwr{packing.width}")
            self._packed[key] = gs.Variable(name)
            self._add_tensor(owner, name, make, slot=compact)
        return self._packed[key]

    def _add_tensor(
        self, scope: Scope, name: str, make: Callable[[], Array], slot: str | None = None
    ) -> None:
        """An initializer; a Constant node where the scope cannot hold a new initializer."""
        edit = self.edits[id(scope)]
        was_initializer = slot in scope.initializers
        if isinstance(scope.proto, GraphProto) and (
            self.model.ir_version >= OVERRIDABLE_SINCE_IR or (was_initializer and not scope.path)
        ):
            edit.tensors[name] = make
            if slot is not None and was_initializer:
                edit.slots.setdefault(slot, name)
            return
        node = helper.make_node("Constant", [], [name], value=fill(TensorProto(), "", make))
        stamp(node, role="packed")
        edit.before.setdefault(0, []).append(node)

    def _quantize(self, match: Match, packing: Packing, quantized: Quantized) -> gs.Tensor:
        """A DequantizeLinear of the packed integers; off the diagonal stands the zero-point."""
        scope, owner, load = match.scope, match.weight.owner, match.weight.load
        key = (id(scope), match.weight.value.name, packing.width, packing.column)
        if key in self._packed:
            return self._packed[key]
        assert owner is not None and load is not None
        blank = along(quantized.zero_point, quantized.axis, len(packing.compact))
        operands = [
            self._pack(owner, quantized.integers.name, packing, lambda: packing.pack(load(), blank))
        ]
        for tensor, array in zip(
            quantized.node.inputs[1:], (quantized.scale, quantized.zero_point), strict=False
        ):
            operands.append(tensor)
            if quantized.axis == 1:  # axis 1 of a transposed weight is now b times as long
                tiled = np.tile(array, packing.width)
                operands[-1] = self._constant(scope, f"{tensor.name}_dwr{packing.width}", tiled)
        home, index = scope.locate(quantized.node)
        original = home.proto.node[index]
        node = NodeProto()
        node.CopyFrom(original)
        node.name = self.fresh(f"{label(original)}_dwr{packing.width}")
        node.input[:] = [tensor.name for tensor in operands]
        node.output[:] = [self.fresh(f"{match.weight.value.name}_dwr{packing.width}")]
        stamp(node, role="dequantize", inputs=json.dumps(list(original.input)))
        self._edit(scope).before.setdefault(match.index, []).append(node)
        self._packed[key] = gs.Variable(node.output[0])
        gs.Node(node.op_type, inputs=operands, outputs=[self._packed[key]])  # a reader in the view
        return self._packed[key]

    def _link(self, match: Match, packing: Packing) -> gs.Tensor:
        """Nodes that build the diagonal from the compact weight whenever the model is loaded.

        Where(identity, weight, 0): onnxruntime folds it at load, and a zero stays a zero beside an
        Inf or NaN. float16 and bfloat16 go through float32 and back, which is exact, because
        onnxruntime's CPU kernels, which do the folding, have no Where for them.
        """
        scope, compact = match.scope, match.node.inputs[1]
        key = (id(scope), compact.name, packing.width, packing.column)
        if key in self._packed:
            return self._packed[key]
        narrow = match.weight.dtype in ("float16", "bfloat16")
        stored = _ONNX_TYPE[match.weight.dtype]
        work = np.dtype("float32" if narrow else match.weight.dtype)
        emit = _Chain(self, scope, match.index, f"{match.node.name or compact.name}_dwr")
        value = emit("Cast", compact.name, to=TensorProto.FLOAT) if narrow else compact.name
        value = emit("Reshape", value, self._shape(scope, packing.split))
        zero = self._constant(scope, "dwr_zero", np.zeros((), work)).name
        value = emit("Where", self._identity(scope, packing), value, zero)
        value = emit("Reshape", value, self._shape(scope, packing.packed))
        value = emit("Cast", value, to=stored) if narrow else value
        self._packed[key] = gs.Variable(value)
        # In the view one node stands for the chain, so that the compact weight has its reader.
        gs.Node("Diagonal", inputs=[compact], outputs=[self._packed[key]])
        return self._packed[key]

    def _identity(self, scope: Scope, packing: Packing) -> str:
        """The b x b identity as booleans in the shape that ``packing`` selects with."""
        key = (id(scope), "identity", packing.eye)
        if key not in self._packed:
            emit = _Chain(self, scope, 0, f"dwr_identity{packing.width}")
            square = self._shape(scope, (packing.width, packing.width))
            zeros = numpy_helper.from_array(np.zeros(1, np.int32))
            value = emit("ConstantOfShape", square, value=zeros)
            value = emit("Cast", emit("EyeLike", value), to=TensorProto.BOOL)
            value = emit("Reshape", value, self._shape(scope, packing.eye))
            self._packed[key] = gs.Variable(value)
        return self._packed[key].name

    def _shape(self, scope: Scope, shape: tuple[int, ...]) -> str:
        name = "dwr_shape_" + "x".join(map(str, shape))
        return self._constant(scope, name, np.array(shape, np.int64)).name

    def _constant(self, scope: Scope, name: str, array: Array) -> gs.Tensor:
        """A small stored tensor, one for equal contents in a scope."""
        key = (id(scope), array.dtype.str, array.shape, array.tobytes())
        if key not in self._packed:
            self._packed[key] = gs.Variable(self.fresh(name))
            self._add_tensor(scope, self._packed[key].name, lambda: array)
        return self._packed[key]

    def finish(self) -> None:
        """Drops what nothing reads any more and writes every collected edit."""
        for tensor, scope in self._abandoned:
            self._sweep(tensor, scope)
        for scope in self.scopes:
            apply(self.model, scope, self._edit(scope))

    def _edit(self, scope: Scope) -> Edit:
        return self.edits[id(scope)]

    def _sweep(self, tensor: gs.Tensor, scope: Scope) -> None:
        """Removes a value without readers, and then what only its producer read."""
        if tensor.outputs:
            return
        stored = scope.find_initializer(tensor.name)
        if stored is not None:
            owner, _ = stored
            if tensor.name not in owner.outputs and (id(owner), tensor.name) not in self._needed:
                self._edit(owner).dropped.add(tensor.name)
        for producer in list(tensor.inputs):
            home, index = scope.locate(producer)
            if any(t.outputs or t.name in home.outputs for t in producer.outputs):
                return
            self._edit(home).dead.add(index)
            operands = list(producer.inputs)
            producer.inputs.clear()
            for operand in operands:
                self._sweep(operand, home)


@dataclass
class _Chain:
    """Appends nodes before one position of a scope; each call returns its output's name."""

    emitter: Emitter
    scope: Scope
    index: int
    prefix: str

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = self.emitter.fresh(f"{self.prefix}_{op}")
        node = helper.make_node(op, inputs, [output], name=output, **attributes)
        stamp(node, role="diagonal")
        self.emitter.edits[id(self.scope)].before.setdefault(self.index, []).append(node)
        return output


_ONNX_TYPE = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
