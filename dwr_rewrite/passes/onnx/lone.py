"""One convolution of a model taken out of it: without bias and padding, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.onnx.definitions import Place
from dwr_rewrite.passes.onnx.weights import Weight, along, resolve

Floats = NDArray[np.float32]

OPSET, IR = 13, 7
"""Versions of a model of one node, which every supported onnxruntime reads."""


@dataclass(frozen=True)
class Lone:
    """A convolution that is fed its weight.

    Attributes:
        weight: [M, C/group, k...]; [C, M/group, k...] when transposed.
        group: number of groups.
        transposed: a ConvTranspose.
        strides: step along each axis; empty for 1.
        dilations: distance between taps along each axis; empty for 1.
    """

    weight: Floats
    group: int
    transposed: bool
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, place: Place) -> Lone | None:
        """The convolution of a node; None where its weight is not known before it runs."""
        inputs = place.scope.view.nodes[place.index].inputs
        if len(inputs) < 2:
            return None
        found = resolve(inputs[1], place.scope, frozenset(), dict)
        if isinstance(found, Rejection) or found.load is None:
            return None
        return cls(
            _float32(found),
            (_ints(place.node, "group") or (1,))[0],
            place.node.op_type == "ConvTranspose",
            _ints(place.node, "strides"),
            _ints(place.node, "dilations"),
        )

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels."""
        first, second = self.weight.shape[0], self.weight.shape[1] * self.group
        return (first, second) if self.transposed else (second, first)

    @property
    def extent(self) -> tuple[int, ...]:
        """From the first to the last tap along each axis."""
        kernel = self.weight.shape[2:]
        dilations = self.dilations or (1,) * len(kernel)
        return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))

    def session(self) -> ort.InferenceSession:
        """A model of this one node, from "x" and "w" to "y"."""
        given = {"strides": self.strides, "dilations": self.dilations}
        attributes: dict[str, Any] = {name: value for name, value in given.items() if value}
        operator = "ConvTranspose" if self.transposed else "Conv"
        node = helper.make_node(operator, ["x", "w"], ["y"], group=self.group, **attributes)
        x, w, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xwy")
        graph = helper.make_graph([node], "lone", [x, w], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _float32(weight: Weight) -> Floats:
    """The weight in float32, in which nothing but a zero becomes one."""
    assert weight.load is not None
    array, quantized = weight.load(), weight.quantized
    if quantized:
        scale, zero_point = (
            along(operand, quantized.axis, array.ndim).astype(np.float32)
            for operand in (quantized.scale, quantized.zero_point)
        )
        return (array.astype(np.float32) - zero_point) * scale
    if array.dtype == np.float64:
        limits = np.finfo(np.float32)
        size = np.clip(np.abs(array), limits.tiny, limits.max)
        array = np.where(array == 0, 0, np.copysign(size, array))
    return array.astype(np.float32)


def _ints(node: NodeProto, name: str) -> tuple[int, ...]:
    """A whole number or a list of them; empty where the attribute is not there."""
    for attribute in node.attribute:
        if attribute.name == name:
            return (attribute.i,) if attribute.type == AttributeProto.INT else (*attribute.ints,)
    return ()
