"""Traced graphs: every way to call a convolution, every way to hand it a weight, and back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn import functional as F

import dwr_rewrite as dwr
from dwr_rewrite.passes.fx import DepthwisePass
from dwr_rewrite.passes.fx.calls import depthwise_conv

pytestmark = pytest.mark.filterwarnings(
    "ignore:Attempted to insert a get_attr Node:UserWarning",
    "ignore:Using padding='same' with even kernel lengths:UserWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
)

aten = torch.ops.aten
C = 6
LENGTHS = (9, 8, 7)
WEIGHTS = ("precomputed", "linked")
EPS = 2.0**-53


class Call(nn.Module):
    """Calls ``convolve(x, weight, bias, *args, **kwargs)`` with parameters of its own."""

    def __init__(self, convolve: Callable[..., Any], weight: Tensor, *args: Any, **kwargs: Any):
        super().__init__()
        self.convolve, self.args, self.kwargs = convolve, args, kwargs
        self.weight = nn.Parameter(weight)
        transposed = "transpose" in str(convolve) or (len(args) > 3 and args[3] is True)
        outputs = C * weight.shape[1] if transposed else weight.shape[0]
        self.bias = nn.Parameter(torch.randn(outputs, dtype=weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias, *self.args, **self.kwargs)


class ByName(Call):
    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(bias=self.bias, weight=self.weight, input=x, **self.kwargs)


def weight(*kernel: int, outputs: int = C, inputs: int = 1) -> Tensor:
    return torch.randn(outputs, inputs, *kernel, dtype=torch.float64)


def example(rank: int) -> Tensor:
    return torch.randn(2, C, *LENGTHS[:rank], dtype=torch.float64)


def forms(reports: list[Any]) -> dict[str, str]:
    """Form of each rewritten site, and the code of each other."""
    return {s.name: s.form if s.changed else s.reason.code for s in reports}


def absolute(model: nn.Module) -> nn.Module:
    """The model with the absolute values of its parameters and buffers."""
    copied = copy.deepcopy(model)
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.abs()
    return copied


def magnitude(model: nn.Module, *inputs: Tensor) -> float:
    """The output with every sum taken over absolute values: what a rounding error is relative to.

    Sound for a sequence of convolutions, whose parts are all linear.
    """
    with torch.no_grad():
        return float(absolute(model)(*(x.abs() for x in inputs)).max())


def assert_equal(model: nn.Module, other: nn.Module, *inputs: Tensor, layers: int = 1) -> None:
    """Two float64 sums of n products differ by at most 2 n u (|w| * |x|), in each layer.

    n counts the products with an exact zero as none: at most 5^3 taps and the bias.
    """
    with torch.no_grad():
        expected, got = model(*inputs), other(*inputs)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float((got - expected).abs().max()) <= bound(model, *inputs, layers=layers)


def bound(model: nn.Module, *inputs: Tensor, layers: int = 1) -> float:
    return layers * 2 * (125 + 1) * EPS * magnitude(model, *inputs)


CONV, TRANSPOSED = (F.conv1d, F.conv2d, F.conv3d), (
    F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
)  # fmt: skip
CALLS: dict[str, tuple[int, nn.Module]] = {
    **{f"F.conv{r}d": (r, Call(CONV[r - 1], weight(*(3,) * r), groups=C)) for r in (1, 2, 3)},
    **{f"F.conv_transpose{r}d": (r, Call(TRANSPOSED[r - 1], weight(*(3,) * r), groups=C))
       for r in (1, 2, 3)},
    "torch.conv2d": (2, Call(torch.conv2d, weight(3, 2), 1, 1, 1, C)),
    "tuples": (2, Call(F.conv2d, weight(3, 2), (2, 1), (0, 1), (1, 2), C)),
    "keywords": (2, ByName(F.conv2d, weight(3, 3), groups=C, padding=[1, 1], stride=(2,))),
    "same": (2, Call(F.conv2d, weight(3, 4), padding="same", dilation=(2, 1), groups=C)),
    "same-1d": (1, ByName(F.conv1d, weight(4), padding="same", groups=C)),
    "valid": (2, Call(F.conv2d, weight(5, 1), 1, "valid", 1, C)),
    "multiplier": (2, Call(F.conv2d, weight(3, 3, outputs=3 * C), groups=C)),
    "transposed-all": (2, Call(
        F.conv_transpose2d, weight(3, 2, inputs=2), (2, 3), (1, 0), (1, 2), C, (2, 1),
    )),
    "transposed-keywords": (1, ByName(
        torch.conv_transpose1d, weight(4), stride=2, output_padding=1, groups=C,
    )),
    "aten.conv2d": (2, Call(aten.conv2d.default, weight(3, 3), [1, 1], [1, 1], [1, 1], C)),
    "aten.conv2d packet": (2, Call(aten.conv2d, weight(3, 3), [1, 1], [1, 1], [1, 1], C)),
    "aten.conv1d.padding": (1, Call(aten.conv1d.padding, weight(3), [1], "same", [2], C)),
    "aten.conv3d": (3, Call(aten.conv3d.default, weight(1, 3, 3), groups=C)),
    "aten.conv_transpose1d": (1, Call(
        aten.conv_transpose1d.default, weight(4), [2], [1], [0], C, [1],
    )),
    "aten.conv_transpose2d": (2, Call(aten.conv_transpose2d.input, weight(2, 2), groups=C)),
    "aten.convolution": (2, Call(
        aten.convolution.default, weight(3, 3), [1, 2], [1, 1], [1, 1], False, [0, 0], C,
    )),
    "aten.convolution transposed": (1, Call(
        aten.convolution.default, weight(3, inputs=2), [2], [1], [1], True, [1], C,
    )),
}  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", CALLS)
def test_every_call(name: str, weights: Any) -> None:
    rank, model = CALLS[name]
    traced, x = symbolic_trace(model), example(rank)
    code, before = traced.code, {k: v.clone() for k, v in traced.state_dict().items()}
    fast = dwr.fx_rewrite(traced, weights=weights, policy="blocks:3")
    (site,) = dwr.record(fast)
    assert (site.form, site.weights, site.changed) == ("blocks:3", weights, True)
    assert_equal(traced, fast, x)
    fast.graph.lint()
    (call,) = (n for n in fast.graph.nodes if n.op == "call_function")
    if weights == "precomputed":
        assert call.target is model.convolve
        assert list(fast.state_dict()) == list(before)
    else:
        assert call.target is depthwise_conv
        assert all(torch.equal(v, before[k]) for k, v in fast.state_dict().items())
    assert traced.code == code  # a copy was rewritten
    assert all(torch.equal(v, before[k]) for k, v in traced.state_dict().items())
    back = dwr.restore(fast)
    assert [(s.form, s.undone) for s in dwr.record(back)] == [("keep", "blocks:3")]
    assert back.code == code
    assert all(torch.equal(v, before[k]) for k, v in back.state_dict().items())
    assert torch.equal(back(x), traced(x))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_comparison_fails_for_a_wrong_weight(weights: Any) -> None:
    _, model = CALLS["F.conv2d"]
    traced, x = symbolic_trace(model), example(2)
    fast = dwr.fx_rewrite(traced, weights=weights, policy="dense")
    with torch.no_grad():
        fast.weight[:1] *= 1 + 1e-10  # one filter, in the tenth digit
    with pytest.raises(AssertionError):
        assert_equal(traced, fast, x)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradients_of_a_call(weights: Any) -> None:
    _, model = CALLS["transposed-all"]
    traced = symbolic_trace(model)
    fast = dwr.fx_rewrite(traced, weights=weights, policy="blocks:2")
    x = torch.randn(2, C, 5, 4, dtype=torch.float64)
    cotangent = torch.randn_like(traced(x))
    one, other = gradients(traced, x, cotangent), gradients(fast, x, cotangent)
    scale = gradients(absolute(traced), x.abs(), cotangent.abs())
    # a gradient sums at most one product for each output of a channel, and its magnitude is that
    # of the same sum over absolute values
    terms = cotangent.numel() / cotangent.shape[1]
    compared = ("x", "bias", "weight") if weights == "linked" else ("x", "bias")
    for name, gradient in ((name, one[name]) for name in compared):
        assert other[name].shape == gradient.shape
        assert ((gradient - other[name]).abs() <= 2 * terms * EPS * scale[name]).all(), name
    wrong = gradients(traced, x + 1e-9, cotangent)["weight"]
    assert ((one["weight"] - wrong).abs() > 2 * terms * EPS * scale["weight"]).any()


def gradients(model: nn.Module, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(model(x), (x, *parameters), cotangent)
    return dict(zip(("x", *names), found, strict=True))


class Chains(nn.Module):
    """Weights as Mamba ("squeeze") and Qwen2.5-Omni ("expand") write them, and others."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv1d = nn.Conv1d(C, C, 4, groups=C, padding=3, dtype=torch.float64)
        self.register_buffer("filter", torch.randn(1, 1, 5, dtype=torch.float64))
        self.rows = nn.Parameter(torch.randn(3, C, dtype=torch.float64))
        self.flat = nn.Parameter(torch.randn(C * 3, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "squeeze":
            compact = self.conv1d.weight.squeeze(1)
            return F.conv1d(x, compact.unsqueeze(1), self.conv1d.bias, padding=3, groups=C)
        if self.kind == "expand":
            return F.conv1d(x, self.filter.expand(C, -1, -1), groups=C)
        if self.kind == "permute":
            return F.conv1d(x, self.rows.permute(1, 0)[:, None].contiguous(), groups=C)
        if self.kind == "reshape":
            return F.conv1d(x, torch.reshape(self.flat, (C, 1, 3)), groups=C)
        if self.kind == "flip":
            return F.conv1d(x, self.conv1d.weight.flip(-1), groups=C)
        return F.conv1d(x, self.conv1d.weight * 2, groups=C)


@pytest.mark.parametrize("trace", [symbolic_trace, lambda m: make_fx(m)(example(1))])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", ["squeeze", "expand", "permute", "reshape", "flip"])
def test_a_weight_that_is_only_laid_out_anew(kind: str, weights: Any, trace: Any) -> None:
    traced, x = trace(Chains(kind)), example(1)
    fast = dwr.fx_rewrite(traced, weights=weights, policy="dense")
    (site,) = dwr.record(fast)
    assert (site.form, site.weights) == ("dense", weights)
    assert_equal(traced, fast, x)
    fast = copy.deepcopy(fast)  # which loses the attributes that no node reads
    assert_equal(traced, fast, x)
    constant = kind == "expand" and trace is symbolic_trace  # which computes with buffers at once
    if weights == "precomputed" and not constant:
        (name,) = (name for name in fast.state_dict() if name.endswith("_dwr_weight"))
        stored = getattr(fast, name)
        assert isinstance(stored, nn.Parameter) is (kind != "expand")
        assert stored.requires_grad is (kind not in ("expand", "reshape"))
        assert len(fast.graph.nodes) < len(traced.graph.nodes)
    back = dwr.restore(fast)
    assert {n: p.shape for n, p in back.state_dict().items()} == {
        n: p.shape for n, p in traced.state_dict().items()
    }
    assert torch.equal(back(x), traced(x))
    assert [n.target for n in back.graph.nodes if n.op != "get_attr"] == [
        n.target for n in traced.graph.nodes if n.op != "get_attr"
    ]


def test_a_weight_that_changed_since_is_not_thrown_away() -> None:
    traced, x = symbolic_trace(Chains("squeeze")), example(1)
    fast = dwr.fx_rewrite(traced, weights="precomputed", policy="dense")
    (name,) = (name for name in fast.state_dict() if name.endswith("_dwr_weight"))
    with torch.no_grad():
        fast.get_parameter(name).mul_(2)
    back = dwr.restore(fast)
    assert dwr.record(back)[0].reason is None
    assert back.get_parameter(name).shape == (C, 1, 4)
    assert_equal(back, fast, x)
    with torch.no_grad():
        fast.get_parameter(name).add_(1)
    kept = dwr.restore(fast)
    assert [s.reason.code for s in dwr.record(kept) if s.reason] == ["not-diagonal"]
    assert torch.equal(kept(x), fast(x))


def test_a_computed_weight_is_linked_where_its_shape_is_known() -> None:
    """make_fx notes shapes, symbolic_trace does not."""
    model, x = Chains("product"), example(1)
    refused = dwr.fx_rewrite(symbolic_trace(model).eval(), policy="dense")
    assert forms(dwr.record(refused)) == {"conv1d": "runtime-weight"}
    traced = make_fx(model)(x)
    fast = dwr.fx_rewrite(traced.eval(), policy="dense")
    assert [s.weights for s in dwr.record(fast)] == ["linked"]
    assert_equal(traced, fast, x)


def test_a_weight_as_argument() -> None:
    traced = make_fx(lambda x, w: F.conv2d(x, w, groups=C))(example(2), weight(3, 3))
    fast = dwr.fx_rewrite(traced, weights="precomputed", policy="dense")
    assert [(s.form, s.weights) for s in dwr.record(fast)] == [("dense", "linked")]
    x, w = example(2), weight(3, 3)
    assert_equal(traced, fast, x, w)
    assert dwr.restore(fast).code == traced.code


class Readers(nn.Module):
    """A weight with another reader: two calls, the output, or a module and a call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv1d(C, C, 3, groups=C, padding=1, bias=False, dtype=torch.float64)
        self.weight = nn.Parameter(weight(3))
        self.again = self.weight

    def forward(self, x: Tensor) -> Any:
        if self.kind == "calls":
            return F.conv1d(F.conv1d(x, self.weight, groups=C), self.weight, groups=C)
        if self.kind == "names":
            return F.conv1d(F.conv1d(x, self.weight, groups=C), self.again, groups=C)
        if self.kind == "sum":
            return F.conv1d(x, self.weight, groups=C) + self.weight.sum()
        if self.kind == "module and sum":
            return self.conv(x) + self.conv.weight.sum()
        return F.conv1d(self.conv(x), self.conv.weight, groups=C)


READERS = {
    # kind: what precomputed does
    "calls": {"conv1d": "dense", "conv1d_1": "dense"},
    "names": {"conv1d": "dense", "conv1d_1": "dense"},
    "sum": {"conv1d": "dense"},
    "module and sum": {"conv": "shared-weight"},
    "module and call": {"conv": "shared-weight", "conv1d": "dense"},
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", READERS)
def test_another_reader_sees_the_weight_as_it_was(kind: str, weights: Any) -> None:
    traced, x = symbolic_trace(Readers(kind)), example(1)
    fast = dwr.fx_rewrite(traced, weights=weights, policy="dense")
    expected = READERS[kind]
    if weights == "linked":
        expected = dict.fromkeys(expected, "dense")
    assert forms(dwr.record(fast)) == expected
    assert_equal(traced, fast, x, layers=2)
    for name, value in traced.state_dict().items():
        assert torch.equal(fast.state_dict()[name], value)
    back = dwr.restore(fast)
    assert torch.equal(back(x), traced(x))
    assert back.state_dict().keys() == traced.state_dict().keys()


def test_a_weight_that_the_graph_changes_is_read_anew() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", weight(3))

        def forward(self, x: Tensor) -> Tensor:
            self.weight.view(C, 3).mul_(2)
            return F.conv1d(x, self.weight, groups=C)

    class Tracer(torch.fx.Tracer):
        proxy_buffer_attributes = True

    model, x = Written(), example(1)
    traced = GraphModule(model, Tracer().trace(model))
    fast = dwr.fx_rewrite(traced, weights="precomputed", policy="dense")
    assert forms(dwr.record(fast)) == {"conv1d": "weight-written"}
    fast = dwr.fx_rewrite(traced, weights="linked", policy="dense")
    assert forms(dwr.record(fast)) == {"conv1d": "dense"}
    for _ in range(2):
        assert_equal(traced, fast, x)
        assert torch.equal(traced.weight, fast.weight)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "groups at run time": (lambda x, w: F.conv1d(x, w, groups=x.shape[1]), "run-time-geometry"),
    "stride at run time": (
        lambda x, w: F.conv2d(x, w, stride=(x.size(0), 1), groups=C), "run-time-geometry",
    ),
    "unknown weight": (lambda x, w: F.conv1d(x, w, groups=C), "runtime-weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_left_as_it_is(name: str) -> None:
    function, code = REFUSED[name]
    traced = symbolic_trace(function)
    fast = dwr.fx_rewrite(traced, policy="blocks:32")
    assert [s.reason.code for s in dwr.record(fast) if s.reason] == [code]
    assert fast.code == traced.code


def test_ordinary_and_pointwise_convolutions_are_left() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Parameter(weight(3, inputs=C))
            self.grouped = nn.Parameter(weight(3, inputs=2))
            self.pointwise = nn.Parameter(weight(1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv1d(x, self.dense)
            x = F.conv1d(x, self.grouped, groups=3)
            return F.conv1d(x, self.pointwise, groups=C)

    traced = symbolic_trace(Others())
    fast = dwr.fx_rewrite(traced, policy="blocks:32")
    assert forms(dwr.record(fast)) == {"conv1d_1": "grouped", "conv1d_2": "pointwise"}
    assert fast.code == traced.code


class Small(nn.Module):
    """Modules and a call, with a batch norm; torch cannot pickle a graph with text annotations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, dtype=torch.float64)
        self.conv = nn.Conv2d(C, C, 3, groups=C, padding=1, dtype=torch.float64)
        self.norm = nn.BatchNorm2d(C, dtype=torch.float64)
        self.up = nn.ConvTranspose2d(C, C, 2, 2, groups=C, dtype=torch.float64)
        self.weight = nn.Parameter(weight(3, 3))
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.norm(self.conv(self.stem(x)))
        return F.conv2d(self.up(x), self.weight, groups=C)


IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64)
SITES = ["conv", "conv2d", "up"]
# Each of five layers rounds sums of at most 27 products and a bias, and the norm four times more.
# A later layer multiplies an error by at most the sum of |w| over one output, here below 20.
NETWORK = 5 * 2 * (28 + 4) * EPS * 20**3


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= NETWORK * other.abs().max())


@pytest.mark.parametrize("training", [False, True])
def test_the_default_follows_the_mode(training: bool) -> None:
    traced = symbolic_trace(Small()).train(training)
    fast = dwr.fx_rewrite(traced, policy="blocks:2")
    expected = "linked" if training else "precomputed"
    assert {s.name: s.weights for s in dwr.record(fast)} == dict.fromkeys(SITES, expected)
    assert all(m.training is training for m in fast.modules())
    assert (list(fast.state_dict()) == list(traced.state_dict())) is True
    assert close(fast(IMAGE), traced(IMAGE))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_copy_pickle_retrace_and_a_second_run(weights: Any) -> None:
    traced = symbolic_trace(Small().eval())
    fast = dwr.fx_rewrite(traced, weights=weights, policy="blocks:2")
    expected = fast(IMAGE)
    assert close(expected, traced(IMAGE))
    copies = {
        "deepcopy": copy.deepcopy(fast),
        "pickle": pickle.loads(pickle.dumps(fast)),
        "trace": symbolic_trace(fast),
    }
    for name, again in copies.items():
        assert torch.equal(again(IMAGE), expected), name
        assert again.state_dict().keys() == fast.state_dict().keys(), name
    second = dwr.fx_rewrite(fast, weights=weights, policy="dense")
    assert forms(dwr.record(second)) == dict.fromkeys(SITES, "already-rewritten")
    assert second.code == fast.code
    assert torch.equal(second(IMAGE), expected)
    for model in (fast, second, copies["deepcopy"]):
        back = dwr.restore(model)
        assert sorted(s.name for s in dwr.record(back)) == SITES
        assert back.code == traced.code
        assert torch.equal(back(IMAGE), traced(IMAGE))


def test_the_record_survives_a_copy() -> None:
    fast = dwr.fx_rewrite(symbolic_trace(Small()), policy="dense")
    assert dwr.record(copy.deepcopy(fast)) == dwr.record(fast)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_folding_batch_norm_before_and_after(weights: Any) -> None:
    from torch.fx.experimental.optimization import fuse  # warns when it is imported

    model = Small().eval()
    fast = dwr.fx_rewrite(model, weights="precomputed", policy="blocks:3")
    after, before = fuse(fast), dwr.fx_rewrite(fuse(model), weights=weights, policy="blocks:3")
    for folded in (after, before):
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        assert close(folded(IMAGE), model(IMAGE))
    assert after.conv.groups == 2
    assert torch.equal(
        dwr.restore(after).conv.weight, dwr.restore(before).conv.weight
    )  # the same products, rounded once


@pytest.mark.parametrize("weights", WEIGHTS)
def test_node_meta_is_kept(weights: Any) -> None:
    traced = torch.export.export(Small().eval(), (IMAGE,)).module()
    fast = dwr.fx_rewrite(traced, weights=weights, policy="blocks:2")
    assert sum(s.changed for s in dwr.record(fast)) == 3
    after = {n.name: n for n in fast.graph.nodes}
    for node in traced.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "val"):
            assert (key in after[node.name].meta) == (key in node.meta)
        if "stack_trace" in node.meta:
            assert after[node.name].meta["stack_trace"] == node.meta["stack_trace"]
    for node in fast.graph.find_nodes(op="get_attr"):
        if "val" in node.meta:
            value = fast.get_parameter(node.target) if "." not in node.target else None
            assert value is None or node.meta["val"].shape == value.shape
    assert close(fast(IMAGE), traced(IMAGE))


def test_nested_graphs_and_control_flow() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight(3))
            self.inner = symbolic_trace(Call(F.conv1d, weight(3), groups=C, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            def yes(x: Tensor) -> Tensor:
                return F.conv1d(x, self.weight, padding=1, groups=C)

            def no(x: Tensor) -> Tensor:
                return F.conv1d(x, self.weight.flip(-1), padding=1, groups=C)

            return torch.cond(x.sum() > 0, yes, no, (self.inner(x),))

    x = example(1)
    with torch.no_grad():
        traced = torch.export.export(Branches().eval().requires_grad_(False), (x,)).module()
    fast = dwr.fx_rewrite(traced, weights="precomputed", policy="dense")
    assert forms(dwr.record(fast)) == {
        "conv1d": "dense", "true_graph_0.conv1d_1": "dense", "false_graph_0.conv1d_1": "dense",
    }  # fmt: skip
    assert {s.weights for s in dwr.record(fast)} == {"precomputed", "linked"}
    for sign in (1, -1):
        assert_equal(traced, fast, sign * x.abs(), layers=2)
        assert torch.equal(dwr.restore(fast)(sign * x.abs()), traced(sign * x.abs()))
    twin = sum(float(traced(sign * x.abs()).sum()) for sign in (1, 1))
    assert abs(twin - sum(float(fast(s * x.abs()).sum()) for s in (1, -1))) > 1e-6


def test_a_graph_in_a_graph_and_a_graph_in_a_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = symbolic_trace(Call(F.conv1d, weight(3), groups=C))
            self.last = nn.Conv1d(C, C, 3, groups=C, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x))

    class Keep(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified: str) -> bool:
            return isinstance(m, GraphModule) or super().is_leaf_module(m, qualified)

    model, x = Outer(), example(1)
    traced = GraphModule(model, Keep().trace(model))
    for given in (traced, model):
        fast = dwr.fx_rewrite(given, weights="precomputed", policy="dense")
        assert forms(dwr.record(fast)) == {"last": "dense", "inner.conv1d": "dense"}
        assert_equal(given, fast, x, layers=2)
        back = dwr.restore(fast)
        assert sorted(s.name for s in dwr.record(back)) == ["inner.conv1d", "last"]
        assert torch.equal(back(x), given(x))


def test_a_dynamo_graph() -> None:
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = Small().eval()
    torch.compile(model, backend=keep)(IMAGE)
    (graph,) = graphs
    fast = dwr.fx_rewrite(graph, weights="precomputed", policy="blocks:2")
    assert {s.weights for s in dwr.record(fast)} == {"linked"}  # parameters are arguments here
    assert sum(s.changed for s in dwr.record(fast)) == 3
    assert dwr.restore(fast).code == graph.code


def test_pass_manager() -> None:
    traced = symbolic_trace(Small().eval())
    expected = traced(IMAGE)
    manager = PassManager(
        passes=[DepthwisePass(policy="blocks:3")], run_checks_after_each_pass=True
    )
    result = manager(traced)
    assert result.modified
    assert sorted(s.name for s in dwr.record(result.graph_module) if s.changed) == SITES
    assert close(result.graph_module(IMAGE), expected)
    again = manager(result.graph_module)
    assert not again.modified


def test_layout_dtype_and_gradient_flag_are_kept() -> None:
    model = Call(F.conv2d, weight(3, 3).bfloat16(), groups=C).to(memory_format=torch.channels_last)
    model.weight.requires_grad_(False)
    traced = symbolic_trace(model)
    fast = dwr.fx_rewrite(traced, weights="precomputed", policy="dense")
    assert fast.weight.dtype == torch.bfloat16
    assert not fast.weight.requires_grad
    assert fast.weight.is_contiguous(memory_format=torch.channels_last)
    assert not fast.weight.is_contiguous()
    assert dwr.restore(fast).weight.stride() == traced.weight.stride()
