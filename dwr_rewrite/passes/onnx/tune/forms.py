"""A small model of one convolution in one form, with random weights and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.statistics import Array
from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import lower
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Workload

OPSET, IR = 13, 7
BFLOAT16_OPSET, BFLOAT16_IR = 22, 10
"""Versions that every supported onnxruntime reads; Conv takes bfloat16 from opset 22 on."""

FEWEST, MOST = 8, 16
"""Convolutions in a model for a device of its own. Starting a session costs the host some 10 us,
about what a small convolution takes; spread over several, it does not hide the difference."""

MOST_BYTES = 256 << 20
"""Of their inputs and outputs together, if there is more than one."""


@dataclass(frozen=True)
class Layer:
    """One convolution and everything random about it; its forms share it.

    The model holds it ``count`` times, each with an input of its own, so that the cache of a device
    does not serve them.

    Attributes:
        workload: the convolution.
        count: how often it stands in the model.
        weight: the compact weight, [C*m, 1, k...] or [C, m, k...] when transposed.
        bias: [C*m], or None.
        feeds: inputs by name, [N, C, spatial...], or [N, spatial..., C] in channels_last.
    """

    workload: Workload
    count: int
    weight: Array
    bias: Array | None
    feeds: Arrays

    @classmethod
    def of(cls, workload: Workload, cache_bytes: int) -> Layer:
        """The layer of a workload.

        Args:
            workload: the convolution.
            cache_bytes: of the device's cache; 0 on a host.
        """
        spec, rng = workload.spec, np.random.default_rng(0)

        def draw(*shape: int) -> Array:
            return rng.uniform(-1, 1, shape).astype(np.float32).astype(numpy_type(spec.dtype))

        weight = draw(*spec.weight_shape)
        bias = draw(spec.out_channels) if spec.bias else None
        batch, channels, *spatial = workload.input_shape
        shape = (batch, channels, *spatial)
        if workload.layout == "channels_last":
            shape = (batch, *spatial, channels)
        count = _count(workload, cache_bytes)
        return cls(workload, count, weight, bias, {f"x{i}": draw(*shape) for i in range(count)})

    def model(self, form: str) -> ModelProto:
        """The model of one form, from ``x0`` ... to ``y0`` ..."""
        spec = self.workload.spec
        recipe = lower(spec, form)
        assert not isinstance(recipe, Rejection)  # it was asked about
        tensors = {"w": recipe.packing.pack(self.weight)}
        if self.bias is not None:
            tensors["b"] = self.bias
        nodes = [
            node
            for index in range(self.count)
            for node in self._nodes(index, list(tensors), recipe.conv.groups)
        ]
        kind = helper.np_dtype_to_tensor_dtype(self.weight.dtype)
        graph = helper.make_graph(
            nodes, form,
            [helper.make_tensor_value_info(name, kind, x.shape) for name, x in self.feeds.items()],
            [helper.make_tensor_value_info(f"y{i}", kind, None) for i in range(self.count)],
            [_tensor(name, array) for name, array in tensors.items()],
        )  # fmt: skip
        is_bfloat16 = spec.dtype == "bfloat16"
        opset = helper.make_opsetid("", BFLOAT16_OPSET if is_bfloat16 else OPSET)
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=BFLOAT16_IR if is_bfloat16 else IR
        )

    def _nodes(self, index: int, tensors: list[str], groups: int) -> list[NodeProto]:
        """One convolution.

        In channels_last it stands between two transpositions, which a provider that convolves in
        that layout takes away.
        """
        rank = len(self.workload.spec.kernel)
        last = self.workload.layout == "channels_last"
        x, y = (f"{name}{index}" for name in ("cx", "cy" if last else "y"))
        x = x if last else f"x{index}"
        operator = "ConvTranspose" if self.workload.spec.transposed else "Conv"
        attributes = _attributes(self.workload.spec)
        nodes = [helper.make_node(operator, [x, *tensors], [y], group=groups, **attributes)]
        if last:
            first, *inner = range(rank + 2)
            to_nchw, to_nhwc = [first, inner[-1], *inner[:-1]], [first, *inner[1:], inner[0]]
            nodes.insert(0, helper.make_node("Transpose", [f"x{index}"], [x], perm=to_nchw))
            nodes.append(helper.make_node("Transpose", [y], [f"y{index}"], perm=to_nhwc))
        return nodes


def numpy_type(name: str) -> np.dtype[np.generic]:
    """The numpy type of an element type's name, bfloat16 included."""
    kinds = {"bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16,
             "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}  # fmt: skip
    return helper.tensor_dtype_to_np_dtype(kinds[name])


def _count(workload: Workload, cache_bytes: int) -> int:
    """So many that together they exceed the cache twice, within reason; one on a host."""
    if cache_bytes == 0:
        return 1
    each = workload.elements * workload.itemsize
    wanted = min(MOST, max(FEWEST, -(-2 * cache_bytes // each)))
    return max(1, min(wanted, MOST_BYTES // each))


def _attributes(spec: ConvSpec) -> dict[str, Any]:
    assert not isinstance(spec.padding, str)
    befores, afters = zip(*spec.padding, strict=True)
    found = {"strides": spec.stride, "dilations": spec.dilation, "pads": (*befores, *afters)}
    if spec.transposed:
        found["output_padding"] = spec.output_padding
    return {name: list(value) for name, value in found.items()}


def _tensor(name: str, array: Array) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
