"""Models rewritten module by module: what is rewritten, what is kept, and what must not notice."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.ao.nn import qat, quantized
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import dwr_rewrite as dwr
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.linked import UNDO, linked_class
from tests.passes.fx.test_functional import Watch

MIXED = {"forward": "dense", "grad_input": "blocks:2", "grad_weight": "keep"}
C = 4

CLASSES = {
    nn.Conv1d: dict(stride=2, padding=1),
    nn.Conv2d: dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    nn.Conv3d: dict(padding=1, bias=False),
    nn.ConvTranspose1d: dict(stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d: dict(stride=(2, 3), output_padding=(1, 0), dilation=2),
    nn.ConvTranspose3d: dict(stride=2, bias=False),
}


def conv(cls=nn.Conv2d, kernel=3, outputs=2 * C, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return cls(C, outputs, kernel, groups=C, **options).to(dtype)


def rank(module) -> int:
    return len(module.kernel_size)


def sample(module, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, C, *(9, 8, 7)[: rank(module)], generator=generator).to(dtype)


def linked(model, policy=MIXED, **options):
    return dwr.fx_rewrite(model, weights="linked", policy=policy, **options)


def precomputed(model, policy="dense", **options):
    return dwr.fx_rewrite(model, weights="precomputed", policy=policy, **options)


def only(model):
    (site,) = dwr.record(model)
    return site


def refusal(model):
    """Code and text of the one site that is kept."""
    site = only(model)
    assert (site.form, site.changed, site.weights) == ("keep", False, None)
    return site.reason.code, site.reason.reason


def gradients(model, x):
    """Output and gradients of one training step, by name."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.mul(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **found}


def close(got, expected):
    """float64, at most a few hundred summands of size 1 or so: far less than 1e-12 relative.

    gamma_n with n = 1000 is 1.1e-13; the sums of magnitudes here are below ten times the values
    that a test compares them with.
    """
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].shape == expected[name].shape
        difference = (got[name] - expected[name]).flatten()
        scale = torch.linalg.vector_norm(expected[name], torch.inf) + 1 if len(difference) else 1
        assert (difference.abs() <= 1e-12 * scale).all(), name


class Net(nn.Module):
    """Two depthwise convolutions among others."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.features = nn.Sequential(conv(padding=1, outputs=C), nn.BatchNorm2d(C), nn.ReLU())
        self.up = conv(nn.ConvTranspose2d, kernel=2, outputs=C, stride=2)
        self.head = nn.Conv2d(C, 2, 1)

    def forward(self, x):
        return self.head(self.up(self.features(self.stem(x))))


def net():
    torch.manual_seed(0)
    return Net().double()


def image(seed=1):
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed)).double()


SITES = ["features.0", "up"]


# --- geometry


@pytest.mark.parametrize("mode", ["linked", "precomputed"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class(cls, mode):
    model = conv(cls, **CLASSES[cls])
    x = sample(model)
    if mode == "linked":
        rewritten = linked(model)
        close(gradients(rewritten, x), gradients(model, x))
        assert isinstance(rewritten, cls)
        assert rewritten.weight.shape == model.weight.shape
    else:
        rewritten = precomputed(model)
        close({"y": rewritten(x)}, {"y": model(x)})
        assert (type(rewritten), rewritten.groups) == (cls, 1)
        assert rewritten.weight.numel() == model.weight.numel() * C
        assert rewritten.weight.count_nonzero() == model.weight.count_nonzero()
    close({"y": rewritten(x[0])}, {"y": model(x[0])})  # without a batch
    assert only(rewritten).weights == mode


def test_a_transposed_convolution_is_told_its_output_size():
    model = conv(nn.ConvTranspose2d, stride=3)
    x = sample(model)
    for size in ([27, 24], [28, 26], [2, 2 * C, 29, 24]):
        for rewritten in (linked(model), precomputed(model)):
            got = rewritten(x, output_size=size)
            assert got.shape[2:] == torch.Size(size[-2:])
            close({"y": got}, {"y": model(x, output_size=size)})


PADDINGS = ["zeros", "reflect", "replicate", "circular"]


@pytest.mark.parametrize("padding", [1, 2, "same", "valid"])
@pytest.mark.parametrize("mode", PADDINGS)
@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d], ids=lambda cls: cls.__name__)
def test_every_padding(cls, mode, padding):
    for kernel, dilation in ((3, 1), (4, 1), (2, 3)):
        if mode == "zeros" or kernel < 4:
            model = conv(cls, kernel, padding=padding, padding_mode=mode, dilation=dilation)
        else:
            axes = [nn.Conv1d, nn.Conv2d, nn.Conv3d].index(cls) + 1
            model = conv(cls, (kernel, 3, 2)[:axes], padding=padding, padding_mode=mode)
        x = sample(model)
        with warnings.catch_warnings():  # torch's, about a copy for 'same' with an even reach
            warnings.filterwarnings("ignore", message="Using padding='same'")
            close(gradients(linked(model), x), gradients(model, x))
            close({"y": precomputed(model)(x)}, {"y": model(x)})


def test_the_comparison_fails_when_the_padding_is_on_the_wrong_side(monkeypatch):
    from dwr_rewrite.passes.fx import linked as classes

    model, right = conv(nn.Conv1d, 4, padding="same"), classes.pad
    monkeypatch.setattr(classes, "pad", lambda x, pads, mode: right(
        x, tuple((b, a) for a, b in pads), mode))  # fmt: skip
    x = sample(model)
    with warnings.catch_warnings():  # torch's, about a copy
        warnings.simplefilter("ignore")
        expected = gradients(model, x)
    with pytest.raises(AssertionError):
        close(gradients(linked(model), x), expected)


def test_geometry_that_was_changed_by_hand_as_torch_takes_it():
    model = conv(nn.Conv2d)
    model.stride, model.padding, model.dilation = 2, 1, 2  # numbers, where torch stores pairs
    x = sample(model)
    close(gradients(linked(model), x), gradients(model, x))
    late = linked(conv())
    late.stride, late.padding, late.dilation = (2, 2), (1, 1), (2, 2)
    close(gradients(late, x), gradients(model, x))


# --- what is kept, and why


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class Stock(nn.Conv2d):
    """Only its constructor is its own."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, groups=channels)
        self.note = "kept"


class Bare(nn.modules.conv._ConvNd):
    def __init__(self):
        super().__init__(C, C, (3,), (1,), (0,), (1,), False, (0,), C, True, "zeros")

    def forward(self, x):
        return torch.conv1d(x, self.weight, self.bias, groups=self.groups)


def patched():
    module = conv()
    module.forward = lambda x: x
    return module


OWN = "has a forward of its own; rewrite the traced model to reach the convolution in it"
QUANTIZED = "quantizes its weight; rewrite the model before it is quantized"
QCONFIG = get_default_qat_qconfig("x86")
REFUSED = {
    "own-forward": (lambda: Own(C, C, 3, groups=C), "own-forward", f"Own {OWN}"),
    "own-conv-forward": (
        lambda: OwnConvForward(C, C, 3, groups=C), "own-forward", f"OwnConvForward {OWN}",
    ),
    "patched": (patched, "own-forward", f"Conv2d {OWN}"),
    "no-stock-class": (Bare, "own-forward", f"Bare {OWN}"),
    "lazy": (
        lambda: nn.LazyConv2d(C, 3, groups=C), "lazy",
        "it is lazy: run the model once, so that its shape is known",
    ),
    "lazy-transposed": (
        lambda: nn.LazyConvTranspose1d(C, 3, groups=C), "lazy",
        "it is lazy: run the model once, so that its shape is known",
    ),
    "quantized": (
        lambda: quantized.Conv2d(C, C, 3, groups=C), "quantized",
        f"torch.ao.nn.quantized.modules.conv.Conv2d {QUANTIZED}",
    ),
    "qat": (
        lambda: qat.Conv2d(C, C, 3, groups=C, qconfig=QCONFIG), "quantized",
        f"torch.ao.nn.qat.modules.conv.Conv2d {QUANTIZED}",
    ),
    "complex": (
        lambda: nn.Conv2d(C, C, 3, groups=C, dtype=torch.complex64), "weight-type",
        "its weight is complex64; float16, bfloat16, float32, float64 expected",
    ),
    "grouped": (
        lambda: nn.Conv2d(8, 8, 3, groups=4), "grouped",
        "an ordinary grouped convolution: 2 input channels in each of 4 groups",
    ),
    "grouped-transposed": (
        lambda: nn.ConvTranspose2d(8, 4, 3, groups=4), "grouped",
        "an ordinary grouped convolution: 2 input channels in each of 4 groups",
    ),
    "pointwise": (
        lambda: nn.Conv2d(C, C, 1, groups=C), "pointwise",
        "a 1x1 kernel only scales each channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["linked", "precomputed"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rewritten_is_kept_with_the_reason(name, mode):
    make, code, text = REFUSED[name]
    with warnings.catch_warnings():  # torch.ao's and the lazy modules' own
        warnings.simplefilter("ignore")
        model = nn.Sequential(make())
        before, state = type(model[0]), str(dict(model.state_dict()))
        rewritten = dwr.fx_rewrite(model, weights=mode, policy="dense", inplace=True)
    assert refusal(rewritten) == (code, text)
    assert (type(model[0]), hasattr(model[0], UNDO)) == (before, False)
    assert str(dict(model.state_dict())) == state


def test_standard_convolutions_are_no_sites():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3), nn.Linear(2, 2))
    assert dwr.record(linked(model)) == []


POLICIES = [
    # policy, code, reason or the form and the widths
    ("keep", ("policy-keep", "kept by the policy")),
    ({"forward": "keep"}, ("policy-keep", "kept by the policy")),
    ("dense", "dense"),
    ("blocks:2", "blocks:2"),
    ("blocks", "dense"),  # 4 channels, 32 wanted
    ({}, ("policy-keep", "kept by the policy")),
    ({"grad_input": "dense"}, "forward=keep,grad_input=dense,grad_weight=keep"),
    (MIXED, "forward=dense,grad_input=blocks:2,grad_weight=keep"),
]


@pytest.mark.parametrize(("policy", "expected"), POLICIES, ids=str)
def test_policies(policy, expected):
    model = conv()
    rewritten = linked(model, policy)
    if isinstance(expected, str):
        assert (only(rewritten).form, only(rewritten).reason) == (expected, None)
    else:
        assert refusal(rewritten) == expected
    close(gradients(rewritten, sample(model)), gradients(model, sample(model)))


def test_a_policy_for_each_direction_gives_its_forward_to_a_precomputed_weight():
    assert only(precomputed(conv(), MIXED)).form == "dense"
    assert refusal(precomputed(conv(), {"grad_input": "dense"}))[0] == "policy-keep"


def test_a_channel_count_without_divisor():
    model = nn.Conv1d(67, 67, 3, groups=67)
    code, text = refusal(linked(model, {"grad_input": "blocks:32"}))
    assert (code, "67" in text) == ("no-group-width", True)


def test_names_and_growth_choose():
    model = net()
    growth = {site.name: site.growth for site in dwr.record(precomputed(model))}
    assert growth == {"features.0": 8 * 9 * C * (C - 1), "up": 8 * 4 * C * (C - 1)}
    chosen = lambda **options: {  # noqa: E731
        site.name: site.reason and (site.reason.code, site.reason.reason)
        for site in dwr.record(precomputed(model, **options))
    }
    not_included = ("not-included", "no include pattern matches its name")
    assert chosen() == dict.fromkeys(SITES)
    assert chosen(include=["^up$"]) == {"features.0": not_included, "up": None}
    assert chosen(exclude=["feat"]) == {
        "features.0": ("excluded", "excluded by 'feat'"),
        "up": None,
    }
    assert chosen(include=["up"], exclude=["u", "f"])["up"] == ("excluded", "excluded by 'u'")
    over = ("over-budget", "its weight would grow by 864 bytes, more than max_growth=863")
    assert chosen(max_growth=863) == {"features.0": over, "up": None}
    assert chosen(max_growth=864) == dict.fromkeys(SITES)
    assert chosen(max_growth=0)["up"][0] == "over-budget"


BAD = [
    (dict(policy="fast"), "policy 'fast' is not known"),
    (dict(policy="blocks:1"), "policy 'blocks:1' is not known"),
    (dict(policy=None), "policy None: a text such as 'blocks:32', or a mapping"),
    (dict(policy={"forward": 5}), "policy 5: a text such as"),
    (dict(policy={"backward": "dense"}), "policy for 'backward': forward, grad_input, grad_weight"),
    (dict(weights="dense"), "weights 'dense': precomputed, linked or None expected"),
    (dict(include="up"), "include 'up': a list of regular expressions expected"),
    (dict(include=[1]), r"include \[1\]: a list"),
    (dict(exclude=None), "exclude None: a list"),
    (dict(exclude=["("]), r"exclude '\(' is not a regular expression"),
    (dict(max_growth="1G"), "max_growth '1G': a number of bytes expected"),
    (dict(max_growth=-1), "max_growth -1"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_a_wrong_argument(options, message):
    model = net()
    with pytest.raises(DwrError, match=message):
        dwr.fx_rewrite(model, inplace=True, **options)
    assert not any(hasattr(module, UNDO) for module in model.modules())


def test_a_wrong_model():
    with pytest.raises(DwrError, match=r"ExportedProgram expected, not OrderedDict"):
        dwr.fx_rewrite(net().state_dict())
    with pytest.raises(DwrError, match=r"does not come from dwr\.fx_rewrite"):
        dwr.record(net())


def test_the_mode_chooses_the_kind_of_weights():
    kinds = lambda model: {s.weights for s in dwr.record(dwr.fx_rewrite(model, policy="dense"))}  # noqa: E731
    assert kinds(net().train()) == {"linked"}
    assert kinds(net().eval()) == {"precomputed"}


def test_subclasses_with_the_stock_forward():
    model = nn.Sequential(Stock(C).double())
    for rewritten in (linked(model), precomputed(model)):
        assert only(rewritten).reason is None
        assert isinstance(rewritten[0], Stock)
        assert rewritten[0].note == "kept"
        close({"y": rewritten(sample(model[0]))}, {"y": model(sample(model[0]))})


def test_a_wrong_model_does_not_pass_the_comparison():
    model = conv()
    wrong = linked(model)
    wrong.weight.data = wrong.weight.data.roll(1, 0)
    with pytest.raises(AssertionError):
        close(gradients(wrong, sample(model)), gradients(model, sample(model)))


# --- weights that others see


SHARED = (
    "another module has the same weight, which would be changed for it too; weights='linked' "
    "leaves it as it is"
)


class Shared(nn.Module):
    def __init__(self, other):
        super().__init__()
        self.first, self.other = conv(outputs=C, padding=1), other
        self.other.weight = self.first.weight

    def forward(self, x):
        return self.other(self.first(x))


class Reader(nn.Module):
    """Something that is no convolution."""

    def forward(self, x):
        return x * self.weight.sum()


@pytest.mark.parametrize(
    "other", [lambda: conv(outputs=C, dilation=2), Reader], ids=["conv", "reader"]
)
def test_a_shared_weight(other):
    model = Shared(other())
    x = sample(model.first)
    rewritten = linked(model)
    assert {site.reason for site in dwr.record(rewritten)} == {None}
    assert rewritten.first.weight is rewritten.other.weight
    close(gradients(rewritten, x), gradients(model, x))
    stored = precomputed(model)
    assert {(s.reason.code, s.reason.reason) for s in dwr.record(stored)} == {
        ("shared-weight", SHARED)
    }
    assert torch.equal(stored(x), model(x))


@pytest.mark.parametrize("rewrite", [linked, precomputed])
def test_one_module_in_two_places(rewrite):
    one = conv(outputs=C, padding=1)
    model = nn.Sequential(one, nn.ReLU(), one)
    rewritten = rewrite(model)
    assert only(rewritten).name == "0"
    assert rewritten[0] is rewritten[2]
    close({"y": rewritten(sample(one))}, {"y": model(sample(one))})


class Mamba(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1d = conv(nn.Conv1d, 4, C, padding=3)

    def forward(self, x):
        weight = self.conv1d.weight.squeeze(1)  # what a fused kernel is handed
        y = nn.functional.conv1d(x, weight.unsqueeze(1), self.conv1d.bias, padding=3, groups=C)
        return y[..., : x.shape[-1]]


class Inherited(Mamba):
    """The reading code is that of a base class."""


class InList(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv(nn.Conv1d, outputs=C)])

    def forward(self, x):
        return torch.conv1d(x, self.convs[0].weight, groups=C)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential()
        self.inner.filter = conv(nn.Conv1d, outputs=C)

    def forward(self, x):
        return torch.conv1d(x, self.inner.filter.weight, groups=C)


@pytest.mark.parametrize("cls", [Mamba, Inherited, InList, Around])
def test_a_weight_that_the_model_reads_itself(cls):
    model = nn.Sequential(cls())
    x = torch.randn(2, C, 9, dtype=torch.float64)
    rewritten = precomputed(model)
    assert refusal(rewritten) == (
        "weight-read",
        f"{cls.__name__} reads its weight itself; weights='linked' leaves it as it is",
    )
    assert torch.equal(rewritten(x), model(x))
    rewritten = linked(model)
    assert only(rewritten).reason is None
    close(gradients(rewritten, x), gradients(model, x))


# --- weights that are computed


def old_weight_norm(module):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(module)


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": old_weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("mode", ["linked", "precomputed"])
@pytest.mark.parametrize("cls", [nn.Conv1d, nn.ConvTranspose2d], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_is_linked(name, cls, mode):
    def make():
        torch.manual_seed(0)
        return COMPUTED[name](conv(cls, outputs=C)).train()

    model, expected = make(), make()
    torch.manual_seed(5)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    dwr.fx_rewrite(model, weights=mode, policy=MIXED, inplace=True)
    assert only(model).weights == "linked"
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    close(gradients(model, sample(model)), gradients(expected, sample(model)))
    close(gradients(model, sample(model)), gradients(expected, sample(model)))  # u has moved
    dwr.restore(model, inplace=True)
    close(gradients(model, sample(model)), gradients(expected, sample(model)))


@pytest.mark.parametrize("first", ["norm", "rewrite"])
def test_a_parametrization_goes_and_comes_under_a_rewrite(first):
    module, expected = conv(), parametrizations.weight_norm(conv())
    for what in ("norm", "rewrite") if first == "norm" else ("rewrite", "norm"):
        if what == "norm":
            parametrizations.weight_norm(module)
        else:
            linked(module, inplace=True)
    x = sample(module)
    close(gradients(module, x), gradients(expected, x))
    close(gradients(copy.deepcopy(module), x), gradients(expected, x))
    restored = dwr.restore(module)
    assert [c.__name__ for c in type(restored).__mro__[:2]] == ["ParametrizedConv2d", "Conv2d"]
    close(gradients(restored, x), gradients(expected, x))
    parametrize.remove_parametrizations(module, "weight")
    parametrize.remove_parametrizations(expected, "weight")
    assert type(module) is linked_class(nn.Conv2d)
    close(gradients(module, x), gradients(expected, x))
    assert type(dwr.restore(module)) is nn.Conv2d


def test_a_model_that_torch_cannot_copy():
    model = old_weight_norm(conv())
    with pytest.raises(
        DwrError, match=r"cannot be copied: Only Tensors created .* pass inplace=True"
    ):
        linked(model)


# --- what must not notice


def same_values(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_linked_models_have_the_same_checkpoints():
    model = net()
    rewritten = linked(model)
    assert [site.reason for site in dwr.record(rewritten)] == [None, None]
    assert same_values(rewritten.state_dict(), model.state_dict())
    other = net()
    nn.init.normal_(other.features[0].weight)
    rewritten.load_state_dict(other.state_dict(), strict=True)
    model.load_state_dict(rewritten.state_dict(), strict=True)
    close(gradients(rewritten, image()), gradients(other, image()))
    close(gradients(model, image()), gradients(other, image()))


def test_parameters_stay_the_same_objects_and_old_optimizers_work():
    model, expected = net(), net()
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (model, expected)]
    parameters = {name: id(p) for name, p in model.named_parameters()}
    assert linked(model, inplace=True) is model
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    for _ in range(3):
        for m, optimizer in zip((model, expected), optimizers, strict=True):
            optimizer.zero_grad()
            m(image()).square().mean().backward()
            optimizer.step()
    close(dict(model.named_parameters()), dict(expected.named_parameters()))
    dwr.restore(model, inplace=True)
    assert {name: id(p) for name, p in model.named_parameters()} == parameters


@pytest.mark.parametrize("rewrite", [linked, precomputed])
def test_the_original_is_untouched_unless_asked(rewrite):
    model = net()
    state = copy.deepcopy(model.state_dict())
    rewritten = rewrite(model)
    assert rewritten is not model
    assert type(model.up) is nn.ConvTranspose2d
    assert not any(hasattr(module, UNDO) for module in model.modules())
    assert not hasattr(model, "_dwr_record")
    assert same_values(model.state_dict(), state)
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in rewritten.parameters()
    }
    assert rewrite(model, inplace=True) is model
    assert [name for name, m in model.named_modules() if hasattr(m, UNDO)] == SITES


@pytest.mark.parametrize("rewrite", [linked, precomputed])
def test_flags_attributes_and_layout_are_kept(rewrite):
    model = net().to(memory_format=torch.channels_last)
    model.eval()
    model.up.train()
    model.features[0].weight.requires_grad_(False)
    model.features[0].color = model.color = ["blue"]
    rewritten = rewrite(model)
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in rewritten.named_modules()} == modes
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in rewritten.named_parameters()} == flags
    assert rewritten.color == rewritten.features[0].color == ["blue"]
    for name in SITES:
        weight = rewritten.get_submodule(name).weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert (type(weight), weight.dtype) == (nn.Parameter, torch.float64)
    back = dwr.restore(rewritten)
    for name in SITES:
        got, old = back.get_submodule(name).weight, model.get_submodule(name).weight
        assert (got.stride(), got.requires_grad) == (old.stride(), old.requires_grad)


@pytest.mark.parametrize("inplace", [True, False])
def test_hooks_run(inplace):
    ran = []
    note = lambda name: lambda *_: ran.append(name)  # noqa: E731
    model = net()
    for name in SITES:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(note(f"{name} before"))
        module.register_forward_hook(note(f"{name} after"))
        module.register_full_backward_pre_hook(note(f"{name} backward before"))
        module.register_full_backward_hook(note(f"{name} backward"))
        module.register_state_dict_post_hook(note(f"{name} saved"))
        module.register_state_dict_pre_hook(note(f"{name} saving"))
        module.register_load_state_dict_pre_hook(note(f"{name} loading"))
        module.register_load_state_dict_post_hook(note(f"{name} loaded"))

    def exercise(m):
        ran.clear()
        m.load_state_dict(m.state_dict())
        m(image()).sum().backward()
        return list(ran)

    expected = exercise(model)
    assert len(set(expected)) == 16
    assert exercise(linked(model, inplace=inplace)) == expected
    handle = model.features[0].weight.register_hook(note("gradient"))
    if inplace:  # a copy of a tensor has no hooks
        assert "gradient" in exercise(model)
    handle.remove()


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle 2": lambda m: pickle.loads(pickle.dumps(m, 2)),
    "torch.save": saved,
    "copy": copy.copy,
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("rewrite", [linked, precomputed])
def test_copies(rewrite, name):
    rewritten = rewrite(net())
    copied = COPIES[name](rewritten)
    assert [type(m) for m in copied.modules()] == [type(m) for m in rewritten.modules()]
    assert same_values(copied.state_dict(), rewritten.state_dict())
    assert dwr.record(copied) == dwr.record(rewritten)
    close(gradients(copied, image()), gradients(rewritten, image()))
    assert torch.equal(dwr.restore(copied)(image()), dwr.restore(rewritten)(image()))


def test_a_class_s_own_state_is_asked_when_copied():
    copied = copy.deepcopy(linked(Stateful(C)))
    assert (copied.scratch, type(copied)) == ("made anew", linked_class(Stateful))


class Stateful(Stock):
    scratch = "used"

    def __getstate__(self):
        return {**self.__dict__, "scratch": "made anew"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize("rewrite", [linked, precomputed])
def test_tracing(rewrite):
    model = net().eval()
    rewritten = rewrite(model)
    traced = torch.jit.trace(rewritten, image())
    other = torch.randn(3, 3, 9, 7, dtype=torch.float64)  # another size
    close({"y": traced(other)}, {"y": model(other)})
    if rewrite is linked:
        close(gradients(traced, other), gradients(model, other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Dynamo's, and Inductor's on import
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_of_forward_and_backward(backend):
    model = net()
    torch._dynamo.reset()
    compiled = torch.compile(linked(model), fullgraph=True, backend=backend)
    compiled_gradients = gradients(compiled, image())
    expected = gradients(model, image())
    close({k.removeprefix("_orig_mod."): v for k, v in compiled_gradients.items()}, expected)


def test_functional_transforms():
    model = conv(nn.Conv1d)
    rewritten = linked(model)
    x, parameters = sample(model, batch=5), dict(model.named_parameters())
    doubled = {name: 2 * p.detach() for name, p in parameters.items()}
    call, vmap, grad = torch.func.functional_call, torch.func.vmap, torch.func.grad
    stacked = {name: torch.stack([p.detach(), doubled[name]]) for name, p in parameters.items()}

    def transforms(m):
        loss = lambda p, x: call(m, p, (x,)).pow(3).sum()  # noqa: E731
        one = lambda p, x: loss(p, x[None])  # noqa: E731
        return {
            "other parameters": call(m, doubled, (x,)),
            "an ensemble": vmap(lambda p: call(m, p, (x,)))(stacked),
            "its gradients": vmap(grad(loss), (0, None))(stacked, x)["weight"],
            "gradient": grad(loss)(parameters, x)["weight"],
            "for each sample": vmap(grad(one), (None, 0))(parameters, x)["weight"],
            "through a map": grad(lambda p: vmap(lambda x: one(p, x))(x).sum())(parameters)[
                "weight"
            ],
            "second": grad(lambda p: grad(loss)(p, x)["weight"].pow(2).sum())(parameters)["bias"],
        }

    close(transforms(rewritten), transforms(model))


def test_autocast_packs_what_it_has_cast():
    model = conv(dtype=torch.float32)
    rewritten = linked(model, "dense")
    with Watch() as watch, torch.autocast("cpu", torch.bfloat16):
        y = rewritten(sample(model, dtype=torch.float32))
        y.sum().backward()
    packed = (2 * C, C, 3, 3)
    types = {dtype for _, dtype, _, shape in watch.seen if shape == packed and dtype != torch.bool}
    assert (y.dtype, types) == (torch.bfloat16, {torch.bfloat16})
    assert rewritten.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    model = net()
    rewritten = linked(model)
    ran = lambda x: checkpoint(rewritten.features[0], x, use_reentrant=reentrant)  # noqa: E731
    x = sample(model.up)
    close(  # the same module, run as it is
        step(ran, rewritten, x), step(model.features[0], model, x)
    )


def step(call, model, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    y.square().sum().backward()
    return {"y": y, "x": x.grad, "weight": model.features[0].weight.grad}


def test_averaged_models():
    model, rewritten = net(), linked(net())
    averages = [AveragedModel(m, use_buffers=True) for m in (model, rewritten)]
    for _ in range(2):
        for m, average in zip((model, rewritten), averages, strict=True):
            with torch.no_grad():
                for p in m.parameters():
                    p.mul_(1.5)
            average.update_parameters(m)
    expected, got = (average.state_dict() for average in averages)
    assert same_values(got, expected)
    close({"y": averages[1](image())}, {"y": averages[0](image())})


def trained():
    """With statistics that are not the initial ones."""
    model = net()
    for seed in range(3):
        model(3 * image(seed) + 1)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # its import
@pytest.mark.parametrize("how", ["before", "after", "fx"])
def test_folding_a_batch_norm(how):
    model = trained()
    rewritten = precomputed(model) if how != "before" else model
    if how == "fx":
        from torch.fx.experimental.optimization import fuse

        rewritten = fuse(rewritten)
    else:
        rewritten = copy.deepcopy(rewritten)
        rewritten.features[0] = fuse_conv_bn_eval(rewritten.features[0], rewritten.features[1])
        rewritten.features[1] = nn.Identity()
    if how == "before":
        rewritten = precomputed(rewritten)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in rewritten.modules())
    assert rewritten.get_submodule("features.0").groups == 1
    close({"y": rewritten(image())}, {"y": model(image())})


def test_folding_into_a_linked_convolution():
    model = trained()
    rewritten = linked(model)
    rewritten.features[0] = fuse_conv_bn_eval(rewritten.features[0], rewritten.features[1])
    rewritten.features[1] = nn.Identity()
    close({"y": rewritten(image())}, {"y": model(image())})
    close({"y": dwr.restore(rewritten)(image())}, {"y": model(image())})


# --- twice, and back


@pytest.mark.parametrize("rewrite", [linked, precomputed])
def test_a_second_rewrite_changes_nothing(rewrite):
    once = rewrite(net(), "dense")
    for again in (linked, precomputed):
        twice = again(once, "blocks:2")
        assert [(s.name, s.changed, s.reason.code, s.reason.reason) for s in dwr.record(twice)] == [
            (name, False, "already-rewritten",
             "already in the form dense; dwr.restore undoes it") for name in SITES
        ]  # fmt: skip
        assert same_values(twice.state_dict(), once.state_dict())
        assert [type(m) for m in twice.modules()] == [type(m) for m in once.modules()]
        assert torch.equal(twice(image()), once(image()))


@pytest.mark.parametrize("rewrite", [linked, precomputed])
def test_restoring_gives_every_bit_back(rewrite):
    model = net()
    with torch.no_grad():
        special = torch.tensor(
            [torch.nan, torch.inf, -torch.inf, -0.0, 5e-324], dtype=torch.float64
        )
        model.features[0].weight.view(-1)[:5] = special
    rewritten = rewrite(model)
    restored = dwr.restore(rewritten)
    assert [(s.name, s.form, s.undone, s.changed) for s in dwr.record(restored)] == [
        (site.name, "keep", site.form, True) for site in dwr.record(rewritten)
    ]
    assert [type(m) for m in restored.modules()] == [type(m) for m in model.modules()]
    assert [str(m) for m in restored.modules()] == [str(m) for m in model.modules()]
    for name, value in model.state_dict().items():
        got = restored.state_dict()[name]
        assert (got.stride(), got.numpy().tobytes()) == (value.stride(), value.numpy().tobytes())
    assert not any(hasattr(module, UNDO) for module in restored.modules())
    assert [name for name, m in rewritten.named_modules() if hasattr(m, UNDO)] == SITES  # a copy
    assert dwr.restore(rewritten, inplace=True) is rewritten
    assert only_changed(rewrite(rewritten, inplace=True)) == SITES  # and once more


def only_changed(model):
    return [site.name for site in dwr.record(model) if site.changed]


@pytest.mark.parametrize("value", [1e-30, float("nan"), float("inf")])
def test_a_weight_that_left_the_diagonal_is_not_restored(value):
    model = precomputed(net())
    with torch.no_grad():
        model.up.weight[0, 1, 0, 0] = value
    state = copy.deepcopy(model.state_dict())
    restored = dwr.restore(model)
    first, second = dwr.record(restored)
    assert (first.changed, second.changed, second.form) == (True, False, "dense")
    assert (second.reason.code, second.reason.reason) == (
        "not-diagonal",
        "its weight holds more than a diagonal now: it was changed after the rewrite",
    )
    assert torch.equal(restored.up.weight.isnan(), state["up.weight"].isnan())
    assert torch.equal(restored.up.weight.nan_to_num(), state["up.weight"].nan_to_num())
    assert restored.up.groups == 1


def test_values_on_the_diagonal_may_have_changed():
    model, expected = precomputed(net()), net()
    with torch.no_grad():
        for m in (model, expected):
            m.up.weight.mul_(3)
            m.features[0].weight.zero_()
    assert same_values(dwr.restore(model).state_dict(), expected.state_dict())


def test_a_module_that_was_wrapped_since_is_not_restored():
    model = linked(net())
    cls = type(model.up)
    model.up.__class__ = type("Wrapped", (cls,), {})  # as FSDP2 does
    restored = dwr.restore(model)
    assert (dwr.record(restored)[1].reason.code, dwr.record(restored)[1].reason.reason) == (
        "wrapped", "its class is Wrapped now: undo first what wrapped it after the rewrite",
    )  # fmt: skip
    close({"y": restored(image())}, {"y": model(image())})
