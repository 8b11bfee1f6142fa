"""The networks of models/: they build, they export, and onnxruntime computes what torch does."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from models import handmade, mobilenet_v1
from models.entry import Network, count_depthwise, is_depthwise
from models.export import EXPORTERS, Exporter, export
from models.zoo import EXPORTED, ZOO
from tests.conftest import Exported

Array = NDArray[Any]
EPS = float(np.finfo(np.float32).eps)


@cache
def network(name: str) -> Network:
    """Built once per process; tests read it and never write it."""
    return ZOO[name].build()


def batch_of_three(net: Network) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat([x, 0.5 * x, -x]) for x in net.inputs)


@torch.no_grad()
def evaluate(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Array:
    return module(*inputs).numpy()


def evaluate64(net: Network, inputs: tuple[torch.Tensor, ...]) -> Array:
    module = copy.deepcopy(net.module).double()
    return evaluate(module, tuple(x.double() for x in inputs))


def run(model: onnx.ModelProto | Path, *inputs: Array) -> Array:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = (value.name for value in session.get_inputs())
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def error(value: Array, exact: Array) -> float:
    """Root mean square of the error, relative to that of `exact`."""
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def float32_error(net: Network, inputs: tuple[torch.Tensor, ...], exact: Array) -> float:
    """What another float32 evaluation of `net` may differ by from float64.

    torch's own float32 error is one draw of it. onnxruntime sums in another order and folds
    BatchNorm into weights, which rounds each weight once more: a few times that draw, taken as 8.
    """
    return 8 * max(error(evaluate(net.module, inputs), exact), EPS)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", EXPORTED)
def test_the_export_computes_the_network(name: str, exporter: Exporter, exported: Exported) -> None:
    net = network(name)
    path = exported(name, exporter)
    onnx.checker.check_model(path, full_check=True)
    inputs = batch_of_three(net)
    exact = evaluate64(net, inputs)
    assert error(run(path, *(x.numpy() for x in inputs)), exact) <= float32_error(
        net, inputs, exact
    )


@pytest.mark.parametrize("name", EXPORTED)
def test_every_depthwise_convolution_shows_in_the_output(name: str) -> None:
    """The twin: the comparison above fails when any one depthwise convolution is wrong."""
    net = network(name)
    exact = evaluate64(net, net.inputs)
    tolerance = float32_error(net, net.inputs, exact)
    wrong = copy.deepcopy(net.module)
    for conv in filter(is_depthwise, wrong.modules()):
        weight = conv.weight.clone()
        conv.weight.mul_(1.01)
        assert error(evaluate(wrong, net.inputs), exact) > tolerance
        conv.weight.copy_(weight)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_depthwise_count(name: str, exported: Exported) -> None:
    assert count_depthwise(network(name).module) == ZOO[name].depthwise
    graph = onnx.load(exported(name, "torchscript")).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    groups = [
        attribute.i
        for node in graph.node
        if node.op_type == "Conv" and weights[node.input[1]][1] == 1
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i > 1
    ]
    assert len(groups) == ZOO[name].depthwise


@pytest.mark.parametrize("name", EXPORTED)
def test_activations_stay_of_order_one(name: str) -> None:
    net = network(name)
    spread: list[float] = []
    hooks = [
        conv.register_forward_hook(lambda _m, _x, y: spread.append(float(y.std())))
        for conv in net.module.modules()
        if is_depthwise(conv)
    ]
    evaluate(net.module, net.inputs)
    for hook in hooks:
        hook.remove()
    assert len(spread) == ZOO[name].depthwise
    assert all(0.1 < value < 10 for value in spread)


def test_batch_norms_are_not_trivial() -> None:
    norms = [m for m in network("mobilenet_v1").module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 27
    for norm in norms:
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - factor * norm.running_mean
        assert factor.std() > 0.1
        assert shift.std() > 0.1


def test_a_build_follows_its_seed() -> None:
    small = mobilenet_v1.entry(width=0.25, size=32, classes=10)
    first, again, other = (small.build(seed) for seed in (0, 0, 1))
    expected = evaluate(first.module, first.inputs)
    np.testing.assert_array_equal(expected, evaluate(again.module, first.inputs))
    assert error(evaluate(other.module, first.inputs), expected) > 0.1


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_fold_decides_about_batch_norm(exporter: Exporter, tmp_path: Path) -> None:
    small = mobilenet_v1.entry(width=0.25, size=32, classes=10)
    counts = {
        fold: [
            node.op_type
            for node in onnx.load(
                export(small, tmp_path / "m.onnx", exporter, fold=fold)
            ).graph.node
        ].count("BatchNormalization")
        for fold in (True, False)
    }
    assert counts == {True: 0, False: 27}
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_an_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = mobilenet_v1.entry(width=0.25, size=32, classes=10)
    for exporter in EXPORTERS:
        export(small, tmp_path / "m.onnx", exporter)
    assert capfd.readouterr() == ("", "")


CONV_CASES: dict[str, dict[str, Any]] = {
    "1d": {"kernel": (3,), "spatial": (12,)},
    "2d": {},
    "3d": {"kernel": (3, 2, 3), "spatial": (4, 5, 6)},
    "float16": {"dtype": "float16"},
    "multiplier, no bias": {"multiplier": 3, "bias": False},
    "grouped": {"groups": 2, "multiplier": 4},
    "stride, dilation, pads": {"strides": (2, 1), "dilations": (1, 2), "pads": (1, 2, 1, 2)},
    "dynamic": {"batch": "n", "spatial": ("h", "w"), "kernel_shape": False},
    "old": {"opset": 7, "ir_version": 3},
    "constant node": {"weight": "constant", "opset": 13},
    "transposed": {"transposed": True, "multiplier": 2, "strides": (2, 2), "pads": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("options", CONV_CASES.values(), ids=CONV_CASES)
def test_conv_model_computes_the_convolution(options: dict[str, Any]) -> None:
    model = handmade.conv_model(**options)
    onnx.checker.check_model(model, full_check=True)
    rank = len(options.get("kernel", (3, 3)))
    half = options.get("dtype") == "float16"
    spatial = options.get("spatial", (10, 9))
    sizes = [size if isinstance(size, int) else 7 for size in spatial]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 8, *sizes)).astype(np.float16 if half else np.float32)
    constants = (a.t for node in model.graph.node for a in node.attribute if a.name == "value")
    tensors = [onnx.numpy_helper.to_array(t) for t in (*constants, *model.graph.initializer)]
    call = {"groups": options.get("groups", 8), "stride": options.get("strides", 1)}
    if "pads" in options:
        call["padding"] = options["pads"][:rank]
    if "dilations" in options:
        call["dilation"] = options["dilations"]
    kind = "conv_transpose" if options.get("transposed") else "conv"
    function = getattr(functional, f"{kind}{rank}d")
    expected = function(*(torch.from_numpy(t.astype(np.float64)) for t in (x, *tensors)), **call)
    # One rounding per product and sum: 18 taps at most, 4 channels per group, and the bias.
    roundings = 2 * 9 * 4 + 1
    eps = float(np.finfo(x.dtype).eps)
    assert error(run(model, x).astype(np.float64), expected.numpy()) <= roundings * eps


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_conv_model_in_types_that_onnxruntime_lacks_on_cpu(dtype: handmade.Dtype) -> None:
    model = handmade.conv_model(dtype=dtype, opset=22, ir_version=10)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_conv_model_with_auto_pad(auto_pad: str) -> None:
    model = handmade.conv_model(auto_pad=auto_pad, strides=(2, 2))
    onnx.checker.check_model(model, full_check=True)
    x = np.ones((1, 8, 10, 9), np.float32)
    assert run(model, x).shape == ((1, 8, 4, 4) if auto_pad == "VALID" else (1, 8, 5, 5))


def test_conv_model_with_the_weight_as_input() -> None:
    model = handmade.conv_model(weight="input", bias=False)
    onnx.checker.check_model(model, full_check=True)
    x, w = np.ones((1, 8, 10, 9), np.float32), np.ones((8, 1, 3, 3), np.float32)
    np.testing.assert_array_equal(run(model, x, w), np.full((1, 8, 8, 7), 9))


def test_x3d_block() -> None:
    model = handmade.x3d_block(batch="batch")
    onnx.checker.check_model(model, full_check=True)
    depthwise = next(node for node in model.graph.node if node.name == "depthwise")
    assert {a.name: onnx.helper.get_attribute_value(a) for a in depthwise.attribute} == {
        "group": 24,
        "kernel_shape": [3, 3, 3],
        "pads": [1] * 6,
        "strides": [1, 2, 2],
    }
    x = np.random.default_rng(1).standard_normal((2, 8, 4, 16, 16)).astype(np.float32)
    y = run(model, x)
    assert y.shape == (2, 16, 4, 8, 8)
    assert 0.1 < y.std() < 10


def test_chain() -> None:
    model = handmade.chain(1000)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert len(kinds) == 1000
    assert [i for i, kind in enumerate(kinds) if kind == "Conv"] == list(range(9, 1000, 10))
    weights = {tensor.raw_data for tensor in model.graph.initializer}
    assert len(weights) == 100
    x = np.random.default_rng(1).uniform(0.5, 1.5, (2, 16, 16, 16)).astype(np.float32)
    y = run(model, x)
    assert y.shape == x.shape
    assert 0.1 < y.max() < 1.5
