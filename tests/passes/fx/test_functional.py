"""The differentiable depthwise convolution against torch's own, in every form and direction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dwr_rewrite.passes.fx import functional
from dwr_rewrite.passes.fx.functional import convolve, pack, unpack
from dwr_rewrite.passes.fx.geometry import Forms, Geometry

CONV = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Case:
    geometry: Geometry
    lengths: tuple[int, ...]
    bias: bool = True
    batch: int | None = 2

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        g = self.geometry
        outputs = g.channels * g.multiplier
        weight = (g.channels, g.multiplier) if g.transposed else (outputs, 1)
        batch = () if self.batch is None else (self.batch,)
        x = (*batch, g.channels, *self.lengths)
        return [x, (*weight, *g.kernel), *([(outputs,)] if self.bias else [])]


def geometry(channels, kernel, multiplier=1, stride=1, padding=0, dilation=1, output_padding=None):
    rank = len(kernel)
    axes = [v if isinstance(v, tuple) else (v,) * rank for v in (stride, padding, dilation)]
    extra = () if output_padding is None else output_padding
    return Geometry(channels, kernel, multiplier, *axes, output_padding is not None, extra)


CASES = {
    "1d": Case(geometry(4, (3,), padding=1), (5,)),
    "1d-even-dilated": Case(geometry(4, (4,), dilation=2, padding=3), (5,), bias=False),
    "1d-no-batch": Case(geometry(4, (3,), stride=2), (7,), batch=None),
    "2d": Case(geometry(4, (3, 3), padding=1), (4, 3)),
    "2d-stride": Case(geometry(4, (3, 2), stride=(2, 1), padding=(1, 0)), (5, 3)),
    "2d-dilated": Case(geometry(4, (2, 3), dilation=(2, 1)), (4, 4), bias=False),
    "2d-multiplier": Case(geometry(4, (2, 2), multiplier=2, stride=2), (4, 5)),
    "2d-no-batch": Case(geometry(4, (3, 3), multiplier=2, padding=1), (3, 3), batch=None),
    "3d": Case(geometry(4, (2, 1, 3), stride=(1, 2, 1), padding=(0, 0, 1)), (2, 3, 3)),
    "3d-multiplier": Case(geometry(4, (2, 2, 1), multiplier=2), (2, 3, 2), bias=False),
    "transposed-1d": Case(geometry(4, (3,), stride=2, padding=1, output_padding=(1,)), (3,)),
    "transposed-2d": Case(
        geometry(4, (2, 3), 2, stride=(2, 3), dilation=(2, 1), output_padding=(1, 2)), (2, 2)
    ),
    "transposed-no-batch": Case(geometry(4, (3,), 2, output_padding=(0,)), (3,), batch=None),
    "transposed-3d": Case(
        geometry(4, (2, 1, 2), stride=(2, 1, 1), output_padding=(0, 0, 0)), (2, 2, 2), bias=False
    ),
}  # fmt: skip

WIDTHS = (Forms(4, 4, 4), Forms(2, 1, 4), Forms(1, 4, 2), Forms(4, 2, 1))
MIXED = Forms(4, 1, 2)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tensors(case, dtype=torch.float64, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(s, generator=generator, dtype=torch.float64) for s in case.shapes]
    return [t.to(dtype).requires_grad_(requires_grad) for t in found]


def native(case, x, weight, bias=None):
    """torch's own grouped convolution."""
    g = case.geometry
    if g.transposed:
        call = TRANSPOSED[len(g.kernel) - 1]
        return call(x, weight, bias, g.stride, g.padding, g.output_padding, g.channels, g.dilation)
    call = CONV[len(g.kernel) - 1]
    return call(x, weight, bias, g.stride, g.padding, g.dilation, g.channels)


def form(case, widths):
    return lambda x, w, b=None: convolve(x, w, b, case.geometry, widths)


def step(call, inputs, upstream):
    """Output and gradients for one upstream gradient."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    y = call(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, upstream.to(y.dtype))]


def exact(case, inputs, upstream):
    """Output and gradients in float64, and the sum of the magnitudes of their products."""
    wide = [t.detach().double() for t in inputs]
    call = lambda *args: native(case, *args)  # noqa: E731
    magnitudes = step(call, [t.abs() for t in wide], upstream.double().abs())
    return step(call, wide, upstream.double()), magnitudes


def gamma(n: int, dtype: torch.dtype) -> float:
    """n rounding errors of half an ulp each: n u / (1 - n u)."""
    nu = n * torch.finfo(dtype).eps / 2
    assert nu < 1
    return nu / (1 - nu)


def errors(case, inputs, got, upstream):
    """Of the output and of each gradient: the largest error as a share of its bound.

    A sum of n products is off by gamma_(n + 1) of the sum of the magnitudes at most, in any order
    (Higham 2002, 3.1; one more for the bias or a change of type), where u is that of the type that
    holds the partial sums at worst. Added exact zeros change nothing.
    """
    expected, magnitudes = exact(case, inputs, upstream)
    taps = prod(case.geometry.kernel)
    positions = upstream.numel() // upstream.shape[-len(case.lengths) - 1]
    terms = [taps, taps * case.geometry.multiplier, positions, positions]
    found = []
    for g, e, m, n in zip(got, expected, magnitudes, terms, strict=False):
        assert g.shape == e.shape
        info = torch.finfo(g.dtype)
        bound = gamma(n + 1, g.dtype) * m + n * info.smallest_normal * info.eps
        found.append(((g.double() - e).abs() / bound).max().item())
    return found


def upstream_of(case, inputs):
    shape = native(case, *(t.double() for t in inputs)).shape
    generator = torch.Generator().manual_seed(9)
    return torch.randn(shape, generator=generator).to(inputs[0].dtype)


@pytest.mark.parametrize("name", CASES)
def test_both_derivatives_are_those_of_the_function(name):
    case = CASES[name]
    inputs = tensors(case)
    for widths in WIDTHS:
        call = form(case, widths)
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_every_entry_of_a_second_derivative():
    case = CASES["2d-multiplier"]
    assert torch.autograd.gradgradcheck(form(case, MIXED), tensors(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_the_depthwise_convolution(name, dtype):
    case = CASES[name]
    inputs = tensors(case, dtype)
    upstream = upstream_of(case, inputs)
    for widths in (Forms(), *WIDTHS):
        got = step(form(case, widths), inputs, upstream)
        assert {t.dtype for t in got} == {dtype}
        assert max(errors(case, inputs, got, upstream)) <= 1, widths


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("name", ["1d", "2d-multiplier", "transposed-2d"])
def test_the_check_fails_on_the_wrong_channel_s_output_or_gradient(name, which):
    case = CASES[name]
    inputs = tensors(case, torch.float32)
    upstream = upstream_of(case, inputs)
    got = step(form(case, MIXED), inputs, upstream)
    got[which] = got[which].roll(1, 0 if which == 2 else 1)  # of the weight: its rows
    found = errors(case, inputs, got, upstream)
    assert [share > 1 for share in found] == [i == which for i in range(len(found))]


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 3))
    axes = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    stride, transposed = axes(1, 3), draw(st.booleans())
    extra = tuple(draw(st.integers(0, s - 1)) for s in stride) if transposed else None
    g = geometry(
        draw(st.sampled_from([1, 2, 3, 4, 6])), axes(1, 3), draw(st.integers(1, 3)), stride,
        axes(0, 1), axes(1, 2), extra,
    )  # fmt: skip
    case = Case(g, axes(5, 6), draw(st.booleans()), draw(st.sampled_from([None, 1, 2])))
    divisors = [w for w in range(1, g.channels + 1) if g.channels % w == 0]
    return case, Forms(*(draw(st.sampled_from(divisors)) for _ in range(3)))


@settings(max_examples=60, deadline=None)
@given(drawn=cases(), seed=st.integers(0, 99))
def test_any_geometry_and_any_widths(drawn, seed):
    case, widths = drawn
    inputs = tensors(case, torch.float32, seed)
    upstream = upstream_of(case, inputs)
    got = step(form(case, widths), inputs, upstream)
    assert max(errors(case, inputs, got, upstream)) <= 1


@pytest.mark.parametrize("name", CASES)
def test_packing_is_that_of_the_recipe_and_unpacking_undoes_it(name):
    case = CASES[name]
    weight = tensors(case, requires_grad=False)[1]
    for width in (1, 2, 4):
        packing = case.geometry.packing(width)
        packed = pack(weight, packing)
        assert (packed.numpy() == packing.pack(weight.numpy())).all()
        assert torch.equal(unpack(packed, packing), weight)
        assert unpack(packed, packing).stride() == weight.stride()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["1d", "2d", "2d-multiplier", "3d", "transposed-2d"])
def test_a_weight_that_is_not_finite_spoils_its_own_channel_only(name, bad):
    case = CASES[name]
    inputs = tensors(case, requires_grad=False)
    clean = step(form(case, Forms(4, 4, 4)), inputs, upstream := upstream_of(case, inputs))
    inputs[1][0] = bad  # the first filter, or the first channel of a transposed one
    x, weight = inputs[:2]
    got = step(form(case, Forms(4, 4, 4)), inputs, upstream)
    outputs = slice(case.geometry.multiplier if weight.shape[1] > 1 else 1, None)
    assert torch.equal(got[0][:, outputs], clean[0][:, outputs])
    assert not got[0][:, 0].isfinite().all()
    assert torch.equal(got[1][:, 1:], clean[1][:, 1:])
    assert not got[1][:, 0].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(got[2:], clean[2:], strict=True))
    assert x.isfinite().all()


def test_the_product_with_an_identity_would_spoil_the_others():
    packing = CASES["1d"].geometry.packing(4)
    weight = torch.full(packing.compact, torch.inf)
    product = (weight.reshape(packing.split) * torch.eye(4).reshape(packing.eye)).isnan().sum()
    assert (product > 0, pack(weight, packing).isnan().sum() > 0) == (True, False)


def test_nothing_off_the_diagonal_learns():
    case = CASES["2d-multiplier"]
    packing = case.geometry.packing(4)
    x, weight, bias = tensors(case)
    optimizer = torch.optim.SGD([weight, bias], 0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        form(case, Forms(4, 4, 4))(x.detach(), weight, bias).pow(2).sum().backward()
        optimizer.step()
    assert weight.shape == packing.compact
    packed = pack(weight.detach(), packing)
    assert packed.count_nonzero() == weight.numel()
    stored = pack(weight.detach(), packing).requires_grad_()  # a twin: the packed one trained
    F.conv2d(x, stored, None, case.geometry.stride).pow(2).sum().backward()
    assert stored.grad is not None
    assert stored.grad.count_nonzero() > weight.numel()


LAYOUTS = {
    "2d": (CASES["2d"], torch.channels_last),
    "2d-multiplier": (CASES["2d-multiplier"], torch.channels_last),
    "transposed-2d": (CASES["transposed-2d"], torch.channels_last),
    "3d": (CASES["3d"], torch.channels_last_3d),
    "3d-multiplier": (CASES["3d-multiplier"], torch.channels_last_3d),
    "transposed-3d": (CASES["transposed-3d"], torch.channels_last_3d),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_kept(name):
    case, memory_format = LAYOUTS[name]
    x, weight, *_ = tensors(case, requires_grad=False)
    last = weight.to(memory_format=memory_format)
    for width in (2, 4):
        packing = case.geometry.packing(width)
        assert pack(weight, packing).is_contiguous()
        packed = pack(last, packing)
        assert packed.is_contiguous(memory_format=memory_format)
        assert not packed.is_contiguous()
        assert unpack(packed, packing).stride() == last.stride()
        arguments = (x.to(memory_format=memory_format), last)
        if native(case, *arguments).is_contiguous(memory_format=memory_format):  # not all kernels
            y = convolve(*arguments, None, case.geometry, MIXED)
            assert y.is_contiguous(memory_format=memory_format)
        parameter = last.clone().requires_grad_()
        convolve(x, parameter, None, case.geometry, MIXED).sum().backward()
        assert parameter.grad is not None
        assert parameter.grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_changes_no_value(name):
    case, memory_format = LAYOUTS[name]
    inputs = [t.detach().to(memory_format=memory_format) if t.dim() > 3 else t.detach()
              for t in tensors(case, torch.float32)]  # fmt: skip
    upstream = upstream_of(case, inputs)
    got = step(form(case, MIXED), inputs, upstream.to(memory_format=memory_format))
    assert max(errors(case, inputs, got, upstream)) <= 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.batch])
def test_an_empty_batch(name):
    case = replace(CASES[name], batch=0)
    inputs = tensors(case)
    y = form(case, MIXED)(*inputs)
    assert y.shape == native(case, *inputs).shape
    y.sum().backward()
    assert [t.grad.count_nonzero().item() for t in inputs] == [0] * len(inputs)


@pytest.mark.parametrize(
    "wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)]
)
def test_only_the_gradients_that_are_wanted(wanted):
    case = CASES["2d-multiplier"]
    inputs = [t.requires_grad_(bool(w)) for t, w in
              zip(tensors(case, requires_grad=False), wanted, strict=True)]  # fmt: skip
    form(case, MIXED)(*inputs).pow(2).sum().backward()
    expected = [t.detach().clone().requires_grad_() for t in inputs]
    native(case, *expected).pow(2).sum().backward()
    for got, e in zip(inputs, expected, strict=True):
        assert (got.grad is not None) == got.requires_grad
        if got.grad is not None:
            torch.testing.assert_close(got.grad, e.grad)


class Watch(TorchDispatchMode):
    """Notes every tensor that an operator gives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, torch.Tensor):
                self.seen.append((func, t.dtype, t.numel(), tuple(t.shape)))
        return result

    def calls(self, operator):
        return sum(func.overloadpacket is operator for func, *_ in self.seen)


def test_no_gradient_that_nobody_wants_is_computed():
    case = CASES["2d"]
    for wanted, calls in (((1, 0), 1), ((0, 1), 1), ((1, 1), 2)):
        x, weight = (t.requires_grad_(bool(w)) for t, w in
                     zip(tensors(case, requires_grad=False)[:2], wanted, strict=True))  # fmt: skip
        y = convolve(x, weight, None, case.geometry, MIXED)
        with Watch() as watch:
            y.sum().backward()
        assert watch.calls(torch.ops.aten.convolution_backward) == calls


def test_each_direction_packs_to_its_own_width():
    case = Case(geometry(16, (3, 3)), (4, 4), bias=False)
    for widths in (Forms(16, 1, 2), Forms(2, 16, 1), Forms(1, 2, 16)):
        x, weight = tensors(case, requires_grad=False)
        with Watch() as forward:
            convolve(x, weight, None, case.geometry, widths)
        watches = [forward]
        for wanted in (x, weight):
            y = convolve(*(t.detach().requires_grad_(t is wanted) for t in (x, weight)), None,
                         case.geometry, widths)  # fmt: skip
            with Watch() as backward:
                y.sum().backward()
            watches.append(backward)
        for watch, width in zip(watches, widths, strict=True):
            found = {shape[1] for *_, shape in watch.seen if shape[2:] == (3, 3)
                     and shape[0] == 16 and len(shape) == 4}  # fmt: skip
            assert max(found, default=1) == width


def test_autocast_casts_the_compact_weight(monkeypatch):
    case = CASES["2d-multiplier"]
    inputs = tensors(case, torch.float32)
    packed = case.geometry.packing(4).packed

    def packed_types():
        with Watch() as watch, torch.autocast("cpu", torch.bfloat16):
            convolve(*inputs, case.geometry, Forms(4, 4, 4)).sum().backward()
        return {
            dtype for _, dtype, _, shape in watch.seen if shape == packed and dtype.itemsize > 1
        }

    assert packed_types() == {torch.bfloat16}
    monkeypatch.setattr(functional, "_autocast", lambda *args: args)
    assert torch.float32 in packed_types()  # the twin: cast after packing


def test_autocast_gives_what_the_native_convolution_gives():
    case = CASES["2d-multiplier"]
    inputs = tensors(case, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = form(case, MIXED)(*inputs)
        assert y.dtype == native(case, *inputs).dtype == torch.bfloat16
        assert form(case, MIXED)(*(t.double() for t in inputs)).dtype == torch.float64
    gradients = torch.autograd.grad(y, inputs, upstream := torch.randn_like(y))
    assert {t.dtype for t in gradients} == {torch.float32}
    rounded = [t.detach().bfloat16() for t in inputs]  # what was convolved
    got = [y.detach(), *(t.bfloat16() for t in gradients)]
    assert max(errors(case, rounded, got, upstream)) <= 1


STRANGE = {
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "flipped twice": lambda t: t.flip(-1).flip(-1),
    "offset": lambda t: torch.cat([t, t])[t.shape[0] :],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("name", STRANGE)
def test_inputs_that_are_not_contiguous(name):
    case = CASES["2d-multiplier"]
    inputs = [STRANGE[name](t.detach()) if t.dim() > 1 else t.detach()
              for t in tensors(case, torch.float32)]  # fmt: skip
    upstream = STRANGE[name](upstream_of(case, inputs))
    got = step_as_is(form(case, MIXED), inputs, upstream)
    assert max(errors(case, inputs, got, upstream)) <= 1


def step_as_is(call, inputs, upstream):
    """:func:`step` without the clones, which would make the inputs contiguous."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = call(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, upstream)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own use
def test_forward_mode_and_second_order_transforms():
    case = CASES["1d"]
    x, weight, bias = tensors(case)  # they require gradients: forward mode has to see that
    tangents = [torch.randn_like(t) for t in (x, weight, bias)]
    ours, theirs = form(case, MIXED), lambda *args: native(case, *args)
    for call in (ours, torch.func.vmap(ours)):  # a mapped input has no batch of its own
        arguments = (x, weight, bias)
        if call is not ours:
            arguments = tuple(torch.stack([t, 2 * t]) for t in arguments)
            expected = torch.func.vmap(theirs)
            moved = tuple(torch.stack([t, t]) for t in tangents)
        else:
            expected, moved = theirs, tuple(tangents)
        got = torch.func.jvp(call, arguments, moved)
        torch.testing.assert_close(got, torch.func.jvp(expected, arguments, moved))
    cube = lambda call: torch.func.hessian(lambda w: call(x, w, bias).pow(3).sum())(weight)  # noqa: E731
    torch.testing.assert_close(cube(ours), cube(theirs))


def test_vmap_over_weights_in_every_layout():
    for case, memory_format in LAYOUTS.values():
        x, weight, *_ = tensors(case)
        weights = torch.stack([weight, weight.detach().flip(0)])
        for w in (weights, torch.stack([t.to(memory_format=memory_format) for t in weights])):
            over = lambda call: torch.func.vmap(lambda w: call(x, w))(w)  # noqa: E731, B023
            torch.testing.assert_close(over(form(case, MIXED)), over(lambda *a: native(case, *a)))  # noqa: B023
