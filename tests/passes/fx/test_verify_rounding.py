"""The bound on every operator's rounding error, held against what float32 and 16 bits really do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dwr_rewrite.equivalence.tolerance import TF32, TRUSTED, Rounding, movement
from dwr_rewrite.passes.fx.tune.flags import flag
from dwr_rewrite.passes.fx.verify.bounds import sums
from dwr_rewrite.passes.fx.verify.calling import to_numpy
from dwr_rewrite.passes.fx.verify.float64 import float64
from dwr_rewrite.passes.fx.verify.rounding import RoundingErrors
from dwr_rewrite.passes.fx.verify.subject import rounding_of

aten = torch.ops.aten

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CLASSES = {
    (rank, transposed): getattr(nn, f"Conv{'Transpose' * transposed}{rank}d")
    for rank in (1, 2, 3)
    for transposed in (False, True)
}


@st.composite
def convolutions(draw):
    """A convolution of any rank, kind and grouping, and the shape of an input that it takes."""
    rank, transposed = draw(st.sampled_from([1, 2, 3])), draw(st.booleans())
    groups, width = draw(st.sampled_from([(1, 3), (4, 1), (2, 3), (1, 40)]))
    kernel = draw(st.integers(1, 4))
    options = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, 1)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    outputs = groups * draw(st.integers(1, 3))
    module = CLASSES[rank, transposed](groups * width, outputs, kernel, **options)
    return module, (draw(st.integers(1, 2)), groups * width, *(8, 9, 7)[:rank])


def double(module, x, rounding=None, seed=0, backward=True):
    """Output and gradients in float64, moved by rounding errors where asked."""
    wide = type(module)(
        module.in_channels, module.out_channels, module.kernel_size, module.stride,
        module.padding, dilation=module.dilation, groups=module.groups,
        bias=module.bias is not None,
    ).double()  # fmt: skip
    wide.load_state_dict(module.state_dict())
    errors = RoundingErrors(rounding, np.random.default_rng(seed)) if rounding else None
    return run(wide, x.double(), float64(errors), errors, backward)


def run(module, x, mode, errors=None, backward=True):
    x = x.detach().clone().requires_grad_()
    with mode:
        if errors is not None:
            errors.reach([x, *module.parameters()])
        y = module(x)
        if backward:
            y.backward(torch.ones_like(y))
    found = [y.detach(), *([x.grad, *(p.grad for p in module.parameters())] if backward else [])]
    return [to_numpy(t).astype(np.float64) for t in found]


def ratios(module, x, rounding, backward=True):
    """Real error of the output and of each gradient, in movements."""
    real = run(module, x, torch.enable_grad(), backward=backward)
    truth = double(module, x, backward=backward)
    moved = [double(module, x, rounding, seed, backward) for seed in (1, 2)]
    return [
        float(np.abs(error - exact).max()) / movement(exact, samples)
        for error, exact, *samples in zip(real, truth, *moved, strict=True)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=convolutions(), seed=st.integers(0, 1000), scale=st.sampled_from([1.0, 1e-3, 30.0]))
def test_no_convolution_errs_by_more_than_eight_movements(dtype, drawn, seed, scale):
    """The factor up to which the yardstick is trusted; outputs and all gradients."""
    module, shape = drawn
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(DTYPES[dtype])
    x = (torch.randn(shape, generator=generator) * scale).to(DTYPES[dtype])
    assert max(ratios(module, x, Rounding.of([dtype]))) <= TRUSTED


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_rounding_of_a_finer_type_would_not_explain_it(dtype):
    """So the test above fails where the bound is that of another type."""
    module = nn.Conv2d(4, 4, 3, groups=4).to(DTYPES[dtype])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    assert max(ratios(module, x, Rounding.of(["float32"]))) > TRUSTED


def products(func, *operands):
    """How many products each result adds up, and how many the bound counts, with ones for all."""
    result = func(*operands)
    results = result if isinstance(result, tuple) else (result,)
    counted = sums(func.overloadpacket.__name__, operands, Rounding())
    told = [(y, terms) for y, (terms, _) in zip(results, counted, strict=True) if y is not None]
    return [int(y.max()) for y, _ in told], [terms for _, terms in told]


@settings(deadline=None, max_examples=50)
@given(drawn=convolutions())
def test_the_products_of_a_convolution_are_counted(drawn):
    """At most; exactly where no padding and no stride takes some away from every sum."""
    module, shape = drawn
    weight, rank = torch.ones_like(module.weight), len(shape) - 2
    bias = None if module.bias is None else torch.ones_like(module.bias)
    extra = (0,) * rank
    rest = (module.stride, module.padding, module.dilation, module.transposed, extra, module.groups)
    x = torch.ones(shape)
    (real,), (counted,) = products(aten.convolution.default, x, weight, bias, *rest)
    plain = set(module.stride) == {1} and set(module.padding) == {0}
    assert real == counted if plain else real <= counted
    y = torch.ones_like(module(x))
    wanted = [True, True, bias is not None]
    sizes = None if bias is None else [len(bias)]
    real, counted = products(aten.convolution_backward.default, y, x, weight, sizes, *rest, wanted)
    assert all(map(int.__le__, real, counted))
    assert real[1:] == counted[1:] or not plain  # no element of a short input may meet every tap


@pytest.mark.parametrize(
    ("func", "operands"),
    [
        (aten.mm.default, [(3, 5), (5, 2)]),
        (aten.bmm.default, [(2, 3, 5), (2, 5, 2)]),
        (aten.addmm.default, [(2,), (3, 5), (5, 2)]),
        (aten.baddbmm.default, [(2, 3, 2), (2, 3, 5), (2, 5, 2)]),
        (aten.mv.default, [(3, 5), (5,)]),
        (aten.addmv.default, [(3,), (3, 5), (5,)]),
        (aten.dot.default, [(5,), (5,)]),
        (aten.sum.default, [(3, 5)]),
        (aten.sum.default, [()]),
    ],
)
def test_the_products_of_other_sums_are_counted(func, operands):
    real, counted = products(func, *(torch.ones(shape) for shape in operands))
    assert real == counted


@pytest.mark.parametrize("axes", [[0], [1, 2], [-1], [], None])
def test_the_elements_of_a_reduction_are_counted(axes):
    real, counted = products(aten.sum.dim_IntList, torch.ones(2, 3, 5), axes)
    assert real == counted
    assert sums("mean", (torch.ones(2, 3, 5), axes), Rounding())[0][0] == real[0]


LAYERS = {
    "batch norm": lambda: nn.BatchNorm2d(6),
    "batch norm in eval mode": lambda: shifted(nn.BatchNorm2d(6)),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "layer norm": lambda: nn.LayerNorm([6, 9, 9]),
    "softmax": lambda: nn.Softmax(1),
    "log-softmax": lambda: nn.LogSoftmax(1),
    "mean": lambda: nn.AdaptiveAvgPool2d(1),
    "average": lambda: nn.AvgPool2d(3, 2),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 81, 5)),
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "resize": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "instance norm": lambda: nn.InstanceNorm2d(6),
}


def shifted(norm):
    """Its mean is far from zero."""
    norm.running_mean += 1000
    return norm.eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_no_other_layer_does_either(name, dtype):
    generator = torch.Generator().manual_seed(3)
    layer = LAYERS[name]().to(DTYPES[dtype])
    x = torch.randn(3, 6, 9, 9, generator=generator) + (1000 if "eval" in name else 1)
    x = x.to(DTYPES[dtype])
    rounding = Rounding.of([dtype])
    with torch.no_grad():
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        found = to_numpy(layer(x)).astype(np.float64)
        layer = layer.double()
        samples = []
        for seed in (None, 1, 2):
            layer.load_state_dict(state)
            errors = RoundingErrors(rounding, np.random.default_rng(seed)) if seed else None
            with float64(errors):
                if errors:
                    errors.reach([x, *layer.parameters()])
                samples.append(to_numpy(layer(x.double())))
    truth, *moved = samples
    away = movement(truth, moved)
    assert 0 < float(np.abs(found - truth).max()) <= TRUSTED * away
    assert away <= 1000 * rounding.store * np.abs(x.double().numpy()).max()  # it says something


def test_a_batch_norm_may_be_computed_as_one_product_and_one_sum():
    """x * a + (b - m * a), which cancels where the mean is large; some kernels do so."""
    norm = shifted(nn.BatchNorm2d(6))
    nn.init.constant_(norm.weight, 0.7)
    x = torch.randn(3, 6, 9, 9, generator=torch.Generator().manual_seed(3)) + 1000
    column = (None, slice(None), None, None)
    slope = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    found = x * slope[column] + (norm.bias.detach() - norm.running_mean * slope)[column]
    norm = norm.double()
    with torch.no_grad():
        truth = norm(x.double())
        errors = RoundingErrors(Rounding(), np.random.default_rng(0))
        errors.reach([x.double()])
        with float64(errors):
            moved = norm(x.double())
    away = movement(to_numpy(truth), [to_numpy(moved)])
    error = float((found - truth).abs().max())
    assert 8 * 2**-24 * float(truth.abs().max()) < error <= TRUSTED * away


@pytest.mark.parametrize(
    ("convolutions", "products", "multiply"),
    [("ieee", "ieee", 0.0), ("tf32", "ieee", TF32), ("ieee", "tf32", TF32), ("tf32", "none", TF32)],
)
def test_tf32_counts_wherever_it_is_on(convolutions, products, multiply):
    """Also where the flags differ by operator, for which torch's older flags raise."""
    backends = torch.backends
    with (
        flag(backends.cudnn.conv, "fp32_precision", convolutions),
        flag(backends.cuda.matmul, "fp32_precision", products),
    ):
        assert rounding_of(["float32"], torch.device("cuda")).multiply == multiply
    assert rounding_of(["float32"], torch.device("cpu")).multiply == 0.0
