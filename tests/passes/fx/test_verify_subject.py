"""Torch models of every kind as subjects of a check: inputs, outputs, values, and nothing moved."""

from __future__ import annotations

import random

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.fx import symbolic_trace

import dwr_rewrite as dwr
from dwr_rewrite.equivalence.samples import Declared
from dwr_rewrite.equivalence.tolerance import UNIT_ROUNDOFF
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.verify.running import copied
from dwr_rewrite.passes.fx.verify.subject import TorchSubject

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # torch.jit
    "ignore:.*LeafSpec:FutureWarning",  # torch, as it copies a graph
)

C = 4


class Net(nn.Module):
    """Depthwise convolutions as modules, one of them called twice, and as a function."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(C, C, 3, padding=1, groups=C)
        self.norm = nn.BatchNorm2d(C)
        self.second = nn.Conv2d(C, 2 * C, 3, groups=C)
        self.up = nn.ConvTranspose2d(2 * C, 2 * C, 2, stride=2, groups=2 * C, bias=False)
        self.weight = nn.Parameter(torch.randn(2 * C, 1, 3, 3))

    def forward(self, x):
        y = self.first(torch.relu(self.norm(self.first(x))))
        y = nn.functional.conv2d(self.up(self.second(y)), self.weight, groups=2 * C)
        return {"image": y, "rest": (y.mean((2, 3)), [y.argmax(1)])}


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net().to(dtype).eval()


def image(dtype=torch.float32, batch=2, seed=1):
    return torch.randn(batch, C, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def program(model=None, dynamic=False):
    with torch.no_grad():
        shapes = {"x": {0: Dim("batch")}} if dynamic else None
        return export(model or net(), (image(),), dynamic_shapes=shapes)


KINDS = {
    "module": net,
    "graph": lambda: symbolic_trace(net()),
    "program": program,
    "precomputed": lambda: dwr.fx_rewrite(net(), policy="blocks:2"),
    "linked": lambda: dwr.fx_rewrite(net(), policy="blocks:2", weights="linked"),
    "linked graph": lambda: dwr.fx_rewrite(symbolic_trace(net()), policy="dense",
                                           weights="linked"),
    "rewritten program": lambda: dwr.fx_rewrite(program(), policy="dense"),
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "script": lambda: torch.jit.script(Plain().eval()),
    "holder": lambda: nn.Sequential(symbolic_trace(net())),
}  # fmt: skip


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(C, C, 3, groups=C)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture(params=KINDS)
def subject(request):
    return TorchSubject(KINDS[request.param](), (image(),))


def expected():
    """The network's outputs in double."""
    with torch.no_grad():
        y = net().double()(image().double())
    return {"image": y["image"].numpy(), "rest.0": y["rest"][0].numpy()}


# Outputs.


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"script"}))
def test_outputs_and_the_truth(kind):
    subject = TorchSubject(KINDS[kind](), (image(),))
    assert list(subject.outputs) == ["image", "rest.0", "rest.1.0"]
    found, exact = subject.run(subject.call.examples), subject.exact(subject.call.examples)
    assert list(found) == list(exact.outputs) == list(subject.outputs)
    assert found["rest.1.0"].dtype == np.int64
    for name, truth in expected().items():
        assert found[name].dtype == np.float32
        # a dozen roundings of values of size 3 or less, sums of up to 9 products
        assert np.abs(found[name] - truth).max() <= 1e-5
        assert np.abs(exact.outputs[name] - truth).max() <= 1e-12
        assert exact.outputs[name].dtype == np.float64


def test_a_module_in_torchscript_has_no_sites_but_outputs():
    subject = TorchSubject(KINDS["script"](), (image(),))
    assert (list(subject.outputs), dict(subject.values)) == (["output"], {})
    truth = subject.exact(subject.call.examples).outputs["output"]
    with torch.no_grad():
        assert np.abs(truth - Plain().double()(image().double()).numpy()).max() <= 1e-12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_element_type(dtype):
    kind = getattr(torch, dtype)
    subject = TorchSubject(net(kind), (image(kind),))
    assert subject.declared["x"] == Declared(dtype, (2, C, 8, 8))
    assert subject.dtypes == {dtype}
    assert subject.rounding.store == UNIT_ROUNDOFF[dtype]
    feeds = subject.call.examples
    assert feeds["x"].dtype.name == dtype
    found = subject.run(feeds)
    assert found["image"].dtype.name == dtype
    with torch.no_grad():
        direct = net(kind)(image(kind))["image"]
    assert np.array_equal(found["image"].astype(np.float64), direct.double().numpy())
    assert set(subject.values.values()) == {dtype}


def test_bfloat16_goes_through_numpy_bit_for_bit():
    class Same(nn.Module):
        def forward(self, x):
            return x * 1

    values = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    values = values[np.isfinite(values.astype(np.float32))]
    subject = TorchSubject(Same(), (values,))
    assert subject.run({"x": values})["output"].tobytes() == values.tobytes()


def test_casts_inside_count_for_the_rounding():
    class Casts(Plain):
        def forward(self, x):
            return super().forward(x).half().float()

    subject = TorchSubject(Casts(), (image(),))
    assert subject.dtypes == {"float16", "float32"}
    assert subject.rounding.store == UNIT_ROUNDOFF["float16"]


def test_complex_outputs_are_pairs_and_what_is_no_tensor_is_left_out():
    class Mixed(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x), 7, None, x.shape

    subject = TorchSubject(Mixed(), (image(),))
    assert list(subject.outputs) == ["0"]
    found = subject.run(subject.call.examples)["0"]
    assert (found.shape, found.dtype) == ((2, C, 8, 5, 2), np.float32)
    exact = subject.exact(subject.call.examples).outputs["0"]
    reference = np.fft.rfft(image().double().numpy())
    assert np.abs(exact[..., 0] + 1j * exact[..., 1] - reference).max() <= 1e-12


def test_an_output_that_the_model_goes_on_changing_keeps_its_values():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(()))

        def forward(self, x):
            self.total += x.sum()
            return self.total

    model = Counts()
    subject = TorchSubject(model, (torch.ones(3),))
    found = [subject.run(subject.call.examples)["output"] for _ in range(2)]
    assert found == [3.0, 3.0]
    assert model.total == 0


# Inputs.


class Many(nn.Module):
    def forward(self, x, pair, *rest, flag=True, scale=None):
        assert flag
        return x + pair[0] * pair[1]["b"] + sum(rest) + (0 if scale is None else scale)


def test_inputs_have_the_names_of_their_parameters():
    one = torch.ones(2)
    subject = TorchSubject(Many(), (one, (one, {"b": one}), one, one))
    assert list(subject.declared) == ["x", "pair.0", "pair.1.b", "input2", "input3"]
    feeds = {name: np.full(2, i, np.float32) for i, name in enumerate(subject.declared)}
    assert subject.run(feeds)["output"].tolist() == [0 + 1 * 2 + 3 + 4] * 2


@pytest.mark.parametrize(
    "examples",
    [
        {"x": torch.ones(2), "pair": (torch.ones(2), {"b": torch.ones(2)}), "flag": True,
         "scale": np.ones(2, np.float32)},
    ],
)  # fmt: skip
def test_keyword_arguments(examples):
    subject = TorchSubject(Many(), examples)
    assert list(subject.declared) == ["x", "pair.0", "pair.1.b", "scale"]
    assert subject.run(subject.call.examples)["output"].tolist() == [3, 3]


def test_other_names_can_be_given():
    subject = TorchSubject(net(), (image(),), names=["input"])
    assert list(subject.declared) == ["input"]
    assert subject.run({"input": image().numpy()})["rest.0"].shape == (2, 2 * C)
    with pytest.raises(DwrError, match=r"the inputs \['a', 'b'\] were expected"):
        TorchSubject(net(), (image(),), names=["a", "b"])


def test_a_program_says_which_lengths_are_dynamic():
    subject = TorchSubject(program(dynamic=True), {"x": image()})
    assert subject.declared == {"x": Declared("float32", (None, C, 8, 8))}
    assert subject.run({"x": image(batch=5).numpy()})["rest.0"].shape == (5, 2 * C)
    assert TorchSubject(program(), image()).declared["x"].shape == (2, C, 8, 8)


@pytest.mark.parametrize(
    ("model", "examples", "words"),
    [
        (net, (), "hold no tensor"),
        (net, (torch.ones(2, C + 1, 8, 8),), "Net does not run on the example inputs: .*channels"),
        (lambda: nn.LazyConv2d(4, 3), (image(),), "lazy"),
    ],
)
def test_what_cannot_be_run_is_refused(model, examples, words):
    with pytest.raises(DwrError, match=words):
        TorchSubject(model(), examples)


def test_unless_it_need_not_run():
    subject = TorchSubject(net(), (torch.ones(2, C + 1, 8, 8),), required=False)
    assert (list(subject.outputs), dict(subject.values)) == ([], {})
    with pytest.raises(RuntimeError, match="channels"):
        subject.run(subject.call.examples)


def test_what_cannot_be_copied_is_told():
    class Stubborn(Plain):
        def __deepcopy__(self, memo):
            raise TypeError("one is enough")

    with pytest.raises(DwrError, match="Stubborn cannot be copied: one is enough"):
        TorchSubject(Stubborn(), (image(),)).exact({"x": image().numpy()})


# Values of convolutions.

VALUES = {
    "module": ["first", "first#2", "second", "up"],
    "graph": ["first", "first#2", "second", "up", "conv2d"],
    "program": ["conv2d", "conv2d_1", "conv2d_2", "conv_transpose2d", "conv2d_3"],
    "holder": ["0.first", "0.first#2", "0.second", "0.up", "0.conv2d"],
}
SHAPES = [(2, C, 8, 8), (2, C, 8, 8), (2, 2 * C, 6, 6), (2, 2 * C, 12, 12), (2, 2 * C, 10, 10)]


@pytest.mark.parametrize("kind", VALUES)
def test_values_in_the_order_in_which_they_run(kind):
    subject = TorchSubject(KINDS[kind](), (image(),))
    assert list(subject.values) == VALUES[kind]
    taps, exact = {}, {}
    subject.tap(subject.call.examples, VALUES[kind], lambda n, a: taps.update({n: a.copy()}))
    subject.sites = {name.partition("#")[0] for name in VALUES[kind]}
    peak = subject.exact(subject.call.examples, observe=lambda n, a: exact.update({n: a.copy()}))
    assert list(taps) == list(exact) == list(peak.peak) == VALUES[kind]
    assert [a.shape for a in taps.values()] == SHAPES[: len(taps)]
    for name, tap in taps.items():
        assert np.abs(tap - exact[name]).max() <= 1e-5
    first = VALUES[kind][0]
    assert peak.peak[first] == float(image().abs().max())
    model = net().double()
    with torch.no_grad():
        assert np.abs(exact[first] - model.first(image().double()).numpy()).max() <= 1e-12


def test_only_what_is_asked_for_is_told():
    subject, found = TorchSubject(net(), (image(),)), []
    subject.tap(subject.call.examples, ["first#2"], lambda name, _: found.append(name))
    assert found == ["first#2"]


# The model stays as it is.


def state(model):
    """All that a check must not change."""
    is_module = isinstance(model, nn.Module)
    module = model if is_module else model.graph_module
    tensors = model.state_dict(keep_vars=True) if is_module else model.state_dict
    script = isinstance(model, torch.jit.ScriptModule)  # gives new tensors each time
    legacy = np.random.get_state()[1][0]  # noqa: NPY002
    return {
        "tensors": {k: v.detach().numpy().tobytes() for k, v in tensors.items()},
        "ids": {k: id(v) for k, v in tensors.items() if not script},
        "flags": [m.training for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
        "code": getattr(module, "code", ""),
        "random": (torch.get_rng_state().tolist(), random.getstate(), legacy),
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.norm.running_mean.add_(1e-3),
        lambda model: setattr(model.norm, "weight", nn.Parameter(model.norm.weight.data)),
        lambda model: model.first.eval(),
        lambda model: model.first.register_forward_hook(print),
        lambda model: setattr(model.first, "seen", 1),
        lambda model: torch.rand(1),
        lambda model: np.random.rand(),  # noqa: NPY002
    ],
)
def test_a_change_would_be_seen(change):
    model = net().train()
    before = state(model)
    change(model)
    assert state(model) != before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_model_changes(kind, training):
    model = KINDS[kind]()
    if isinstance(model, nn.Module):
        model.train(training)
    before = state(model)
    subject = TorchSubject(model, (image(),))
    subject.sites = [name for name in subject.values if "#" not in name]
    for _ in range(2):
        subject.run(subject.call.examples)
    subject.exact(subject.call.examples)
    subject.exact(subject.call.examples, np.random.default_rng(0), lambda *_: None)
    subject.tap(subject.call.examples, list(subject.values), lambda *_: None)
    subject.release()
    assert state(model) == before


def test_nor_when_the_model_fails():
    model = net().train()
    before = state(model)
    subject = TorchSubject(model, (image(),))
    for run in (subject.run, subject.exact, lambda f: subject.tap(f, ["first"], lambda *_: None)):
        with pytest.raises((RuntimeError, DwrError)):
            run({"x": np.ones((2, C + 1, 8, 8), np.float32)})
    assert state(model) == before


class Writes(nn.Module):
    """Its forward writes a buffer, binds another anew, and writes a plain tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sum", torch.zeros(3))
        self.register_buffer("last", torch.zeros(3))
        self.plain = torch.ones(3)

    def forward(self, x):
        self.sum += x
        self.last = x * 2
        self.plain.mul_(3)
        return x + self.sum + self.last + self.plain


def test_what_a_forward_writes_is_put_back():
    model = Writes()
    tensors = [model.sum, model.last, model.plain]
    subject = TorchSubject(model, (torch.ones(3),))
    found = [subject.run(subject.call.examples)["output"] for _ in range(2)]
    exact = [subject.exact(subject.call.examples).outputs["output"] for _ in range(2)]
    for values in (*found, *exact):
        assert values.tolist() == [1 + 1 + 2 + 3] * 3
    now = [model.sum, model.last, model.plain]
    assert all(one is other for one, other in zip(now, tensors, strict=True))
    assert [t.tolist() for t in tensors] == [[0] * 3, [0] * 3, [1] * 3]


def test_a_model_that_draws_gives_the_same_twice():
    class Draws(nn.Module):
        def forward(self, x):
            noise = torch.rand(x.shape) + np.random.rand() + random.random()  # noqa: NPY002
            return nn.functional.dropout(x, 0.5, True) + noise

    subject = TorchSubject(Draws(), (image(),))
    one = subject.run(subject.call.examples)["output"]
    torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    two = subject.run(subject.call.examples)["output"]
    exact = subject.exact(subject.call.examples).outputs["output"]
    assert np.array_equal(one, two)
    assert np.abs(one - exact).max() <= 1e-5  # the same numbers in float64


def test_it_runs_in_eval_mode():
    model = net().train()
    subject = TorchSubject(model, (image(),))
    with torch.no_grad():
        direct = net()(image())["image"]
    assert np.array_equal(subject.run(subject.call.examples)["image"], direct.numpy())


@pytest.mark.parametrize("outside", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_whatever_grad_mode_is_on(outside):
    with outside():
        subject = TorchSubject(net(), (image(),))
        truth = subject.exact(subject.call.examples, np.random.default_rng(0)).outputs
    assert np.abs(truth["image"] - expected()["image"]).max() <= 1e-3


def test_one_float64_copy_at_a_time():
    shelf = {}
    one, two = (TorchSubject(net(), (image(),), shelf) for _ in range(2))
    for subject in (one, two, one):
        subject.exact(subject.call.examples)
        assert list(shelf) == [id(subject)]
    two.release()
    assert shelf
    one.release()
    assert not shelf


def test_a_copy_keeps_ties_and_can_be_made_where_torch_copies_nothing():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight
            self.made = self.one.weight * 2  # no leaf: copy.deepcopy refuses it

    model = Tied()
    copy = copied(model, lambda t: t.double())
    assert copy.two.weight is copy.one.weight
    assert copy.one.weight.dtype == copy.made.dtype == torch.float64
    assert model.one.weight.dtype == torch.float32
    assert copy.made.grad_fn is None


def test_the_engine_is_named():
    assert TorchSubject(net(), (image(),)).engine == "torch CPU"
    compiled = torch.compile(net(), backend="eager")
    assert TorchSubject(compiled, (image(),)).engine == "torch CPU, compiled"
