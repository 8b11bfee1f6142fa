"""The lemma of the diagonal embedding, held against one rewritten convolution.

A depthwise convolution of C channels is the convolution with C / b groups whose weight holds the
depthwise one on its diagonal, and zeros elsewhere (:mod:`dwr_rewrite.lowerings.diagonal`). So it
is enough that the weight does, and that all else about the two nodes is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnx import NodeProto, helper

from dwr_rewrite.equivalence.evidence import Lemma
from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.passes.onnx.attributes import attribute_differences
from dwr_rewrite.passes.onnx.bits import describe, texts, unequal, unlike
from dwr_rewrite.passes.onnx.definitions import Place
from dwr_rewrite.passes.onnx.fold import Array, fold
from dwr_rewrite.passes.onnx.graphs import Scope
from dwr_rewrite.passes.onnx.metadata import read
from dwr_rewrite.passes.onnx.moved import Moved, Source, trace
from dwr_rewrite.passes.onnx.structure import Changed, Difference
from dwr_rewrite.passes.onnx.weights import Quantized, Types, along, resolve
from dwr_rewrite.spec import ConvSpec


class _NotProvedError(Exception):
    """Why the lemma does not hold, or cannot be told to hold."""

    def __init__(self, status: Literal["refuted", "unproved"], detail: str) -> None:
        super().__init__(detail)
        self.status: Literal["refuted", "unproved"] = status
        self.detail = detail


def examine(changed: Changed, types: Callable[[], Types]) -> Lemma:
    """Whether a rewritten convolution is the reference's, by the lemma.

    Args:
        changed: the two convolutions, the candidate's marked by this tool.
        types: inferred types of the reference, computed only when they are needed.

    Raises:
        DwrError: a tensor is corrupt.
    """
    notes = read(changed.candidate.node)
    weights = notes.get("weights", "precomputed")
    try:
        detail = _Embedding(changed, types).proof()
    except _NotProvedError as found:
        return Lemma(changed.candidate.name, notes["form"], weights, found.status, found.detail)
    return Lemma(changed.candidate.name, notes["form"], weights, "proved", detail)


class _Embedding:
    """A depthwise convolution and the one that is to be its diagonal form."""

    def __init__(self, changed: Changed, types: Callable[[], Types]) -> None:
        self.changed = changed
        self.r, self.c = changed.reference, changed.candidate
        found = resolve(_weight(self.r), self.r.scope, frozenset(), types)
        if isinstance(found, Rejection):
            raise _NotProvedError("unproved", found.reason)
        self.weight, self.value = found, _weight(self.c)
        self.spec = self._spec()

    def _spec(self) -> ConvSpec:
        shape, channels = self.weight.shape, _group(self.r)
        transposed = self.r.node.op_type == "ConvTranspose"
        outputs = channels * shape[1] if transposed else shape[0]
        depthwise = shape[0] == channels if transposed else shape[1] == 1
        if not depthwise or channels < 1 or outputs % channels:
            raise _NotProvedError(
                "unproved",
                f"the reference is no depthwise convolution: its weight has shape {list(shape)}, "
                f"its group is {channels}",
            )
        try:
            return ConvSpec(channels, shape[2:], outputs // channels, transposed=transposed)
        except ValueError as error:
            raise _NotProvedError("unproved", str(error)) from error

    def proof(self) -> str:
        """What was found, where the lemma holds."""
        for difference in self.changed.differences:
            if not self._explained(difference):
                status = "refuted" if difference.certain else "unproved"
                raise _NotProvedError(status, difference.detail)
        groups, channels = _group(self.c), self.spec.channels
        if groups < 1 or channels % groups:
            what = f"its group is {groups}, which does not divide its {channels} channels"
            raise _NotProvedError("refuted", what)
        self.packing = diagonal(self.spec, channels // groups).packing
        if self.weight.quantized:
            return self._quantized(self.weight.quantized)
        moved = self._trace()
        return self._moved(moved) if isinstance(moved, Moved) else self._stored(moved.reason)

    def _explained(self, difference: Difference) -> bool:
        """Whether the lemma allows it, or an attribute is left out that has its default value."""
        if (difference.kind, difference.key) in (("attribute", "group"), ("operand", 1)):
            return True
        given = [
            helper.get_attribute_value(attribute)
            for place in (self.r, self.c)
            for attribute in place.node.attribute
            if difference.kind == "attribute" and attribute.name == difference.key
        ]
        ones, zeros = [1] * len(self.spec.kernel), [0] * len(self.spec.kernel)
        defaults: dict[str | int, object] = {
            "auto_pad": b"NOTSET", "strides": ones, "dilations": ones, "pads": zeros * 2,
            "output_padding": zeros, "kernel_shape": list(self.spec.kernel),
        }  # fmt: skip
        return len(given) == 1 and given[0] == defaults.get(difference.key)

    def _trace(self) -> Moved | Rejection:
        source = Source(self.weight.value.name, self.weight.shape, self.weight.dtype)
        if self.value.name == source.name:  # nothing in between
            return Rejection("runtime", f"{source.name!r} is not stored")
        return trace(self.value, self.c.scope, source)

    def _stored(self, why: str) -> str:
        """A weight that is stored, or folds to an array."""
        found, name = fold(self.value, self.c.scope), self.weight.value.name
        if isinstance(found, Rejection):
            raise _NotProvedError("unproved", f"its weight cannot be told: {why}")
        if self.weight.load is None:
            raise _NotProvedError("unproved", f"its weight is stored; {name!r} is computed")
        self._check(found, self.packing.pack(self.weight.load()))
        return (
            f"{self.value.name}{[*self.packing.packed]} holds {name}{[*self.packing.compact]} on "
            f"its diagonal, bit for bit, and zeros elsewhere"
        )

    def _moved(self, moved: Moved) -> str:
        """A weight that the graph builds: first where the elements go, then what they are."""
        name, packing = self.weight.value.name, self.packing
        numbers = np.arange(1, prod(packing.compact) + 1, dtype=moved.origin.dtype)
        self._check(
            moved.origin,
            packing.pack(numbers.reshape(packing.compact)),
            lambda text: f"element {int(text) - 1} of {name!r}" if int(text) else "zero",
        )
        if moved.dtype != self.weight.dtype:
            what = f"its weight is {moved.dtype}, expected {self.weight.dtype}"
            raise _NotProvedError("refuted", what)
        found, load = fold(moved.source, self.c.scope), self.weight.load
        if isinstance(found, Rejection) != (load is None):
            raise _NotProvedError("unproved", f"only one of the two models stores {name!r}")
        if load is not None and not isinstance(found, Rejection):
            self._check(packing.pack(found), packing.pack(load()))
        return (
            f"the graph lays {name}{[*packing.compact]} on the diagonal of "
            f"{self.value.name}{[*packing.packed]}, whatever it holds, and zeros elsewhere"
        )

    def _quantized(self, quantized: Quantized) -> str:
        """Integers behind a DequantizeLinear; the zero-point, off the diagonal, stands for 0."""
        node, load, packing = next(iter(self.value.inputs), None), self.weight.load, self.packing
        assert load is not None
        if node is None or node.op != quantized.node.op:
            raise _NotProvedError("unproved", f"its weight {self.value.name!r} is not dequantized")
        protos = _proto(quantized.node, self.r.scope), _proto(node, self.c.scope)
        for _, text in attribute_differences(*protos):
            raise _NotProvedError("refuted", f"of the {node.op} of its weight: {text}")
        blank = along(quantized.zero_point, quantized.axis, len(packing.compact))
        integers, *others = (self._folded(tensor) for tensor in node.inputs if tensor.name)
        self._check(integers, packing.pack(load(), blank))
        times = packing.width if quantized.axis == 1 else 1  # axis 1 is that much longer now
        names = [tensor.name for tensor in quantized.node.inputs if tensor.name][1:]
        if len(others) != len(names):
            raise _NotProvedError("unproved", f"only one {node.op} of its weight has a zero-point")
        for name, found, own in zip(
            names, others, (quantized.scale, quantized.zero_point), strict=False
        ):
            if text := unequal(np.tile(own, times) if times > 1 else own, found):
                raise _NotProvedError("refuted", f"{name!r} of its weight is another one: {text}")
        return (
            f"{node.inputs[0].name}{[*packing.packed]} holds {quantized.integers.name}"
            f"{[*packing.compact]} on its diagonal, bit for bit, and the zero-point elsewhere; "
            f"scale and zero-point are the same"
        )

    def _folded(self, tensor: gs.Tensor) -> Array:
        found = fold(tensor, self.c.scope)
        if isinstance(found, Rejection):
            raise _NotProvedError("unproved", f"its weight cannot be told: {found.reason}")
        return found

    def _check(
        self, found: Array, expected: Array, show: Callable[[str], str] = lambda text: text
    ) -> None:
        """Refutes the lemma where a packed weight is not the expected one, bit for bit."""
        if (found.dtype, found.shape) != (expected.dtype, expected.shape):
            what = f"its weight is {describe(found)}, expected {describe(expected)}"
            raise _NotProvedError("refuted", what)
        wrong = unlike(found, expected)
        if not wrong.any():
            return
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        output, source = self._channels(*index[:2])
        where = f"output channel {output}, input channel {source}, tap {index[2:]}"
        got, wanted = map(show, texts(found[index], expected[index]))
        if output // self.spec.multiplier == source:
            what = f"its weight is another one: {where} is {got}, expected {wanted}"
        else:
            what = f"something stands off the diagonal: {where} is {got}, expected {wanted}"
        raise _NotProvedError("refuted", what)

    def _channels(self, first: int, second: int) -> tuple[int, int]:
        """Output and input channel of a position in the packed weight."""
        width, multiplier = self.packing.width, self.spec.multiplier
        if self.spec.transposed:
            return first // width * width * multiplier + second, first
        return first, first // (width * multiplier) * width + second


def _weight(place: Place) -> gs.Tensor:
    inputs = place.scope.view.nodes[place.index].inputs
    if len(inputs) < 2 or not inputs[1].name:
        raise _NotProvedError("unproved", f"{place} has no weight")
    return inputs[1]


def _group(place: Place) -> int:
    return next((a.i for a in place.node.attribute if a.name == "group"), 1)


def _proto(node: gs.Node, scope: Scope) -> NodeProto:
    home, index = scope.locate(node)
    return home.proto.node[index]
