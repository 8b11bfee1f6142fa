"""The files that the studies rewrite. Each function is run in a child: see `_measure.in_child`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models.export import Exporter


def write_mobilenet(path: Path, exporter: Exporter = "dynamo", fold: bool = True) -> None:
    """MobileNetV2 of transformers."""
    from models.export import export
    from models.zoo import ZOO

    export(ZOO["hf_mobilenet_v2"], path, exporter, fold=fold)


def write_chain(path: Path, nodes: int) -> None:
    """A chain whose every tenth node is a depthwise convolution; a chain of one is just that."""
    import onnx

    from models import handmade

    onnx.save_model(handmade.chain(nodes, every=min(nodes, 10)), path)


def write_stack(
    path: Path, blocks: int, channels: int, kernel: int, pointwise: bool, external: bool
) -> None:
    """Blocks of a depthwise convolution and, with `pointwise`, a dense 1x1 one behind it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    block = [(channels, 1, kernel, kernel), (channels, channels, 1, 1)]
    shapes = block[: 1 + pointwise] * blocks
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    for i, shape in enumerate(shapes):
        tensors.append(numpy_helper.from_array(rng.random(shape, np.float32), f"w{i}"))
        attributes = {"group": channels // shape[1], "pads": [shape[2] // 2] * 4}
        nodes.append(helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], **attributes))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 8, 8])
        for name in ("t0", f"t{len(shapes)}")
    )
    graph = helper.make_graph(nodes, "stack", [x], [y], tensors)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save_model(model, path, save_as_external_data=external, location=f"{path.name}.data")
