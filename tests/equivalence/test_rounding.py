"""The bounds on rounding errors hold for real arithmetic, and each of their terms is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dwr_rewrite.equivalence.tolerance import TF32, WINOGRAD, Rounding


def in_turn(products: np.ndarray) -> np.ndarray:
    """Sums over the last axis, one term after the other, in the type of the terms."""
    total = np.zeros(products.shape[:-1], products.dtype)
    for column in np.moveaxis(products, -1, 0):
        total += column
    return total


def relative_errors(terms: int, *, positive: bool) -> np.ndarray:
    """Errors of 2000 float32 sums of products, relative to the sums of their magnitudes."""
    pair = np.random.default_rng(0).standard_normal((2, 2000, terms)).astype(np.float32)
    x, y = np.abs(pair) if positive else pair
    exact = x.astype(np.float64) * y
    return np.abs(in_turn(x * y) - exact.sum(axis=-1)) / np.abs(exact).sum(axis=-1)


@pytest.mark.parametrize("terms", [1, 2, 4, 9, 100, 1000])
@pytest.mark.parametrize("positive", [True, False])
def test_gamma_bounds_the_error_of_real_sums(terms, positive):
    assert relative_errors(terms, positive=positive).max() <= Rounding().gamma(terms)


def test_gamma_is_needed():
    """A product alone comes near its bound; long sums exceed the bound on short ones."""
    assert relative_errors(1, positive=True).max() > 0.9 * Rounding().gamma(1)
    assert relative_errors(1000, positive=True).max() > Rounding().gamma(4)


@pytest.mark.parametrize("terms", [1, 2, 4, 5, 9, 1000, 10**6])
def test_gamma_is_never_above_the_deterministic_bound(terms):
    """n u, and 2 sqrt(n) u from the n on where that is smaller."""
    for dtype, unit in (("float32", 2.0**-24), ("float16", 2.0**-24), ("float64", 2.0**-53)):
        wanted = terms * unit if terms <= 4 else 2 * np.sqrt(terms) * unit
        assert Rounding.of([dtype]).gamma(terms) == pytest.approx(wanted)


def as_tf32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to 10 stored bits of mantissa, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> 13) & 1
    return ((bits + 0xFFF + odd) & ~np.uint32(0x1FFF)).view(np.float32)


def test_tf32_is_the_unit_roundoff_of_its_operands():
    values = np.random.default_rng(1).uniform(1, 2, 100_000).astype(np.float32)
    found = np.abs(as_tf32(values) - values) / values
    assert 0.99 * TF32 < found.max() <= TF32
    assert as_tf32(np.float32([1 + 2**-11, 1 + 3 * 2**-11])).tolist() == [1.0, 1 + 2**-9]


@pytest.mark.parametrize("terms", [1, 9, 64, 1000])
def test_tf32_products_need_their_own_term(terms):
    """x (1 + d) y (1 + e) with |d|, |e| <= TF32 is off by 2 TF32 |x y| to first order."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 2000, terms)).astype(np.float32)
    exact = x.astype(np.float64) * y
    error = np.abs(in_turn(as_tf32(x) * as_tf32(y)) - exact.sum(axis=-1))
    magnitude = np.abs(exact).sum(axis=-1)
    assert (error <= Rounding().on_gpu(tf32=True).gamma(terms) * magnitude).all()
    assert (error > Rounding().on_gpu(tf32=False).gamma(terms) * magnitude).any()


def test_tf32_comes_near_its_bound():
    """1 + 2^-11 lies halfway between two TF32 numbers and is rounded to 1."""
    x = np.float32([1 + 2**-11])
    lost = np.float64(x) ** 2 - np.float64(as_tf32(x)) ** 2
    bound = Rounding().on_gpu(tf32=True).gamma(1) * np.float64(x) ** 2
    assert 0.99 * bound < lost < bound


# Winograd's F(4, 3) with the points 0, 1, -1, 2, -2 and infinity (Lavin and Gray 2016, section
# 4.3): the outputs of a tile are A ((G g) . (B d)) for three taps g and six inputs d.
B = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], float,
)  # fmt: skip
G = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip
A = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float
)


def winograd(tiles: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """F(4x4, 3x3) of [T, C, 6, 6] with [C, 3, 3], summed over C, in the operands' type."""
    a, b, g = (matrix.astype(tiles.dtype) for matrix in (A, B, G))
    product_ = (g @ filters @ g.T) * (b @ tiles @ b.T)
    return a @ in_turn(np.moveaxis(product_, 1, -1)) @ a.T


def direct(tiles: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """The same 4x4 outputs as sums of 9 C products."""
    windows = np.lib.stride_tricks.sliding_window_view(tiles, (3, 3), axis=(2, 3))
    terms = np.moveaxis(windows * filters[:, None, None], 1, -1)
    return in_turn(terms.reshape(*terms.shape[:3], -1))


def tiles_and_filters(channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = (500, channels, 6, 6), (channels, 3, 3)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def test_the_transforms_compute_a_convolution():
    tiles, filters = (a.astype(np.float64) for a in tiles_and_filters(3))
    np.testing.assert_allclose(winograd(tiles, filters), direct(tiles, filters), atol=1e-12)


def test_the_winograd_constant_follows_from_the_transforms():
    """Each of six products is as large as |G_i| |B_i| (rms, independent data of unit variance)."""
    squares = (A**2) @ ((G**2).sum(axis=1) * (B**2).sum(axis=1))
    assert pytest.approx(np.sqrt(squares.max() / 3), abs=5e-3) == WINOGRAD


def test_the_winograd_constant_is_what_random_data_give():
    """2^20 draws: the mean square of a sum of products of normals is known to a few per mille."""
    rng = np.random.default_rng(4)
    d, g = rng.standard_normal((6, 2**20)), rng.standard_normal((3, 2**20))
    squares = (A**2) @ ((G @ g) * (B @ d)) ** 2
    assert np.sqrt(squares.mean(axis=1).max() / 3) == pytest.approx(WINOGRAD, rel=0.01)


@pytest.mark.parametrize("channels", [1, 8, 64])
def test_winograd_rounds_more_than_a_sum_and_within_its_bound(channels):
    tiles, filters = tiles_and_filters(channels)
    wide = tiles.astype(np.float64), filters.astype(np.float64)
    truth, magnitude = direct(*wide), direct(*map(np.abs, wide))
    errors = [np.abs(f(tiles, filters) - truth) / magnitude for f in (direct, winograd)]
    geometry = 9 * channels, (3, 3), (1, 1), (1, 1)
    bound = Rounding().on_gpu(tf32=False).convolution(*geometry)
    assert errors[0].max() < errors[1].max() <= bound
    assert errors[0].max() <= Rounding().convolution(*geometry)
    if channels <= 8:  # in long sums the plain bound has room for it
        assert errors[1].max() > Rounding().convolution(*geometry)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "power"),
    [((3, 3), (1, 1), (1, 1), 2), ((3,), (1,), (1,), 1), ((3, 3, 3), (1,) * 3, (1,) * 3, 3),
     ((5, 5), (1, 1), (1, 1), 0), ((3, 5), (1, 1), (1, 1), 0), ((3, 3), (1, 2), (1, 1), 0),
     ((3, 3), (1, 1), (2, 2), 0), ((1, 1), (1, 1), (1, 1), 0)],
)  # fmt: skip
def test_winograd_is_for_threes_of_stride_one(kernel, stride, dilation, power):
    gpu = Rounding().on_gpu(tf32=False)
    found = gpu.convolution(9, kernel, stride, dilation)
    assert found == pytest.approx(gpu.gamma(9) * WINOGRAD**power)
    assert Rounding().convolution(9, kernel, stride, dilation) == Rounding().gamma(9)


def gradual(values: np.ndarray) -> np.ndarray:
    """What IEEE arithmetic makes of numbers below the smallest normal."""
    return values


def flushed(values: np.ndarray) -> np.ndarray:
    """What arithmetic with flush-to-zero makes of them."""
    return np.where(np.abs(values) < 2.0**-126, np.float32(0), values)


@pytest.mark.parametrize("underflow", [gradual, flushed])
def test_a_chain_of_products_needs_underflow(underflow):
    """y' = a y (1 + d) + e, so the bound b' = |a| b + of_result(a y); y falls from 2^-120 to 0."""
    rng = np.random.default_rng(5)
    y = (2.0**-120 * rng.standard_normal(2000)).astype(np.float32)
    truth, within, without = y.astype(np.float64), np.zeros(2000), np.zeros(2000)
    blind = replace(Rounding(), underflow=0.0)
    lost = np.zeros(2000, bool)
    for _ in range(20):
        factor = rng.uniform(0.1, 0.9, 2000).astype(np.float32)
        y, truth = underflow(y * factor), truth * factor
        within = factor * within + Rounding().of_result(truth)
        without = factor * without + blind.of_result(truth)
        assert (np.abs(y - truth) <= within * (1 + 1e-6)).all()  # (1 + d) twice: second order
        lost |= np.abs(y - truth) > without
    assert lost.mean() > 0.5


@pytest.mark.parametrize("underflow", [gradual, flushed])
@pytest.mark.parametrize("terms", [1, 9, 200])
def test_a_sum_of_products_needs_underflow(underflow, terms):
    """Every product of two numbers near 2^-67 is below the smallest normal, 2^-126."""
    rng = np.random.default_rng(6)
    x, y = (2.0**-67 * rng.standard_normal((2, 2000, terms))).astype(np.float32)
    exact = x.astype(np.float64) * y
    error = np.abs(in_turn(underflow(x * y)) - exact.sum(axis=-1))
    magnitude = np.abs(exact).sum(axis=-1)
    assert (error <= Rounding().of_sum(magnitude, terms)).all()
    assert (error > replace(Rounding(), underflow=0.0).of_sum(magnitude, terms)).any()


def test_underflow_costs_no_more_than_there_was():
    small = np.array([0.0, 1e-300, 1e-40])
    assert (Rounding().of_sum(small, 9) == small).all()
    assert (Rounding().of_result(-small) == small).all()


def test_underflow_is_no_matter_for_ordinary_numbers():
    ones = np.ones(3)
    assert (Rounding().of_sum(ones, 9) == Rounding().gamma(9)).all()
    assert (Rounding().of_sum(ones, 9, 1e-3) == 1e-3).all()
    assert (Rounding.of(["float16"]).of_result(-ones) == 2.0**-11).all()
