"""Other people's tools and models: their optimizers, their test cases, real networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

import models.zoo
from dwr_rewrite.passes.onnx import onnx_rewrite
from models.handmade import chain, conv_model, x3d_block
from tests.passes.onnx.helpers import assert_equal, feeds_for, forms, rewritten, run
from tests.passes.onnx.test_weights import SHARED, SOURCES, graph, quantized_model

BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"
CONVOLUTIONS = sorted(BACKEND.glob("pytorch-converted/test_Conv*"))
SHARED_MODEL = (
    Path(__file__).parents[4] / "shared" / "models" / "ultra-light-face" / "version-RFB-320.onnx"
)


def optimized_by_onnxruntime(model: ModelProto, folder: Path) -> ModelProto:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def optimized_by_onnxslim(model: ModelProto, folder: Path) -> ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def optimized_by_onnxsim(model: ModelProto, folder: Path) -> ModelProto:
    import onnxsim

    simplified, _ = onnxsim.simplify(model)
    return simplified


OPTIMIZERS = {
    "onnxruntime": optimized_by_onnxruntime,
    "onnxslim": optimized_by_onnxslim,
    "onnxsim": optimized_by_onnxsim,
}
OPTIMIZED = {
    "conv": conv_model(),
    "float16": conv_model(dtype="float16"),
    "transposed": conv_model(transposed=True, multiplier=2, strides=[2, 2]),
    "shared": graph(SHARED),
    "constant": SOURCES["constant"],
    "quantized": quantized_model("uint8", 0, True),
    "chain": chain(20, channels=4, size=5),
    "x3d": x3d_block(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("weights", ["precomputed", "linked"])
@pytest.mark.parametrize("tool", OPTIMIZERS)
@pytest.mark.parametrize("name", OPTIMIZED)
def test_the_result_survives_other_optimizers(name, tool, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # onnxslim deletes files relative to the working directory
    model = OPTIMIZED[name]
    result, sites = rewritten(model, policy="dense", weights=weights)
    assert set(forms(sites).values()) == {"dense"}
    copy = ModelProto()
    copy.CopyFrom(result)
    optimized = OPTIMIZERS[tool](copy, tmp_path)
    onnx.checker.check_model(optimized, full_check=True)
    assert_equal(model, optimized, feeds_for(model), depth=4)


@pytest.mark.parametrize("folder", CONVOLUTIONS, ids=lambda folder: folder.name)
def test_the_onnx_package_agrees_with_its_stored_outputs(folder):
    """Models and data that PyTorch wrote for the onnx project, IR 3, opset 6."""
    model = onnx.load(folder / "model.onnx")
    result, sites = rewritten(model, policy="dense")
    assert bool(sites) == any(word in folder.name for word in ("depthwise", "groups"))
    assert all(site.form == "dense" for site in sites if "depthwise" in folder.name)
    (data,) = folder.glob("test_data_set_0")
    load = lambda file: numpy_helper.to_array(onnx.load_tensor(file))  # noqa: E731
    stored = {tensor.name for tensor in result.graph.initializer}
    names = [value.name for value in result.graph.input if value.name not in stored]
    feeds = {n: load(data / f"input_{i}.pb") for i, n in enumerate(names)}
    expected = load(data / "output_0.pb")
    (got,) = run(result, feeds).values()
    # Sums of at most 64 products of numbers below 4, in float32, in two orders.
    assert np.abs(got - expected).max() <= 2 * 66 * 2.0**-24 * 64 * 16


def test_the_onnx_package_has_depthwise_cases():
    assert len([f for f in CONVOLUTIONS if "depthwise" in f.name]) == 4


def test_shufflenet_from_the_onnx_package(tmp_path):
    """IR 3; every weight comes out of a ConstantOfShape node."""
    path = BACKEND / "light" / "light_shufflenet.onnx"
    result = onnx_rewrite(path, tmp_path / "fast.onnx", policy="blocks:32")
    assert len(result.report.changed) == 16
    assert result.report.verification.verdict == "equivalent"
    back = onnx_rewrite(tmp_path / "fast.onnx", restore=True)
    assert back.report.verification.verdict == "equivalent"


@pytest.mark.skipif(
    not SHARED_MODEL.exists(), reason="the shared models are not beside the checkout"
)
@pytest.mark.parametrize("options", [
    dict(freeze_weights=True, policy="blocks:32"),
    dict(freeze_weights=True, policy="dense"),
    dict(weights="linked", policy="blocks:32"),
    dict(policy="blocks:32"),
], ids=str)  # fmt: skip
def test_a_trained_face_detector(options, tmp_path):
    result = onnx_rewrite(
        SHARED_MODEL, tmp_path / "fast.onnx", **{"policy": "blocks:32", **options}
    )
    report = result.report
    assert len(report.changed) == 18
    assert report.verification.verdict == "equivalent"
    assert report.verification.warnings > 0, "onnxruntime warns of overridable initializers"
    restored = onnx_rewrite(tmp_path / "fast.onnx", restore=True)
    assert len(restored.report.changed) == 18
    assert restored.report.verification.verdict == "equivalent"
    if not options.get("freeze_weights"):
        assert restored.model == onnx.load(SHARED_MODEL)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", models.zoo.EXPORTED)
def test_networks_as_torch_exports_them(name, exporter, exported, tmp_path):
    """Both exporters; torchscript unfolded, so that BatchNormalization nodes are there too."""
    path = exported(name, exporter, fold=exporter == "dynamo")
    result = onnx_rewrite(path, tmp_path / "fast.onnx", policy="blocks:32")
    report = result.report
    assert len(report.changed) == models.zoo.ZOO[name].depthwise
    assert report.verification.verdict == "equivalent"
    assert {case.engine for case in report.verification.cases} == {"float64", "onnxruntime CPU"}
    twice = onnx_rewrite(tmp_path / "fast.onnx", policy="blocks:32", verify=False)
    assert twice.report.changed == []
    assert twice.model == result.model


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_quantized_network_keeps_its_integer_kernels(per_channel, tmp_path):
    """As onnxruntime quantizes: DequantizeLinear -> Conv -> QuantizeLinear becomes QLinearConv."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    rng = np.random.default_rng(0)
    batches = iter([{"x": rng.standard_normal((1, 8, 9, 9)).astype("f4")} for _ in range(3)])

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    onnx.save(chain(20, channels=8, size=9), tmp_path / "float.onnx")
    path = tmp_path / "int8.onnx"
    quantize_static(
        tmp_path / "float.onnx",
        path,
        Reader(),
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
    )
    result = onnx_rewrite(path, policy="dense")
    assert len(result.report.changed) == 2
    assert result.report.verification.verdict == "equivalent"
    kernels = [
        [node.op_type for node in optimized_by_onnxruntime(model, tmp_path).graph.node]
        for model in (onnx.load(path), result.model)
    ]
    assert kernels[0] == kernels[1]
    assert kernels[0].count("QLinearConv") == 2
