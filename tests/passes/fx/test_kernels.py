"""Kernels of our own as forms: every front, mixed with the others, and with what proves them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import symbolic_trace
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import dwr_rewrite as dwr
from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import ops
from dwr_rewrite.passes.fx import functional
from dwr_rewrite.passes.fx.calls import depthwise_conv
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.passes.fx.linked import UNDO
from dwr_rewrite.passes.fx.operator import OPERATOR
from tests.passes.fx.test_functional import (
    CASES,
    DTYPES,
    LAYOUTS,
    errors,
    form,
    native,
    step,
    tensors,
    upstream_of,
)
from tests.passes.fx.test_modules import CLASSES, close, conv, gradients, sample

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.(script|trace):DeprecationWarning",
    "ignore:Using padding='same' with even kernel lengths:UserWarning",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    "ignore::DeprecationWarning:torch._inductor",
    "ignore:`torch._prims_common.check` is deprecated:FutureWarning",
)

TILE = "kernel:fma.c1.p16.d1.r1.v1.w1.s1"
OURS = Forms("kernel", "kernel", "kernel")
MIXES = (OURS, Forms("kernel", 4, 1), Forms(2, "kernel", "kernel"), Forms(1, 1, TILE))
MIXED = {"forward": "kernel", "grad_input": "blocks:2", "grad_weight": TILE}


@pytest.fixture(params=["interpreter", "aten"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What runs the operators: the kernels, in Triton's interpreter, or torch's own."""
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param == "interpreter" else "0")
    assert ops.available(torch.device("cpu")) is (request.param == "interpreter")
    return request.param


@pytest.fixture
def aten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own convolutions in place of the interpreter, which is slow."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


class Calls(TorchDispatchMode):
    """Notes the operators of ours and the convolutions of torch's that run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(("depthwise", "convolution")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def calls(run: Callable[[], Any]) -> list[str]:
    with Calls() as mode:
        run()
    return mode.names


# --------------------------------------------------------------------------- one convolution


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_the_depthwise_convolution(
    name: str, engine: str
) -> None:
    case = CASES[name]
    inputs = tensors(case, torch.float32)
    upstream = upstream_of(case, inputs)
    for forms in MIXES if engine == "aten" else MIXES[:1]:
        got = step(form(case, forms), inputs, upstream)
        assert max(errors(case, inputs, got, upstream)) <= 1, forms


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.float32], ids=str)
def test_every_type(dtype: torch.dtype) -> None:
    case = CASES["2d-multiplier"]
    inputs = tensors(case, dtype)
    upstream = upstream_of(case, inputs)
    for forms in MIXES[2:]:
        got = step(form(case, forms), inputs, upstream)
        assert {t.dtype for t in got} == {dtype}
        assert max(errors(case, inputs, got, upstream)) <= 1, forms


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("case_name", ["1d", "2d-multiplier", "transposed-2d"])
def test_the_check_fails_on_a_kernel_of_the_wrong_channel(
    case_name: str, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[case_name]
    inputs = tensors(case, torch.float32)
    upstream = upstream_of(case, inputs)
    name = ("_in_form", "gradient_of", "_by_kernel")[which]
    right = getattr(functional, name)

    def wrong(*args: Any, **named: Any) -> Any:
        found = right(*args, **named)
        return (found[0].roll(1, 0), found[1]) if which == 2 else found.roll(1, 1)

    monkeypatch.setattr(functional, name, wrong)
    got = step(form(case, Forms("kernel", "kernel", TILE)), inputs, upstream)
    found = errors(case, inputs, got, upstream)
    assert [share > 1 for share in found] == [i == which for i in range(len(found))]


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name: str) -> None:
    case = CASES[name]
    inputs = tensors(case)
    for forms in MIXES:
        assert torch.autograd.gradgradcheck(form(case, forms), inputs, fast_mode=True)


@pytest.mark.usefixtures("aten")
def test_each_direction_is_what_it_is_said_to_be() -> None:
    case = CASES["2d"]
    x, weight, bias = tensors(case)
    forward, backward = "depthwise", "convolution_backward"
    for forms, expected in (
        (OURS, [forward, "depthwise", "depthwise_weight"]),
        (Forms("kernel", 1, 4), [forward, backward, backward]),
        (Forms(1, "kernel", "kernel"), ["convolution", "depthwise", "depthwise_weight"]),
        (Forms("kernel", 1, TILE), [forward, backward, "depthwise_weight"]),
    ):
        assert calls(lambda: form(case, forms)(x, weight, bias).sum().backward()) == expected  # noqa: B023
    with torch.no_grad():
        assert calls(lambda: form(case, OURS)(x, weight, bias)) == ["depthwise"]


@pytest.mark.usefixtures("aten")
def test_what_a_tracer_of_torchscript_and_tangents_see_is_aten() -> None:
    case = CASES["2d"]
    x, weight, bias = (t.detach() for t in tensors(case))
    traced = torch.jit.trace(lambda x: form(case, OURS)(x, weight, bias), x)
    recorded = str(traced.inlined_graph)
    assert ("aten::_convolution" in recorded, "dwr::" in recorded) == (True, False)
    torch.testing.assert_close(traced(2 * x), native(case, 2 * x, weight, bias))
    calls, tangents = (form(case, OURS), lambda *args: native(case, *args)), (x, weight)
    got, expected = (torch.func.jvp(call, tangents, tangents) for call in calls)
    torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("aten")
def test_vmap_and_autocast() -> None:
    case = CASES["2d-multiplier"]
    x, weight, bias = (t.detach() for t in tensors(case, torch.float32))
    for forms in (OURS, Forms("kernel", 2, TILE)):
        for axes in ((0, None, None), (None, 0, None), (0, 0, 0)):
            stacked = [t if axis is None else torch.stack([t, 2 * t])
                       for t, axis in zip((x, weight, bias), axes, strict=True)]  # fmt: skip

            def per_sample(call: Any) -> Any:
                def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
                    return call(x, w, b).pow(2).sum()

                grads = torch.func.grad(loss, argnums=(0, 1, 2))
                return torch.func.vmap(grads, in_dims=axes)(*stacked)  # noqa: B023

            got, expected = per_sample(form(case, forms)), per_sample(lambda *a: native(case, *a))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
            y = form(case, forms)(*leaves)
            assert y.dtype == torch.bfloat16
            y.sum().backward()
        assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_value_of_a_packed_weight_is_read_for_its_gradient(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is filled with NaN here, in both layouts."""
    blank = functional._blank
    monkeypatch.setattr(functional, "_blank", lambda *args: blank(*args).fill_(torch.nan))
    case = CASES[name]
    given = tensors(case, dtype)
    layouts = [LAYOUTS[name][1]] if name in LAYOUTS else []
    for layout in (torch.contiguous_format, *layouts):
        inputs = [t.detach().to(memory_format=layout) if t.dim() > 3 else t.detach() for t in given]
        upstream = upstream_of(case, inputs)
        for width in (2, 4):
            got = step(form(case, Forms(1, 1, width)), inputs, upstream)
            assert max(errors(case, inputs, got, upstream)) <= 1


# ------------------------------------------------------------------------------ every front


class Net(nn.Module):
    """Modules and a call, strides, a multiplier, "same", circular padding, a transposed one."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 1)
        self.first = nn.Conv2d(4, 8, 3, 2, 1, groups=4)
        self.same = nn.Conv2d(8, 8, (2, 3), padding="same", groups=8, bias=False)
        self.round = nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="circular")
        self.up = nn.ConvTranspose2d(8, 8, 2, 2, groups=8)
        self.filters = nn.Parameter(torch.randn(8, 1, 1, 3))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.same(torch.tanh(self.first(self.stem(x)))))
        return F.conv2d(self.up(self.round(x)), self.filters, groups=8)


SITES = 4
"""Modules; the graph of the net has one call more."""


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)


def sites(model: Any) -> dict[str, Any]:
    return {site.name: site for site in dwr.record(model) if site.changed}


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("policy", ["kernel", MIXED], ids=["kernel", "mixed"])
@pytest.mark.parametrize("cls", CLASSES)
def test_modules_compute_and_learn_the_same(cls: Any, policy: Any) -> None:
    module = conv(cls, **CLASSES[cls])
    x = sample(module)
    ours = dwr.fx_rewrite(module, policy=policy, weights="linked")
    close(gradients(ours, x), gradients(module, x))
    single = x[0]
    assert torch.allclose(ours(single), module(single), rtol=0, atol=1e-12)
    if cls is nn.ConvTranspose2d:
        size = [22, 27]  # of 21 to 22 and 26 to 28
        assert torch.allclose(ours(x, size), module(x, size), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("weights", [None, "precomputed", "linked"])
@pytest.mark.parametrize("training", [True, False])
def test_the_weight_stays_compact_whatever_is_asked_for(weights: Any, training: bool) -> None:
    net, x = Net().train(training), image()
    ours = dwr.fx_rewrite(net, x, policy="kernel", weights=weights)
    found = sites(ours)
    assert list(found) == ["first", "same", "round", "up"]
    assert {(s.form, s.weights, s.growth) for s in found.values()} == {("kernel", "linked", 0)}
    assert {s.macs[0] == s.macs[1] for s in found.values()} == {True}
    assert dict(ours.named_parameters()).keys() == dict(net.named_parameters()).keys()
    assert all(torch.equal(a, b) for a, b in
               zip(ours.parameters(), net.parameters(), strict=True))  # fmt: skip
    assert torch.allclose(ours(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("aten")
def test_a_weight_that_is_shared_or_read_does_not_forbid_a_kernel() -> None:
    module = conv()
    pair = nn.ModuleDict({"one": module, "other": conv()})
    pair["other"].weight = module.weight
    ours = dwr.fx_rewrite(pair.eval(), policy="kernel")
    assert {s.form for s in dwr.record(ours)} == {"kernel"}
    assert ours["one"].weight is ours["other"].weight
    kept = dwr.fx_rewrite(pair, policy="dense")
    assert {s.reason.code for s in dwr.record(kept)} == {"shared-weight"}  # the twin


@pytest.mark.usefixtures("aten")
def test_a_computed_weight() -> None:
    module = parametrizations.weight_norm(conv(), dim=0)
    ours = dwr.fx_rewrite(module, policy=MIXED)
    x = sample(module)
    close(gradients(ours, x), gradients(module, x))


@pytest.mark.usefixtures("aten")
def test_a_form_for_each_direction_is_told() -> None:
    ours = dwr.fx_rewrite(conv(), policy=MIXED, weights="linked")
    (site,) = dwr.record(ours)
    assert site.form == f"forward=kernel,grad_input=blocks:2,grad_weight={TILE}"
    assert vars(ours)[UNDO].forms == Forms("kernel", 2, TILE)
    eager = dwr.fx_rewrite(conv(), policy={"grad_weight": "kernel"}, weights="linked")
    assert vars(eager)[UNDO].forms == Forms(1, 1, "kernel")
    stride = dwr.fx_rewrite(conv(stride=2), policy=TILE)  # which no gradient's columns fit
    assert vars(stride)[UNDO].forms == Forms(TILE, 1, TILE)


def test_a_stride_that_no_kernel_takes_is_kept() -> None:
    (site,) = dwr.record(dwr.fx_rewrite(conv(stride=17), policy="kernel"))
    assert (site.form, site.reason.code) == ("keep", "no-kernel")


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("linked", [True, False])
def test_a_graph_compiles_and_exports_to_the_operator(linked: bool) -> None:
    net, x = Net(), image()
    traced = symbolic_trace(net)
    ours = dwr.fx_rewrite(traced, x, policy="kernel", weights="linked" if linked else "precomputed")
    found = sites(ours)
    assert len(found) == SITES + 1
    assert found["conv2d"].weights == "linked"
    [call] = [n for n in ours.graph.nodes if n.target is depthwise_conv]
    assert call.args[-1] == tuple(OURS)
    close(gradients(ours, x), gradients(net, x))
    with torch.no_grad():
        exported = export(ours, (x,))
    assert [n.target for n in exported.graph.nodes].count(OPERATOR) == SITES + 1


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("policy", ["kernel", MIXED], ids=["kernel", "mixed"])
def test_the_backend_of_torch_compile(policy: Any) -> None:
    torch._dynamo.reset()
    net = conv()
    x = sample(net)
    compiled: Any = torch.compile(net, backend="dwr", options={"policy": policy})
    close(gradients(compiled, x), {
        (name if name in "xy" else f"_orig_mod.{name}"): value
        for name, value in gradients(net, x).items()
    })  # fmt: skip


DYNAMIC = ({0: Dim("batch", min=1), 2: Dim("h", min=4), 3: Dim("w", min=4)},)


class Plain(nn.Module):
    """What exports with any lengths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 8, 3, 2, 1, groups=4)
        self.same = nn.Conv2d(8, 8, (2, 3), padding="same", groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 3, (2, 1), groups=8, output_padding=(1, 0))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.tanh(self.same(torch.tanh(self.first(x)))))


@pytest.fixture(params=["fixed", "dynamic"])
def program(request: pytest.FixtureRequest) -> ExportedProgram:
    x = torch.randn(2, 4, 8, 7, dtype=torch.float64)
    dynamic = DYNAMIC if request.param == "dynamic" else None
    return export(Plain().eval(), (x,), dynamic_shapes=dynamic)


@pytest.mark.usefixtures("engine")
def test_an_exported_program_calls_the_operator(program: ExportedProgram) -> None:
    ours = dwr.fx_rewrite(program, policy=TILE)
    assert [(s.form, s.weights, s.growth) for s in dwr.record(ours)] == [(TILE, "linked", 0)] * 3
    nodes = [n for n in ours.graph.nodes if n.target is OPERATOR]
    assert [n.args[-1] for n in nodes] == [TILE.partition(":")[2]] * 3
    (x,), _ = program.example_inputs
    lengths = [x.shape[2:], (11, 12)] if ours.range_constraints else [x.shape[2:]]
    for length in lengths:
        x = torch.randn(2, 4, *length, dtype=torch.float64)
        assert torch.allclose(ours.module()(x), program.module()(x), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("aten")
def test_an_exported_program_saves_and_decomposes(program: ExportedProgram) -> None:
    ours = dwr.fx_rewrite(program, policy="kernel")
    (x,), _ = program.example_inputs
    expected = program.module()(x)
    file = io.BytesIO()
    torch.export.save(ours, file)
    file.seek(0)
    assert torch.allclose(torch.export.load(file).module()(x), expected, rtol=0, atol=1e-12)
    plain = ours.run_decompositions(ops.decompositions())
    assert OPERATOR not in {n.target for n in plain.graph.nodes}
    assert torch.allclose(plain.module()(x), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("aten")
def test_an_exported_program_without_a_batch_is_kept() -> None:
    single = export(conv().eval(), (sample(conv())[0],))
    (site,) = dwr.record(dwr.fx_rewrite(single, policy="kernel"))
    assert (site.form, site.reason.code) == ("keep", "no-batch")


@pytest.mark.usefixtures("aten")
def test_a_second_rewrite_changes_nothing(program: ExportedProgram) -> None:
    for model in (program, symbolic_trace(Net()), Net()):
        again = dwr.fx_rewrite(dwr.fx_rewrite(model, policy="kernel"), policy="dense")
        codes = {s.reason.code for s in dwr.record(again) if s.reason and s.name != "stem"}
        assert codes == {"already-rewritten"}


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("copying", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles(copying: Any) -> None:
    net, x = Net(), image()
    ours = copying(dwr.fx_rewrite(net, policy=MIXED, weights="linked"))
    close(gradients(ours, x), gradients(net, x))
    assert vars(ours.first)[UNDO].forms == Forms("kernel", 2, TILE)


# --------------------------------------------------------------------- given back, and proved


def state(model: Any) -> list[bytes]:
    found = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    return [pickle.dumps((name, t.detach().numpy())) for name, t in found.items()]


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("policy", ["kernel", MIXED], ids=["kernel", "mixed"])
def test_the_model_comes_back_bit_for_bit(policy: Any) -> None:
    net = Net()
    back = dwr.restore(dwr.fx_rewrite(net, policy=policy, weights="linked"))
    assert [type(m) for m in back.modules()] == [type(m) for m in net.modules()]
    assert state(back) == state(net)
    assert {s.undone for s in dwr.record(back)} == {s.form for s in sites(
        dwr.fx_rewrite(net, policy=policy, weights="linked")).values()}  # fmt: skip
    traced = symbolic_trace(net)
    back = dwr.restore(dwr.fx_rewrite(traced, policy=policy, weights="linked"))
    assert back.code == traced.code
    assert state(back) == state(traced)


@pytest.mark.usefixtures("aten")
def test_an_exported_program_comes_back(program: ExportedProgram) -> None:
    back = dwr.restore(dwr.fx_rewrite(program, policy="kernel"))
    assert back.graph_module.code == program.graph_module.code
    assert state(back) == state(program)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("front", ["modules", "graph", "exported"])
def test_a_kernel_is_proved(front: str) -> None:
    net, x = Net(), image()
    model: Any = {"modules": lambda: net, "graph": lambda: symbolic_trace(net),
                  "exported": lambda: export(net, (x,))}[front]()  # fmt: skip
    ours = dwr.fx_rewrite(model, policy="kernel")
    found = dwr.verify(model, ours, x)
    assert found.verdict == "equivalent"
    check = found.verification
    assert check is not None
    assert check.proof is not None
    assert (check.proof.status, check.proof.differences) == ("proved", ())
    assert len(check.proof.lemmas) == len(sites(ours)) >= SITES
    assert {lemma.form for lemma in check.proof.lemmas} == {"kernel"}
    assert all("convolved by a kernel of ours" in lemma.detail for lemma in check.proof.lemmas)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("front", ["modules", "graph", "exported"])
@pytest.mark.parametrize("what", ["weight", "geometry"])
def test_a_kernel_of_something_else_is_not(front: str, what: str) -> None:
    net, x = Net(), image()
    model: Any = {"modules": lambda: net, "graph": lambda: symbolic_trace(net),
                  "exported": lambda: export(net, (x,))}[front]()  # fmt: skip
    ours = dwr.fx_rewrite(model, policy="kernel")
    spoil(ours, what)
    found = dwr.verify(model, ours, x)
    assert found.verdict == "not equivalent"
    check = found.verification
    assert check is not None
    assert check.proof is not None
    assert check.proof.status != "proved"


def spoil(model: Any, what: str) -> None:
    """Another weight, or another geometry that gives an output of the same size."""
    if isinstance(model, ExportedProgram):
        if what == "weight":
            model.state_dict["first.weight"].data[0, 0, 0, 0] += 1
            return
        node = next(n for n in model.graph.nodes if n.target is OPERATOR)
        node.update_arg(OPERATOR_PADDING, (0, 1))  # and one more is read behind
        model.graph_module.recompile()
    elif what == "weight":
        model.first.weight.data[0, 0, 0, 0] += 1
    else:
        model.round.padding_mode = "reflect"


OPERATOR_PADDING = 6


# ------------------------------------------------------------------------------------ training


class Small(nn.Module):
    """A network that learns in a few steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8),
            nn.SiLU(), nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.SiLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
        self.double().train()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def curve(model: nn.Module, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses: list[Tensor] = []
    for _ in range(steps):
        x = torch.randn(3, 3, 6, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), x.mean((1, 2, 3)).gt(0).long())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("policy", ["kernel", MIXED], ids=["kernel", "mixed"])
def test_a_few_steps_of_training_in_float64(policy: Any) -> None:
    expected = curve(Small(), 4)
    got = curve(dwr.fx_rewrite(Small(), policy=policy), 4)
    assert (got - expected).abs().max() <= 1e-11  # some hundred roundings of 1.1e-16, amplified
    assert (expected[0] - expected[-1]).abs() > 1e-3  # it moves at all


@pytest.mark.usefixtures("aten")
def test_verification_trains_both() -> None:
    net, x = Small(), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    found = dwr.verify(net, dwr.fx_rewrite(net, policy=MIXED), x, training=3)
    assert found.verdict == "equivalent"
    assert found.verification.training.passed


# -------------------------------------------------------------------------------- what refuses


def test_an_onnx_model_has_no_kernels(tmp_path: Any) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (4,)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "model", [x], [y])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    for policy in ("kernel", TILE):
        with pytest.raises(DwrError, match=r"kernel is for torch models"):
            dwr.onnx_rewrite(path, tmp_path / "o.onnx", policy=policy)


def test_a_result_in_one_dimension_can_be_viewed_as_torchs(engine: str) -> None:
    """Whatever the strides of the input: torch's own result is contiguous then."""
    conv1d = nn.Conv1d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 6, 4).transpose(1, 2)
    ours = dwr.fx_rewrite(conv1d, policy="kernel")(x)
    assert ours.stride() == conv1d(x).stride()
    torch.testing.assert_close(ours.view(-1), conv1d(x).view(-1))
