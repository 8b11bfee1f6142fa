"""Every lowering x every case against the definition; and that the check can fail."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import (
    LOWERINGS,
    blocks,
    candidates,
    dense,
    form_of,
    is_kernel,
    keep,
    kernel,
    lower,
)
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import run
from dwr_rewrite.spec import ConvSpec
from tests.reference import depthwise

CASES = {
    "1d": ConvSpec(4, (3,), padding=((1, 1),)),
    "1d-causal-k4": ConvSpec(6, (4,), padding=((3, 0),), bias=True),
    "2d-3x3": ConvSpec(8, (3, 3), padding=((1, 1), (1, 1)), bias=True),
    "2d-stride-asymmetric": ConvSpec(6, (3, 2), stride=(2, 1), padding=((0, 1), (2, 0))),
    "2d-dilated": ConvSpec(4, (3, 3), dilation=(2, 3), padding=((2, 2), (3, 3))),
    "2d-multiplier": ConvSpec(4, (3, 3), multiplier=3, padding=((1, 1), (0, 0)), bias=True),
    "2d-same-upper": ConvSpec(4, (3, 4), stride=(2, 3), dilation=(2, 1), padding="same_upper"),
    "2d-same-lower": ConvSpec(4, (2, 5), stride=(2, 2), padding="same_lower"),
    "2d-negative-pad": ConvSpec(4, (3, 3), padding=((-1, 1), (1, -2))),
    "2d-even-kernel": ConvSpec(4, (2, 4)),
    "3d": ConvSpec(4, (3, 3, 3), stride=(1, 2, 2), padding=((1, 1),) * 3),
    "3d-factored-multiplier": ConvSpec(3, (5, 1, 1), multiplier=2, padding=((2, 2),) * 3),
    "prime-channels": ConvSpec(7, (3, 3), padding=((1, 1), (1, 1))),
    "one-channel": ConvSpec(1, (3, 3)),
    "transposed-1d": ConvSpec(4, (4,), stride=(2,), padding=((1, 1),), transposed=True),
    "transposed-2d": ConvSpec(
        6, (3, 2), multiplier=2, stride=(2, 3), dilation=(2, 1), padding=((1, 0), (0, 1)),
        transposed=True, output_padding=(1, 2), bias=True,
    ),
    "transposed-same": ConvSpec(4, (5, 3), stride=(2, 2), padding="same_lower", transposed=True),
    "transposed-3d": ConvSpec(2, (2, 2, 2), multiplier=2, stride=(2, 1, 2), transposed=True),
}  # fmt: skip

WIDTHS = (1, 2, 3, 4, 7, 32)


def data(spec: ConvSpec, seed: int = 0, lengths: tuple[int, ...] = (9, 8, 7)):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, spec.channels, *lengths[: len(spec.kernel)]))
    weight = rng.standard_normal(spec.weight_shape)
    return x, weight, rng.standard_normal(spec.out_channels) if spec.bias else None


def forms(spec: ConvSpec):
    """Every recipe that any lowering gives this convolution."""
    yield keep.lower(spec)
    yield dense.lower(spec)
    yield kernel.lower(spec)
    for width in WIDTHS[1:]:
        recipe = blocks.lower(spec, width)
        if not isinstance(recipe, Rejection):
            yield recipe


def bound(spec: ConvSpec, x, weight) -> float:
    """Two float64 sums of n products and a bias differ by at most 2 gamma_n (|w| * |x|)."""
    magnitude = depthwise(spec, np.abs(x), np.abs(weight))
    return 2 * (spec.taps + 2) * 2.0**-53 * (magnitude.max(initial=0.0) + 10)


@pytest.mark.parametrize("name", CASES)
def test_every_form_is_the_depthwise_convolution(name):
    spec = CASES[name]
    x, weight, bias = data(spec)
    expected = depthwise(spec, x, weight, bias)
    for recipe in forms(spec):
        got = run(recipe, x, weight, bias)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= bound(spec, x, weight), recipe


@pytest.mark.parametrize("name", [name for name in CASES if name != "one-channel"])
def test_the_check_fails_when_a_filter_sits_in_the_wrong_column(name):
    spec = CASES[name]
    x, weight, bias = data(spec)
    expected = depthwise(spec, x, weight, bias)
    shifted = run(dense.lower(spec), np.roll(x, 1, axis=1), weight, bias)
    assert np.abs(shifted - expected).max() > bound(spec, x, weight)


@st.composite
def specs(draw):
    rank = draw(st.integers(1, 3))
    axes = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    transposed = draw(st.booleans())
    stride = axes(1, 3)
    return ConvSpec(
        channels=draw(st.integers(1, 12)),
        kernel=axes(1, 3),
        multiplier=draw(st.integers(1, 3)),
        stride=stride,
        dilation=axes(1, 2),
        padding=draw(
            st.one_of(
                st.sampled_from(["same_upper", "same_lower"]),
                st.just(tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2)))
                              for _ in range(rank))),
            )
        ),
        transposed=transposed,
        output_padding=tuple(draw(st.integers(0, s - 1)) for s in stride) if transposed else (),
        bias=draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(spec=specs(), lengths=st.tuples(*[st.integers(5, 7)] * 3), seed=st.integers(0, 99))
def test_any_geometry(spec, lengths, seed):
    x, weight, bias = data(spec, seed, lengths)
    expected = depthwise(spec, x, weight, bias)
    for recipe in forms(spec):
        got = run(recipe, x, weight, bias)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max(initial=0.0) <= bound(spec, x, weight)
        known = replace(spec, spatial=x.shape[2:])
        assert known.output_spatial() == expected.shape[2:]


DTYPES = ("float16", "float32", "float64", ml_dtypes.bfloat16, "int8", "uint8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_packing_keeps_every_bit_and_fills_the_rest(name, dtype):
    spec = CASES[name]
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (*spec.weight_shape, np.dtype(dtype).itemsize), np.uint8)
    weight = bits.view(dtype)[..., 0]  # any bit pattern: NaN, Inf, denormal, -0
    for width in (w for w in range(1, spec.channels + 1) if spec.channels % w == 0):
        packing = diagonal(spec, width).packing
        packed = packing.pack(weight)
        assert packed.dtype == weight.dtype
        assert packed.shape == packing.packed
        assert packing.unpack(packed).tobytes() == weight.tobytes()
        assert packing.growth == packed.size - weight.size
        marks = packing.pack(np.ones(spec.weight_shape, np.uint8))
        assert marks.sum() == weight.size
        assert not packed.view(np.uint8).reshape(*packed.shape, -1)[marks == 0].any()


def test_row_o_holds_its_filter_at_column_o_over_m_mod_b():
    spec = ConvSpec(6, (1, 2), multiplier=2)
    weight = np.arange(1, 25).reshape(spec.weight_shape)
    packed = diagonal(spec, 3).packing.pack(weight)
    for o in range(12):
        for column in range(3):
            expected = weight[o, 0] if column == (o // 2) % 3 else 0
            assert np.array_equal(packed[o, column], np.broadcast_to(expected, (1, 2)))


def test_a_zero_point_of_each_channel_fills_its_row():
    spec = ConvSpec(4, (2,))
    zero_point = np.array([5, 6, 7, 8], np.uint8).reshape(4, 1, 1)
    packed = diagonal(spec, 2).packing.pack(np.full((4, 1, 2), 99, np.uint8), zero_point)
    assert packed[:, :, 0].tolist() == [[99, 5], [6, 99], [99, 7], [8, 99]]


WIDTH_TABLE = [
    # channels, wanted, chosen
    (64, 32, 32),
    (48, 32, 24),  # 48 / 32 = 1.5 and 32 / 24 = 1.33: 24 is nearer
    (24, 32, 24),
    (37, 32, 37),  # a prime up to twice the width is dense
    (67, 32, None),  # a larger prime has no width
    (997, 32, None),
    (1994, 32, 2),
    (2, 32, 2),
    (16, 8, 8),
    (12, 8, 6),  # 6 and 12: ratios 1.33 and 1.5
    (1 << 20, 32, 32),
]


@pytest.mark.parametrize(("channels", "wanted", "chosen"), WIDTH_TABLE)
def test_group_width(channels, wanted, chosen):
    assert blocks.group_width(channels, wanted) == chosen


@given(channels=st.integers(2, 5000), width=st.integers(2, 600))
def test_group_width_divides_or_is_refused_with_a_reason(channels, width):
    chosen = blocks.group_width(channels, width)
    if chosen is None:
        divisors = [d for d in range(2, min(channels, 2 * width) + 1) if channels % d == 0]
        assert divisors == []
        rejection = blocks.lower(ConvSpec(channels, (3,)), width)
        assert isinstance(rejection, Rejection)
        assert (rejection.code, str(channels) in rejection.reason) == ("no-group-width", True)
    else:
        assert channels % chosen == 0
        assert 2 <= chosen <= 2 * width


def test_the_list_of_lowerings_is_complete_and_named():
    assert [lowering.name for lowering in LOWERINGS] == ["keep", "dense", "blocks", "kernel"]
    assert all(lowering.lower(ConvSpec(64, (3, 3))).conv.groups >= 1 for lowering in LOWERINGS)


def test_non_finite_weights_leave_the_zeros_alone():
    spec = ConvSpec(4, (3,))
    weight = np.full(spec.weight_shape, np.nan)
    weight[1] = np.inf
    packed = dense.lower(spec).packing.pack(weight)
    assert np.isfinite(packed).sum() == packed.size - weight.size
    assert (packed[np.isfinite(packed)] == 0).all()


TILE = "fma.c1.p128.d1.r4.v2.w4.s1"


@pytest.mark.parametrize("name", CASES)
def test_a_form_is_found_by_its_name(name):
    spec = CASES[name]
    for form, recipe in candidates(spec).items():
        assert lower(spec, form) == recipe
        assert form_of(recipe) == form
        assert not is_kernel(form)
    for form in ("kernel", f"kernel:{TILE}"):
        assert is_kernel(form)
        assert form_of(lower(spec, form)) == form


def test_a_form_that_nothing_is_called_is_refused():
    for form in ("", "kernels", "dense:4", "keep:1", "Dense"):
        with pytest.raises(ValueError, match=r"form '.*': keep, dense, blocks, kernel expected"):
            lower(CASES["2d-3x3"], form)


def test_a_kernel_packs_nothing_and_keeps_its_tile():
    recipe = kernel.lower(CASES["2d-multiplier"], TILE)
    assert recipe.conv.tile == TILE
    assert (recipe.packing.growth, recipe.packing.width, recipe.conv.groups) == (0, 1, 4)


@pytest.mark.parametrize(
    ("spec", "taken"),
    [
        (ConvSpec(4, (64, 64)), True),
        (ConvSpec(4, (65,)), False),
        (ConvSpec(4, (1, 65, 1)), False),
        (ConvSpec(4, (3, 3), stride=(99, 16)), True),
        (ConvSpec(4, (3, 3), stride=(1, 17)), False),
    ],
)
def test_what_the_kernels_do_not_take_is_rejected_with_the_limits(spec, taken):
    found = kernel.lower(spec)
    assert isinstance(found, Rejection) is not taken
    if not taken:
        assert found.code == "no-kernel"
        assert "64 taps" in found.reason
        assert "up to 16" in found.reason
    assert not any(is_kernel(form) for form in candidates(spec))


@pytest.mark.parametrize(
    ("transposed", "direction", "taken"),
    [
        (False, "forward", True), (False, "grad_input", False), (False, "grad_weight", True),
        (True, "forward", False), (True, "grad_input", True), (True, "grad_weight", True),
        (False, None, True),
    ],
)  # fmt: skip
def test_a_tile_has_to_fit_what_scatters(transposed, direction, taken):
    """Its columns, 2, are no multiple of the stride."""
    spec = ConvSpec(4, (3, 3), stride=(1, 3), transposed=transposed)
    found = lower(spec, f"kernel:{TILE}", direction)
    assert isinstance(found, Rejection) is not taken
    if not taken:
        assert found.code == "no-tile"
        assert "multiples of the stride 3" in found.reason
    assert not isinstance(lower(spec, "kernel", direction), Rejection)
    fitting = replace(spec, stride=(3, 2))
    assert not isinstance(lower(fitting, f"kernel:{TILE}", direction), Rejection)
