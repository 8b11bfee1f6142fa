from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.gradcheck import GradcheckError
from torch.library import opcheck

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import gradients, ops
from dwr_rewrite.kernels.problem import ACTIVATIONS
from tests.kernels.calls import (
    LAST,
    MAPS,
    arguments,
    conv,
    draw,
    plain,
    tensors,
    wanting,
    weight_arguments,
)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("name", MAPS)
def test_opcheck(name: str) -> None:
    opcheck(ops.depthwise, arguments(name, "silu", epilogue=name != "transposed"))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("name", ["convolution", "transposed"])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck_of_the_gradient_of_the_weight(name: str, bias: bool) -> None:
    opcheck(ops.depthwise_weight, weight_arguments(name, bias))


@pytest.mark.usefixtures("aten")
def test_opcheck_of_formats_and_empty_batches() -> None:
    x, *rest = arguments("convolution")
    opcheck(ops.depthwise, (x.detach().to(memory_format=LAST), *rest))
    opcheck(ops.depthwise, (x.detach()[:0].requires_grad_(), *rest))


def test_opcheck_with_the_kernels() -> None:
    x, weight = wanting(draw(1, 2, 4, dtype=torch.float32), draw(2, 1, 2, dtype=torch.float32))
    rest = ([1], [0], [1], 2, False)
    opcheck(ops.depthwise, (x, weight, None, None, [3], *rest, False, "none", ""))
    gradient = draw(1, 2, 3, dtype=torch.float32)
    opcheck(ops.depthwise_weight, (x, gradient, [2, 1, 2], *rest, True, ""))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_gradients(name: str, activation: str) -> None:
    inputs = arguments(name, activation)

    def call(*given: Tensor) -> Tensor:
        return ops.depthwise(*given, *inputs[4:])

    assert torch.autograd.gradcheck(call, inputs[:4])
    assert torch.autograd.gradgradcheck(call, inputs[:4])


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("name", ["convolution", "transposed"])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_gradients_of_the_weight(name: str, bias: bool) -> None:
    inputs = weight_arguments(name, bias)

    def call(*given: Tensor) -> tuple[Tensor, Tensor]:
        return ops.depthwise_weight(*given, *inputs[2:])

    assert torch.autograd.gradcheck(call, inputs[:2])
    assert torch.autograd.gradgradcheck(call, inputs[:2])


@pytest.mark.parametrize("name", MAPS)
def test_gradients_by_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and second ones, which gradcheck found right by aten."""
    inputs = arguments(name, "silu", epilogue=name == "convolution")
    wanted = [x for x in inputs[:4] if x is not None]
    found: dict[str, list[Tensor]] = {}
    for interpret in "01":
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        y = ops.depthwise(*inputs)
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        found[interpret] = [y, *first]
        if y.dim() == 3:  # interpreted kernels are slow
            squares = sum(gradient.square().sum() for gradient in first)
            found[interpret] += torch.autograd.grad(squares, wanted)
    torch.testing.assert_close(found["1"], found["0"])


def test_gradcheck_of_the_kernels() -> None:
    pair = wanting(draw(1, 2, 3), draw(2, 1, 2, seed=1))
    steps = ([2], [1], [0], [1], 2, False, False, "none", "")
    assert torch.autograd.gradcheck(
        lambda x, weight: ops.depthwise(x, weight, None, None, *steps), pair, fast_mode=True
    )


@pytest.mark.usefixtures("aten")
def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arguments("convolution")
    monkeypatch.setattr(gradients, "_times", lambda weight, factor: weight)  # forgets the scale
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(lambda *given: ops.depthwise(*given, *inputs[4:]), inputs[:4])


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize(
    ("wanted", "activation", "kept"),
    [
        ((0,), "none", 2),  # weight, scale
        ((1,), "none", 2),  # x, scale
        ((2,), "none", 2),  # x, weight
        ((3,), "none", 0),
        ((0,), "relu", 3),  # and the output
        ((3,), "relu", 1),
        ((3,), "silu", 4),  # all that the pre-activation is made of
    ],
)
def test_only_what_is_needed_is_kept(wanted: tuple[int, ...], activation: str, kept: int) -> None:
    inputs = arguments("convolution", activation)
    given = [x if i in wanted else x.detach() for i, x in enumerate(inputs[:4])]
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda _: None):
        ops.depthwise(*given, *inputs[4:])
    assert len(packed) == kept


@pytest.mark.usefixtures("aten")
def test_a_gradient_that_is_not_wanted_is_none() -> None:
    x, weight, bias = wanting(*tensors())
    y = conv(x.detach(), weight, bias)
    assert torch.autograd.grad(y.sum(), [weight, bias])[0] is not None
    conv(x, weight.detach(), None).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_formats_are_kept(path: str) -> None:
    x, weight, bias = tensors(torch.float32)
    slices = draw(2, 6, 8, 5, dtype=torch.float32).to(memory_format=LAST)[:, 2:4]
    for given in (x, x.to(memory_format=LAST), x.transpose(2, 3), x[:, :, 1:, ::2], slices):
        y = conv(given, weight, bias)
        last = given.stride(1) == 1
        assert y.is_contiguous(memory_format=LAST if last else torch.contiguous_format)
        torch.testing.assert_close(y, plain(given, weight, bias))
    line = draw(2, 7, 3, dtype=torch.float32).transpose(1, 2)
    y = conv(line, draw(3, 1, 3, seed=1, dtype=torch.float32), stride=1)
    assert y.transpose(1, 2).is_contiguous()  # as the input is; torch has no name for it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype, path: str) -> None:
    x, weight, bias = wanting(*tensors(dtype))
    y = conv(x, weight, bias)
    expected = plain(x.double(), weight.double(), bias.double())
    spacing = torch.finfo(dtype).eps
    assert y.dtype == dtype
    # 10 products below 10 in magnitude, summed wider than 16 bits; one rounding of the result
    torch.testing.assert_close(y.double(), expected, rtol=spacing, atol=100 * 2**-23)
    found = torch.autograd.grad(y.sum(), [x, weight, bias])
    for gradient, other in zip(found, torch.autograd.grad(expected.sum(), [x, weight, bias]),
                               strict=True):  # fmt: skip
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, other, rtol=2 * spacing, atol=200 * 2**-23)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "integers": ({"x": torch.ones(1, 2, 4, 4, dtype=torch.int32)}, "the input is torch.int32"),
    "types": ({"weight": torch.ones(4, 1, 3, 3).half()}, "weight is torch.float16 and the input"),
    "devices": ({"weight": torch.ones(4, 1, 3, 3, device="meta")}, "weight is on meta"),
    "no batch": ({"x": torch.ones(2, 4)}, r"shape \[2, 4\]: \[N, C, 1 to 3 spatial axes\]"),
    "channels": ({"x": torch.ones(1, 3, 4, 4)}, "has 3 channels; 2 expected with groups=2"),
    "groups": ({"groups": 3}, r"shape \[4, 1, 3, 3\] with groups=3"),
    "no groups": ({"groups": 0}, "groups=0"),
    "not depthwise": ({"weight": torch.ones(4, 2, 3, 3)}, r"\[C\*m, 1, k...\] or \[C, m, k...\]"),
    "empty weight": ({"weight": torch.ones(4, 1, 0, 3)}, r"shape \[4, 1, 0, 3\]"),
    "axes": ({"stride": [1]}, r"stride \[1\] has 1 entries; 2 expected"),
    "stride": ({"stride": [0, 1]}, r"stride \[0, 1\] must be at least 1"),
    "dilation": ({"dilation": [1, -1]}, r"dilation \[1, -1\] must be at least 1"),
    "size": ({"size": [0, 4]}, r"output size \[0, 4\]: every spatial length"),
    "empty input": ({"x": torch.ones(1, 2, 0, 4)}, r"input \[1, 2, 0, 4\]"),
    "activation": ({"activation": "selu"}, "activation 'selu' is none of none, relu"),
    "bias": ({"bias": torch.ones(2)}, r"the bias has shape \[2\]; \[4\] expected"),
    "scale": ({"scale": torch.ones(4, 1)}, r"the scale has shape \[4, 1\]"),
    "integer scale": ({"scale": torch.ones(4).int()}, "the scale is torch.int32 on cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("traced", [False, True])
def test_bad_arguments_are_refused(case: str, traced: bool, path: str) -> None:
    changes, message = REFUSED[case]
    good = {
        "x": torch.ones(1, 2, 4, 4), "weight": torch.ones(4, 1, 3, 3), "scale": None, "bias": None,
        "size": [4, 4], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 2,
        "adjoint": False, "reduce": False, "activation": "none", "tile": "",
    }  # fmt: skip
    given = list((good | changes).values())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if traced:
        given = [mode.from_tensor(g) if isinstance(g, Tensor) else g for g in given]
    with mode if traced else nullcontext(), pytest.raises(DwrError, match=message):
        ops.depthwise(*given)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 3, 2), r"gradient of shape \[2, 3, 3, 2\]; \[2, 4, 2 spatial axes\] expected"),
        ((1, 4, 3, 2), r"gradient of shape \[1, 4, 3, 2\]"),
        ((2, 4, 3), "size .3. has 1 entries"),
    ],
)
def test_a_gradient_of_another_output_is_refused(shape: tuple[int, ...], message: str) -> None:
    x, _, *rest = weight_arguments("convolution", True)
    with pytest.raises(DwrError, match=message):
        ops.depthwise_weight(x, draw(*shape), *rest)


def test_a_tile_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, weight, bias = tensors(torch.float32)
    y = conv(x, weight, bias, tile="fma.c1.p16.d1.r2.v1.w1.s1")
    torch.testing.assert_close(y, plain(x, weight, bias))
    with pytest.raises(DwrError, match="tile 'wide'"):
        conv(x, weight, bias, tile="wide")
