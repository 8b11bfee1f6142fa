"""``torch.compile(model, backend="dwr")``: forward and backward against the model as it is."""

from __future__ import annotations

import copy
import importlib.metadata
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx import api, backend
from dwr_rewrite.passes.fx.api import record
from dwr_rewrite.passes.fx.calls import depthwise_conv
from dwr_rewrite.passes.fx.tune.auto import Instruments
from dwr_rewrite.tuning.database import Database
from tests.passes.fx.tuning import FakeBench, forms_faster

ROOT = Path(__file__).parents[3]
C = 4
EPS = 2.0**-53
BLOCKS = {"policy": "blocks:32"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore::DeprecationWarning:torch._inductor",
    "ignore:`torch._prims_common.check` is deprecated:FutureWarning",
)


class Net(nn.Module):
    """Linear, so that `bounds` can tell what rounding does to it and to its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(C, 2 * C, 3, padding=1, groups=C)
        self.same = nn.Conv2d(2 * C, 2 * C, (1, 3), padding="same", groups=2 * C, bias=False)
        self.up = nn.ConvTranspose2d(2 * C, 2 * C, 2, 2, groups=2 * C)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.same(self.first(x)))


LAYERS = 3


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that the backend hands to Inductor."""
    graphs: list[Any] = []
    rewrite = backend.rewrite_noted

    def keep(*args: Any, **options: Any) -> Any:
        graphs.append(rewrite(*args, **options))
        return graphs[-1]

    monkeypatch.setattr(backend, "rewrite_noted", keep)
    return graphs


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor, which takes seconds, is left out: the graph runs as it was rewritten."""
    from torch._inductor import compile_fx

    monkeypatch.setattr(compile_fx, "compile_fx", lambda graph, inputs: graph.forward)


def count(graphs: list[Any]) -> list[int]:
    """Rewritten calls of each graph."""
    return [len(g.graph.find_nodes(op="call_function", target=depthwise_conv)) for g in graphs]


def image(batch: int = 2, height: int = 6, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(batch, C, height, width, generator=generator, dtype=torch.float64)


def results(
    model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, ones: bool = False
) -> dict[str, Tensor]:
    """The output and the gradients of the input and of every parameter of ``model``."""
    x = x.clone().requires_grad_()
    y = call(x)
    generator = torch.Generator().manual_seed(9)
    cotangent = torch.rand(y.shape, generator=generator, dtype=y.dtype) - (0 if ones else 0.5)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, (x, *parameters), cotangent + (1 if ones else 0))
    return {"y": y.detach()} | dict(zip(("x", *names), gradients, strict=True))


def bounds(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What rounding may change: 2 n u times the same sums over absolute values, n products each.

    A sum of the output has at most 9 products and a bias in each of three layers. One of a gradient
    has at most one for each element of a channel of the output besides.
    """
    absolute = copy.deepcopy(model)
    for parameter in absolute.parameters():
        parameter.data.abs_()
    scale = results(absolute, absolute, x.abs(), ones=True)
    terms = LAYERS * 10 + scale["y"].numel() / scale["y"].shape[1]
    return {name: 2 * terms * EPS * value.max() for name, value in scale.items()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor], bound: Any) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert (got[name] - value).abs().max() <= bound[name], name


def test_forward_and_backward(net: Net, seen: list[Any]) -> None:
    x = image()
    compiled = torch.compile(net, backend=backend.dwr, options=BLOCKS, fullgraph=True)
    expected, bound = results(net, net, x), bounds(net, x)
    got = results(net, compiled, x)
    assert count(seen) == [LAYERS]
    assert_equal(got, expected, bound)
    for name in ("first.weight", "x"):  # the twin: a wrong gradient is seen
        with pytest.raises(AssertionError):
            assert_equal(got | {name: got[name] * (1 + 1e-9)}, expected, bound)


def test_no_grad_in_eval_mode(net: Net, seen: list[Any]) -> None:
    model = copy.deepcopy(net).eval()
    compiled = torch.compile(model, backend=backend.dwr, options=BLOCKS)
    x = image()
    with torch.no_grad():
        difference = (compiled(x) - model(x)).abs().max()
    assert count(seen) == [LAYERS]
    assert difference <= bounds(net, x)["y"]


def test_dynamic_shapes(net: Net, seen: list[Any]) -> None:
    """Any batch compiles once; Inductor itself fixes the lengths of a convolution's input."""
    compiled = torch.compile(net, backend=backend.dwr, options=BLOCKS, dynamic=True)
    for shape, graphs in (((2, 6, 5), 1), ((3, 6, 5), 1), ((5, 6, 5), 1), ((3, 7, 9), 2)):
        x = image(*shape)
        assert_equal(results(net, compiled, x), results(net, net, x), bounds(net, x))
        assert count(seen) == [LAYERS] * graphs


def test_training_steps_move_the_parameters_of_the_model(net: Net) -> None:
    """The compiled model reads its parameters anew: three steps are those of the model itself."""
    models = [copy.deepcopy(net) for _ in range(2)]
    calls = [models[0], torch.compile(models[1], backend=backend.dwr, options=BLOCKS)]
    x = image()
    for model, call in zip(models, calls, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            call(x).mean().backward()
            optimizer.step()
    bound = bounds(net, x)  # of one gradient; a step moves by 1e-3 of it, and later ones follow
    for (name, one), other in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        assert not torch.equal(one, net.get_parameter(name))
        assert (one - other).abs().max() <= 3 * (1e-3 * bound[name] + 2 * EPS * one.abs().max())


@pytest.mark.usefixtures("eager")
def test_by_default_nothing_is_rewritten_on_a_cpu(net: Net, seen: list[Any]) -> None:
    x = image()
    compiled = torch.compile(net, backend=backend.dwr)
    assert_equal(results(net, compiled, x), results(net, net, x), bounds(net, x))
    assert count(seen) == [0]
    assert {s.reason.code for s in record(seen[0])} == {"not-measured"}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("dynamic", [False, True])
def test_forms_are_chosen_with_the_sizes_that_dynamo_noted(
    dynamic: bool, net: Net, seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DWR_TUNING_DATABASE", str(tmp_path / "tuning.sqlite3"))
    bench = FakeBench(forms_faster(forward="dense", grad_weight="blocks:8"))
    monkeypatch.setattr(api, "Instruments", lambda: Instruments(lambda _: bench))
    options = {"target": "cpu"}
    compiled = torch.compile(net, backend=backend.dwr, options=options, dynamic=dynamic)
    x = image()
    assert_equal(results(net, compiled, x), results(net, net, x), bounds(net, x))
    first, same, _ = record(seen[0])
    assert first.choices[0].workload.input_shape == (2, C, 6, 5)
    assert [c.workload.direction for c in same.choices] == [
        "forward", "grad_input", "grad_weight",
    ]  # fmt: skip
    calls = seen[0].graph.find_nodes(op="call_function", target=depthwise_conv)
    # 8 channels in one group are the dense form; there the other one is not known
    assert [tuple(node.args[-1]) for node in calls] == [(C, 1, 1), (2 * C, 1, 1), (2 * C, 1, 1)]


@pytest.mark.usefixtures("eager")
def test_forms_are_measured_with_real_tensors_while_dynamo_traces(
    net: Net, seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tuning.sqlite3"
    monkeypatch.setenv("DWR_TUNING_DATABASE", str(path))
    compiled = torch.compile(net, backend=backend.dwr, options={"target": "cpu", "budget": 1e-3})
    compiled(image())
    with Database.open() as database:
        [holding] = database.holdings()
    assert holding.answers == 1  # the budget


def test_a_wrong_option_is_named(net: Net) -> None:
    wrong = {"inplace": True}, {"policy": "fast"}
    for options, message in zip(wrong, ("inplace", "policy 'fast' is not known"), strict=True):
        with pytest.raises(DwrError, match=message):
            backend.dwr(torch.fx.symbolic_trace(net), [], options=options)


def test_the_entry_point_names_the_function() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["torch_dynamo_backends"]["dwr"].partition(":")
    assert getattr(import_module(module), name) is backend.dwr


def test_the_name_is_registered() -> None:
    try:
        importlib.metadata.distribution("dwr-rewrite")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("dwr-rewrite is not installed")
    assert "dwr" in torch._dynamo.list_backends(exclude_tags=())
    assert torch._dynamo.lookup_backend("dwr") is backend.dwr
