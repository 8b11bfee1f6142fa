"""``dwr.verify`` on every mix of torch and ONNX models."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import dwr_rewrite as dwr
from dwr_rewrite.document.reading import violations
from models.entry import Network
from models.export import export
from models.zoo import ZOO

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU6(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The network as an ONNX file, and its rewritten form."""
    folder = tmp_path_factory.mktemp("models")
    export(
        ZOO["mobilenet_v1"], folder / "net.onnx", network=Network(network(), (X,), ("x",), ("y",))
    )
    dwr.onnx_rewrite(folder / "net.onnx", folder / "fast.onnx", policy="blocks:4", verify=False)
    return folder


KINDS = {
    "module": lambda files: network(),
    "rewritten module": lambda files: dwr.fx_rewrite(network(), policy="blocks:4"),
    "graph module": lambda files: torch.fx.symbolic_trace(network()),
    "exported program": lambda files: torch.export.export(network(), (X,)),
    "file": lambda files: files / "net.onnx",
    "rewritten file": lambda files: files / "fast.onnx",
    "model in memory": lambda files: onnx.load(files / "net.onnx"),
}
MIXES = [
    ("module", "rewritten module"), ("module", "file"), ("file", "module"),
    ("module", "rewritten file"), ("exported program", "model in memory"),
    ("graph module", "exported program"), ("file", "rewritten file"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch about itself
@pytest.mark.parametrize(("reference", "candidate"), MIXES)
def test_one_function_in_two_forms(reference, candidate, files):
    given = None if {"file", "rewritten file"} == {reference, candidate} else (X,)
    report = dwr.verify(KINDS[reference](files), KINDS[candidate](files), given)
    assert report.verdict == "equivalent"
    assert list(violations(report.to_dict())) == []


def wrong_module() -> nn.Sequential:
    wrong = network()
    with torch.no_grad():
        wrong[2].weight[5] *= 1.01
    return wrong


def wrong_file(files) -> onnx.ModelProto:
    model = onnx.load(files / "net.onnx")
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [8, 1, 3, 3])
    weight = numpy_helper.to_array(tensor).copy()
    weight[5] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return model


@pytest.mark.parametrize("reference", ["module", "file"])
def test_another_weight_in_one_channel_is_found(reference, files):
    """The twin, in both directions across the front ends and within torch."""
    model = KINDS[reference](files)
    for candidate in (wrong_module(), wrong_file(files)):
        both_onnx = reference == "file" and isinstance(candidate, onnx.ModelProto)
        report = dwr.verify(model, candidate, None if both_onnx else (X,))
        assert report.verdict == "not equivalent"


def test_training_is_compared_and_a_difference_in_it_found():
    """Dropping half of a gradient changes training and nothing else."""

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient / 2

    class Lazy(nn.ReLU):
        def forward(self, x):
            return super().forward(Halved.apply(x))

    model = network()
    same = dwr.verify(
        model, dwr.fx_rewrite(model, policy="blocks:32", weights="linked"), (X,), training=2
    )
    assert same.verdict == "equivalent"
    assert {g.direction for g in same.verification.training.gradients} == {
        "grad_input", "grad_weight", "parameter", "input",
    }  # fmt: skip
    wrong = copy.deepcopy(model)
    wrong[1] = Lazy()
    assert dwr.verify(model, wrong, (X,)).verdict == "equivalent"
    report = dwr.verify(model, wrong, (X,), training=2)
    assert report.verdict == "not equivalent"
    assert any("'0.weight'" in failure for failure in report.verification.failures)


def test_models_that_do_not_correspond_are_refused(files):
    two = nn.Sequential(network(), nn.Linear(4, 2))

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(dwr.DwrError, match=r"1 outputs .* 2 "):
        dwr.verify(files / "net.onnx", Pair(), (X,))
    report = dwr.verify(network(), two, (X,))
    assert report.verdict == "not equivalent"
    assert "became float32 [2, 2]" in report.verification.failures[0]


MISTAKES = {
    "no inputs": (lambda files: (network(), network()), {}, "give example arguments"),
    "training of a file": (
        lambda files: (files / "net.onnx",) * 2, {"training": 3}, "two torch modules"),
    "inputs without names": (
        lambda files: (files / "net.onnx",) * 2, {"inputs": (X,)}, "arrays by name, not a tuple"),
    "no such file": (
        lambda files: (files / "none.onnx", network()), {"inputs": (X,)}, "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name, files):
    models, options, message = MISTAKES[name]
    with pytest.raises(dwr.DwrError, match=message):
        dwr.verify(*models(files), **options)


def test_the_same_seed_gives_the_same_report():
    model = network()
    fast = dwr.fx_rewrite(model, policy="dense")
    one, two = (json.loads(dwr.verify(model, fast, (X,), seed=3).to_json()) for _ in range(2))
    for report in (one, two):
        report.pop("environment")
        report["verification"].pop("seconds")
    assert one == two
    assert np.isfinite(one["verification"]["ratios"][0]["value"])
