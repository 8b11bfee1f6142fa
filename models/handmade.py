"""Small ONNX models made with onnx.helper and numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Dtype = Literal["float32", "float16", "float64", "bfloat16"]
Size = int | str | None  # a number, a symbol, or not known

DTYPES: dict[Dtype, tuple[np.dtype[Any], int]] = {
    "float32": (np.dtype(np.float32), TensorProto.FLOAT),
    "float16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "float64": (np.dtype(np.float64), TensorProto.DOUBLE),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
}


def conv_model(
    *,
    channels: int = 8,
    multiplier: int = 1,
    groups: int | None = None,
    spatial: Sequence[Size] = (10, 9),
    kernel: Sequence[int] = (3, 3),
    batch: Size = 1,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str | None = None,
    bias: bool = True,
    transposed: bool = False,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_shape: bool = True,
    weight: Literal["initializer", "constant", "input"] = "initializer",
    dtype: Dtype = "float32",
    opset: int = 17,
    ir_version: int = 8,
    seed: int = 0,
) -> onnx.ModelProto:
    """A model of one Conv (or ConvTranspose) "conv" from "x" to "y" with weight "w" and bias "b".

    `groups` is `channels` where not given (depthwise). The number of spatial axes is that of
    `kernel`. An attribute that is None is left out of the node, so its default is exercised;
    `kernel_shape=False` leaves that one out. `pads` are all begins, then all ends.
    """
    groups = channels if groups is None else groups
    outputs = groups * multiplier
    rng = np.random.default_rng(seed)
    numpy_type, onnx_type = DTYPES[dtype]
    lead = (channels, multiplier) if transposed else (outputs, channels // groups)
    filters = rng.standard_normal((*lead, *kernel)) / np.sqrt(np.prod(kernel) * channels // groups)
    tensors = {"w": filters.astype(numpy_type)}
    if bias:
        tensors["b"] = rng.standard_normal(outputs).astype(numpy_type)
    attributes = {
        "kernel_shape": kernel if kernel_shape else None,
        "group": groups if groups != 1 else None,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "auto_pad": auto_pad,
        "output_padding": output_padding,
        "output_shape": output_shape,
    }
    kind = "ConvTranspose" if transposed else "Conv"
    present = {name: value for name, value in attributes.items() if value is not None}
    nodes = [helper.make_node(kind, ["x", *tensors], ["y"], name="conv", **present)]
    inputs = [helper.make_tensor_value_info("x", onnx_type, [batch, channels, *spatial])]
    protos = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    if weight == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=protos.pop(0)))
    elif weight == "input":
        protos.pop(0)
        inputs.append(helper.make_tensor_value_info("w", onnx_type, filters.shape))
    y = helper.make_tensor_value_info("y", onnx_type, [batch, outputs, *[None] * len(kernel)])
    return _model(nodes, inputs, [y], protos, opset, ir_version)


def x3d_block(
    *,
    channels: int = 8,
    expansion: int = 24,
    outputs: int = 16,
    spatial: tuple[int, int, int] = (4, 16, 16),
    batch: Size = 1,
    opset: int = 17,
    ir_version: int = 8,
    seed: int = 0,
) -> onnx.ModelProto:
    """The bottleneck of X3D (Feichtenhofer, 2020, arXiv:2004.04730) without squeeze-and-excitation.

    Pointwise + BatchNorm + ReLU, depthwise 3x3x3 of stride (1, 2, 2) + BatchNorm + Swish, pointwise
    + BatchNorm; from "x" [batch, channels, T, H, W] to "y" [batch, outputs, T, H/2, W/2].
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, NDArray[np.float32]] = {}

    def conv_bn(name: str, x: str, weight: tuple[int, ...], **attributes: Any) -> str:
        scale = np.sqrt(2 / np.prod(weight[1:]))
        tensors[f"{name}.weight"] = (rng.standard_normal(weight) * scale).astype(np.float32)
        norm = {
            "scale": rng.uniform(0.5, 1.5, weight[0]),
            "bias": rng.normal(0, 0.2, weight[0]),
            "mean": rng.normal(0, 0.2, weight[0]),
            "var": rng.uniform(0.5, 2.0, weight[0]),
        }
        tensors.update({f"{name}.{key}": val.astype(np.float32) for key, val in norm.items()})
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{name}.weight"],
                [f"{name}.conv"],
                name=name,
                kernel_shape=weight[2:],
                **attributes,
            )
        )
        parameters = [f"{name}.{key}" for key in norm]
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"{name}.conv", *parameters], [f"{name}.bn"], f"{name}.bn"
            )
        )
        return f"{name}.bn"

    expanded = conv_bn("expand", "x", (expansion, channels, 1, 1, 1))
    nodes.append(helper.make_node("Relu", [expanded], ["expand.relu"], "expand.relu"))
    depthwise = conv_bn(
        "depthwise",
        "expand.relu",
        (expansion, 1, 3, 3, 3),
        group=expansion,
        strides=(1, 2, 2),
        pads=(1,) * 6,
    )
    nodes.append(helper.make_node("Sigmoid", [depthwise], ["swish.sigmoid"], "swish.sigmoid"))
    nodes.append(helper.make_node("Mul", [depthwise, "swish.sigmoid"], ["swish"], "swish"))
    projected = conv_bn("project", "swish", (outputs, expansion, 1, 1, 1))
    nodes.append(helper.make_node("Identity", [projected], ["y"], "output"))
    time, height, width = spatial
    shape = [batch, outputs, time, (height + 1) // 2, (width + 1) // 2]
    protos = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, *spatial])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    return _model(nodes, [x], [y], protos, opset, ir_version)


def chain(
    nodes: int,
    *,
    channels: int = 16,
    size: int = 16,
    every: int = 10,
    opset: int = 17,
    ir_version: int = 8,
    seed: int = 0,
) -> onnx.ModelProto:
    """A chain of `nodes` nodes: every `every`-th is a depthwise 3x3 Conv, the others are Relu.

    Each Conv has a weight of its own, whose filters are positive and sum to one, so that values
    shrink only at the padded borders.
    """
    rng = np.random.default_rng(seed)
    chained: list[onnx.NodeProto] = []
    protos: list[onnx.TensorProto] = []
    for i in range(nodes):
        source, target = f"t{i}" if i else "x", f"t{i + 1}" if i + 1 < nodes else "y"
        if i % every == every - 1:
            weight = rng.uniform(0.5, 1.5, (channels, 1, 3, 3))
            weight /= weight.sum(axis=(2, 3), keepdims=True)
            protos.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
            node = helper.make_node(
                "Conv", [source, f"w{i}"], [target], f"n{i}", group=channels, pads=(1, 1, 1, 1)
            )
        else:
            node = helper.make_node("Relu", [source], [target], f"n{i}")
        chained.append(node)
    shape = ["batch", channels, size, size]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    return _model(chained, ends[:1], ends[1:], protos, opset, ir_version)


def _model(
    nodes: Iterable[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto],
    opset: int,
    ir_version: int,
) -> onnx.ModelProto:
    if ir_version < 4:  # every initializer had to be an input as well
        inputs = inputs + [
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in initializers
        ]
    graph = helper.make_graph(list(nodes), "handmade", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    return model
