from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dwr_rewrite as dwr
from dwr_rewrite.errors import DwrError

OURS: dict[int, Any] = {
    1: dwr.nn.DepthwiseConv1d, 2: dwr.nn.DepthwiseConv2d, 3: dwr.nn.DepthwiseConv3d,
}  # fmt: skip
TORCHS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
C = 2


@pytest.fixture(autouse=True)
def aten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def pair(rank: int, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """A module of ours, and torch's with its parameters."""
    ours = OURS[rank](C, *arguments, **options)
    options.pop("groups", None)
    theirs = TORCHS[rank](C, *arguments, groups=C, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


OPTIONS: dict[str, tuple[int, tuple[Any, ...], dict[str, Any]]] = {
    "3": (2, (2, 3), {}),
    "in torch's order": (2, (4, 3, 2, 1, 2, 2, False, "zeros"), {}),
    "rectangles": (2, (2, (3, 5)), {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)}),
    "same": (2, (4, 3), {"padding": "same", "dilation": 2}),
    "valid": (1, (2, 4), {"padding": "valid", "stride": 3, "bias": False}),
    "circular": (1, (2, 3), {"padding": 2, "padding_mode": "circular"}),
    "reflect, same": (2, (2, 3), {"padding": "same", "padding_mode": "reflect"}),
    "replicate": (3, (2, 3), {"padding": (1, 0, 2), "padding_mode": "replicate", "stride": 2}),
    "3-D": (3, (4, 2), {"padding": 1, "groups": C}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_computes_what_torchs_module_does(name: str) -> None:
    rank, arguments, options = OPTIONS[name]
    if name == "in torch's order":
        ours = OURS[rank](C, *arguments)
        theirs = TORCHS[rank](C, *arguments)
        theirs.load_state_dict(ours.state_dict())
    else:
        ours, theirs = pair(rank, *arguments, **options)
    x = draw(3, C, *(7, 8, 6)[:rank])
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert str(ours) == str(theirs).replace("Conv", "DepthwiseConv", 1)
    assert isinstance(ours, TORCHS[rank])


def test_even_kernels_are_padded_more_behind() -> None:
    ours = OURS[1](C, C, 4, padding="same")
    expected = nn.functional.conv1d(
        nn.functional.pad(draw(2, C, 7), (1, 2)), ours.weight, ours.bias, groups=C
    )
    torch.testing.assert_close(ours(draw(2, C, 7)), expected)


def test_initialization_is_torchs() -> None:
    torch.manual_seed(1)
    ours = OURS[2](C, 4, 3)
    torch.manual_seed(1)
    theirs = TORCHS[2](C, 4, 3, groups=C)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_pairs_of_padding(mode: Any) -> None:
    ours = OURS[2](C, 4, 3, stride=2, padding=((1, 2), (0, 1)), padding_mode=mode)
    x = draw(2, C, 6, 8)
    padded = nn.functional.pad(x, (0, 1, 1, 2), "constant" if mode == "zeros" else mode)
    expected = nn.functional.conv2d(padded, ours.weight, ours.bias, 2, groups=C)
    torch.testing.assert_close(ours(x), expected)
    assert "padding=((1, 2), (0, 1))" in str(ours)


@pytest.mark.parametrize("stride", [1, 2])
def test_causal_outputs_see_no_later_input(stride: int) -> None:
    ours = OURS[1](C, 4, 3, stride=stride, dilation=2, causal=True)
    x = draw(1, C, 9).requires_grad_()
    y = ours(x)
    assert y.shape[-1] == -(-9 // stride)
    for t in range(y.shape[-1]):
        (gradient,) = torch.autograd.grad(y[..., t].sum(), x, retain_graph=True)
        assert not gradient[..., t * stride + 1 :].any() and gradient[..., t * stride].all()


def test_gradients_and_training() -> None:
    ours, theirs = pair(2, 4, 3, stride=2, padding=1)
    x = draw(3, C, 7, 8)
    for module in (ours, theirs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_channels_last_stays() -> None:
    ours, theirs = pair(2, 4, 3, padding=1)
    ours, theirs = (m.to(memory_format=torch.channels_last) for m in (ours, theirs))
    x = draw(2, C, 5, 6).to(memory_format=torch.channels_last)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(x), theirs(x))


def test_autocast_and_types() -> None:
    ours = OURS[1](C, C, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(draw(1, C, 5)).dtype == torch.bfloat16
    assert OURS[1](C, C, 3, dtype=torch.float64).weight.dtype == torch.float64
    assert OURS[1](C, C, 3, device="meta").weight.is_meta


def test_copies_and_pickles() -> None:
    ours = OURS[1](C, 4, 3, causal=True)
    x = draw(1, C, 5)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours) and torch.equal(other(x), ours(x))


def test_fx_traces_it_as_one_step() -> None:
    ours = OURS[2](C, 4, 3, padding="same")
    traced = torch.fx.symbolic_trace(nn.Sequential(ours, nn.ReLU()))
    assert torch.equal(traced(draw(1, C, 4, 4)), ours(draw(1, C, 4, 4)).relu())


def test_compile_takes_it_whole() -> None:
    torch._dynamo.reset()
    ours, theirs = pair(1, 4, 3, padding=1)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for x in (draw(2, C, 7), draw(C, 6)):
        torch.testing.assert_close(compiled(x), theirs(x))


def test_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ours, theirs = pair(1, 4, 3, padding=1)
    x = draw(2, C, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_from_conv_shares_the_parameters() -> None:
    conv = nn.Conv2d(C, 4, 3, 2, "valid", groups=C, bias=False).eval()
    ours = OURS[2].from_conv(conv)
    assert ours.weight is conv.weight and ours.bias is None and not ours.training
    torch.testing.assert_close(ours(draw(1, C, 5, 6)), conv(draw(1, C, 5, 6)))
    biased = nn.Conv1d(C, C, 3, groups=C)
    assert OURS[1].from_conv(biased).bias is biased.bias


class Own(nn.Conv2d):
    pass


def normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(C, C, 3, groups=C))


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (lambda: nn.Conv1d(C, C, 3, groups=C), "Conv1d found; an instance of Conv2d itself"),
        (lambda: Own(C, C, 3, groups=C), "Own found"),
        (lambda: nn.ConvTranspose2d(C, C, 3, groups=C), "ConvTranspose2d found"),
        (lambda: nn.Conv2d(4, 4, 3, groups=2), "groups=2 with 4 input channels"),
        (normed, "ParametrizedConv2d found"),
        (lambda: nn.LazyConv2d(C, 3, groups=C), "LazyConv2d found"),
    ],
)
def test_from_conv_refuses(conv: Any, message: str) -> None:
    with pytest.raises(DwrError, match=message):
        OURS[2].from_conv(conv())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # the older of torch's two
def test_from_conv_refuses_a_weight_that_a_hook_computes() -> None:
    conv = nn.utils.weight_norm(nn.Conv2d(C, C, 3, groups=C))
    with pytest.raises(DwrError, match="the weight is computed"):
        OURS[2].from_conv(conv)


@pytest.mark.parametrize(
    ("rank", "arguments", "options", "message"),
    [
        (2, (4, 4, 3), {"groups": 2}, "groups=2 with 4 input channels"),
        (2, (4, 6, 3), {}, "6 output channels are no multiple of 4"),
        (2, (0, 4, 3), {}, "4 output channels are no multiple of 0"),
        (2, (4, 4, 3), {"padding": ((1, 2),)}, r"padding=\(\(1, 2\),\); 2 pairs"),
        (1, (4, 4, 3), {"padding": ((1, 2, 3),)}, "1 pairs"),
        (2, (4, 4, 3), {"padding": (1, (1, 2))}, "2 pairs"),
        (1, (4, 4, 3), {"padding": 1, "causal": True}, r"causal=True pads by itself; padding=\(1,"),
    ],
)
def test_bad_options_are_refused(
    rank: int, arguments: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DwrError, match=message):
        OURS[rank](*arguments, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 5, 5), "the input has 3 channels; 2 expected"),
        ((1, C, 2, 5), "is the kernel longer than the padded input"),
        ((1, C, 5), "the input has 1 channels"),
    ],
)
def test_bad_inputs_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DwrError, match=message):
        OURS[2](C, C, 3)(draw(*shape))


def test_it_is_found_without_loading_torch_before() -> None:
    code = (
        "import sys, dwr_rewrite as dwr; assert 'torch' not in sys.modules; "
        "print(dwr.nn.DepthwiseConv2d.__name__, dwr.nn is sys.modules['dwr_rewrite.nn'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["DepthwiseConv2d", "True"], done.stderr
