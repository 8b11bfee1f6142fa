"""Exported programs: shapes stay dynamic, names stay, and the result exports, saves and runs."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional as F

import dwr_rewrite as dwr
from models import mobilenet_v1
from models.export import _silence

pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
)

C = 6
EPS64, EPS32 = 2.0**-53, 2.0**-24


class Net(nn.Module):
    """Every place a weight can be stored: parameters, a buffer, one that is not saved, a constant.

    All of it is linear, so that `tolerance` can bound what rounding does.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, groups=C, padding=1, dtype=dtype)
        self.same = nn.Conv2d(C, C, (3, 1), groups=C, padding="same", dtype=dtype)
        self.up = nn.ConvTranspose2d(C, C, 2, 2, groups=C, dtype=dtype)
        self.register_buffer("saved", torch.randn(C, 1, 2, 2, dtype=dtype))
        self.register_buffer("lost", torch.randn(C, 1, 1, 3, dtype=dtype), persistent=False)
        self.constant = torch.randn(C, 1, 3, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.same(self.conv(x)))
        for weight in (self.saved, self.lost, self.constant):
            x = F.conv2d(x, weight, groups=C)
        return x


LAYERS, TAPS = 6, 9
DYNAMIC = {"x": {0: Dim("batch", min=1), 2: Dim("h", min=4), 3: Dim("w", min=4)}}


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def program(net: Net) -> ExportedProgram:
    return export(net, (image(2, C, 8, 7),), dynamic_shapes=DYNAMIC)


def tolerance(net: nn.Module, x: Tensor, eps: float = EPS64) -> float:
    """Each layer sums at most 9 products and a bias, in two ways; later layers carry it along."""
    absolute = copy.deepcopy(net)
    for tensor in (*absolute.parameters(), *absolute.buffers(), absolute.constant):
        tensor.data = tensor.data.abs()
    with torch.no_grad():
        return LAYERS * 2 * (TAPS + 1) * eps * float(absolute(x.abs()).max())


def assert_runs(program: ExportedProgram, net: nn.Module) -> None:
    module = program.module()
    for shape in ((2, C, 8, 7), (1, C, 5, 9), (3, C, 13, 4)):
        x = image(*shape)
        with torch.no_grad():
            expected, got = net(x), module(x)
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) <= tolerance(net, x)


def rewritten(program: ExportedProgram, **options: Any) -> ExportedProgram:
    return dwr.fx_rewrite(program, policy="blocks:3", **options)


def groups(program: ExportedProgram) -> list[int]:
    """Groups of the convolutions, in order."""
    from dwr_rewrite.passes.fx.calls import SIGNATURES

    return [SIGNATURES[n.target].read(n)["groups"] for n in program.graph.nodes
            if n.target in SIGNATURES]  # fmt: skip


def codes(program: ExportedProgram) -> list[str]:
    return [s.reason.code for s in dwr.record(program) if s.reason]


def test_every_stored_weight_and_dynamic_sizes(program: ExportedProgram, net: Net) -> None:
    code = program.graph_module.code
    fast = rewritten(program)
    assert [(s.form, s.weights) for s in dwr.record(fast)] == [("blocks:3", "precomputed")] * LAYERS
    assert groups(fast) == [2] * LAYERS
    assert_runs(fast, net)
    assert fast.state_dict.keys() == program.state_dict.keys()
    assert fast.constants.keys() == program.constants.keys()
    assert fast.graph_signature == program.graph_signature
    assert fast.range_constraints == program.range_constraints
    fast.validate()
    for node in fast.graph.find_nodes(op="placeholder"):  # what the graph says is what is stored
        names = {**fast.graph_signature.inputs_to_parameters,
                 **fast.graph_signature.inputs_to_buffers,
                 **fast.graph_signature.inputs_to_lifted_tensor_constants}  # fmt: skip
        if node.name in names:
            name = names[node.name]
            stored = fast.state_dict.get(name, fast.constants.get(name))
            assert node.meta["val"].shape == stored.shape
            assert node.meta["val"].stride() == stored.stride()
            assert isinstance(stored, nn.Parameter) is (name in dict(net.named_parameters()))
    for node, before in zip(fast.graph.nodes, program.graph.nodes, strict=True):
        assert node.name == before.name
        for key in ("stack_trace", "nn_module_stack"):
            assert node.meta.get(key) == before.meta.get(key)
    assert program.graph_module.code == code  # a copy was rewritten
    assert_runs(program, net)


def test_the_comparison_fails_for_a_wrong_weight(program: ExportedProgram, net: Net) -> None:
    fast = rewritten(program)
    fast.constants["constant"].mul_(1 + 1e-11)
    with pytest.raises(AssertionError):
        assert_runs(fast, net)


def test_a_second_run_changes_nothing_and_restore_undoes(
    program: ExportedProgram, net: Net
) -> None:
    fast = rewritten(program)
    second = dwr.fx_rewrite(fast, policy="dense")
    assert codes(second) == ["already-rewritten"] * LAYERS
    assert second.graph_module.code == fast.graph_module.code
    for given in (fast, second, copy.deepcopy(fast)):
        back = dwr.restore(given)
        assert [(s.form, s.undone) for s in dwr.record(back)] == [("keep", "blocks:3")] * LAYERS
        assert back.graph_module.code == program.graph_module.code
        for name, value in {**program.state_dict, **program.constants}.items():
            stored = back.state_dict.get(name, back.constants.get(name))
            assert torch.equal(stored, value)
            assert stored.stride() == value.stride()
        back.validate()
        assert_runs(back, net)


def test_restore_keeps_a_weight_that_is_no_diagonal_any_more(program: ExportedProgram) -> None:
    fast = rewritten(program)
    fast.state_dict["saved"].add_(1)
    back = dwr.restore(fast)
    assert codes(back) == ["not-diagonal"]
    assert groups(back) == [6, 6, 6, 2, 6, 6]


def test_linked_is_refused(program: ExportedProgram) -> None:
    same = rewritten(program, weights="linked")
    assert codes(same) == ["linked-export"] * LAYERS
    assert same.graph_module.code == program.graph_module.code


@pytest.mark.parametrize("decompose", [False, True])
def test_decompositions_before_and_after(
    program: ExportedProgram, net: Net, decompose: bool
) -> None:
    """aten.conv2d becomes aten.convolution, with the stored weights as they are."""
    if decompose:
        program = program.run_decompositions()
    fast = rewritten(program)
    assert codes(fast) == []
    assert_runs(fast, net)
    after = fast.run_decompositions()
    assert set(groups(after)) == {2}
    assert_runs(after, net)
    assert len(groups(after)) == LAYERS
    convolution = torch.ops.aten.convolution.default
    assert len(after.graph.find_nodes(op="call_function", target=convolution)) == LAYERS


def test_save_load_module_and_another_export(program: ExportedProgram, net: Net) -> None:
    fast = rewritten(program)
    file = io.BytesIO()
    torch.export.save(fast, file)
    file.seek(0)
    loaded = torch.export.load(file)
    again = export(fast.module(), (image(2, C, 8, 7),), dynamic_shapes=DYNAMIC)
    for result in (loaded, again):
        assert groups(result) == [2] * LAYERS
        assert result.state_dict.keys() == program.state_dict.keys()
        assert_runs(result, net)


def test_the_module_of_a_program_can_be_restored(program: ExportedProgram, net: Net) -> None:
    module = rewritten(program).module()
    assert {
        s.reason.code for s in dwr.record(dwr.fx_rewrite(module, policy="blocks:32")) if s.reason
    } == {"already-rewritten"}
    back = dwr.restore(module)
    copied = copy.deepcopy(program.module())  # a copy of it saves every buffer
    assert back.state_dict().keys() == copied.state_dict().keys()
    x = image(2, C, 8, 7)
    assert torch.equal(back(x), program.module()(x))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, 1, 3, dtype=torch.float64))
        self.register_buffer("state", torch.randn(C, 1, 3, dtype=torch.float64))


class Twice(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.conv1d(x, self.weight, groups=C), self.weight, groups=C)


class Returned(Shared):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.conv1d(x, self.weight, groups=C), self.weight


class Written(Shared):
    def forward(self, x: Tensor) -> Tensor:
        y = F.conv1d(x, self.state, groups=C)
        self.state.copy_(x[:1, :, :3].transpose(0, 1))
        return y


class Computed(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight.squeeze(1).unsqueeze(1), groups=C)


class Branches(Shared):
    def forward(self, x: Tensor) -> Tensor:
        def yes(x: Tensor) -> Tensor:
            return F.conv1d(x, self.weight, padding=1, groups=C)

        return torch.cond(x.sum() > 0, yes, torch.sin, (x,))


class Grouped(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight.expand(-1, 2, -1) * 1, groups=3)


REFUSED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "twice": (Twice, ["shared-weight"] * 2),
    "returned": (Returned, ["shared-weight"]),
    "written": (Written, ["weight-written"]),
    "computed": (Computed, ["runtime-weight"]),
    "branches": (Branches, ["control-flow"]),
    "grouped": (Grouped, ["grouped"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_left_as_it_is(name: str) -> None:
    build, expected = REFUSED[name]
    x = torch.ones(1, C, 9, dtype=torch.float64)
    with torch.no_grad():
        program = export(build().requires_grad_(False), (x,))
    for given in (program, program.run_decompositions()):
        same = dwr.fx_rewrite(given, policy="dense")
        assert codes(same) == expected
        assert same.graph_module.code == given.graph_module.code
        for key, value in given.state_dict.items():
            assert torch.equal(same.state_dict[key], value)


# torch.onnx.export


def onnx_convolutions(model: onnx.ModelProto) -> list[tuple[int, int]]:
    """(groups, input channels of one group) of every convolution; linked weights are computed."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    weights = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
               for v in graph.value_info}  # fmt: skip
    weights |= {t.name: tuple(t.dims) for t in graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            shape = weights[node.input[1]]
            found.append((group, shape[0] // group if "T" in node.op_type else shape[1]))
    return found


def run_onnx(path: Path, x: Tensor) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def write_onnx(model: Any, x: Tensor, path: Path, exporter: str) -> onnx.ModelProto:
    with _silence():
        if exporter == "dynamo":
            torch.onnx.export(model, (x,), path, dynamo=True, external_data=False)
        elif exporter == "program":
            torch.onnx.export(model, (), path, dynamo=True, external_data=False)
        else:
            torch.onnx.export(model, (x,), path, dynamo=False)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return mobilenet_v1.build(width=0.25, size=32, classes=10)


@pytest.fixture(scope="module")
def allowed(small: nn.Module) -> tuple[Tensor, np.ndarray[Any, Any], float]:
    """An image, the network's output in float64, and what float32 may differ from it.

    As in tests/test_models.py: torch's own error is one draw; another order of the sums and a
    folded BatchNorm make a few times that, taken as 8.
    """
    x = image(1, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        exact = copy.deepcopy(small).double()(x.double()).numpy()
        own = np.linalg.norm(small(x).numpy() - exact) / np.linalg.norm(exact)
    return x, exact, 8 * max(own, 2 * EPS32)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript", "program"])
@pytest.mark.parametrize("weights", ["precomputed", "linked"])
def test_onnx_export(
    small: nn.Module, allowed: Any, weights: Any, exporter: str, tmp_path: Path
) -> None:
    x, exact, tolerance = allowed
    model: Any = small
    if exporter == "program":
        if weights == "linked":
            model = export(dwr.fx_rewrite(small, weights="linked", policy="blocks:8"), (x,))
        else:
            model = dwr.fx_rewrite(export(small, (x,)), policy="blocks:8")
    else:
        model = dwr.fx_rewrite(small, weights=weights, policy="blocks:8")
    path = tmp_path / "fast.onnx"
    fast = write_onnx(model, x, path, exporter)
    assert all(width > 1 for _, width in onnx_convolutions(fast))
    assert len(onnx_convolutions(fast)) == 27
    assert float(np.linalg.norm(run_onnx(path, x) - exact)) <= tolerance * np.linalg.norm(exact)


def test_the_onnx_checks_fail_for_the_original_and_for_a_wrong_weight(
    small: nn.Module, allowed: Any, tmp_path: Path
) -> None:
    x, exact, tolerance = allowed
    wrong = copy.deepcopy(small)
    next(m for m in wrong.modules() if getattr(m, "groups", 1) > 1).weight.mul_(1.01)
    model = write_onnx(wrong, x, tmp_path / "wrong.onnx", "torchscript")
    assert [width for _, width in onnx_convolutions(model)].count(1) == 13
    got = run_onnx(tmp_path / "wrong.onnx", x)
    assert float(np.linalg.norm(got - exact)) > tolerance * np.linalg.norm(exact)


def test_onnx_export_of_every_kind(net: Net, tmp_path: Path) -> None:
    """Transposed, "same", buffers and constants; float32, as onnxruntime has it on a CPU."""
    single, x = copy.deepcopy(net).float(), image(2, C, 8, 7, dtype=torch.float32)
    single.constant = single.constant.float()
    with torch.no_grad():
        expected = net(x.double()).numpy()
    program = dwr.fx_rewrite(export(single, (x,)), policy="blocks:3")
    linked = dwr.fx_rewrite(single, weights="linked", policy="blocks:3")
    for name, model, widths in (
        ("program", program, [3] * LAYERS),
        ("dynamo", linked, [3, 3, 3, 1, 1, 1]),  # three of them are no modules
        ("torchscript", linked, [3, 3, 3, 1, 1, 1]),
    ):
        path = tmp_path / f"{name}.onnx"
        assert [w for _, w in onnx_convolutions(write_onnx(model, x, path, name))] == widths
        # both round the input's products, and the weights were rounded to float32 first
        assert np.abs(run_onnx(path, x) - expected).max() <= tolerance(net, x.double(), EPS32)
