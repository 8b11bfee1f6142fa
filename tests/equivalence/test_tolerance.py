"""What may differ: the constants, the odds of an honest pair, and the movement."""

from __future__ import annotations

from itertools import product
from math import comb

import ml_dtypes
import numpy as np
import pytest

from dwr_rewrite.equivalence.statistics import MANTISSA, SMALLEST_EXPONENT
from dwr_rewrite.equivalence.tolerance import (
    FACTOR,
    FACTOR_NEEDS,
    FINITE_MAX,
    SMALLEST_NORMAL,
    TF32,
    UNIT_ROUNDOFF,
    Rounding,
    movement,
)

DTYPES = ["float16", "bfloat16", "float32", "float64"]
TRUTH = np.linspace(-1, 1, 50)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_constants_are_those_of_the_types(dtype):
    facts = ml_dtypes.finfo(dtype)
    assert UNIT_ROUNDOFF[dtype] == float(facts.eps) / 2 == 2.0 ** -(MANTISSA[dtype] + 1)
    assert FINITE_MAX[dtype] == float(facts.max)
    assert SMALLEST_NORMAL[dtype] == float(facts.smallest_normal) == 2.0 ** SMALLEST_EXPONENT[dtype]


@pytest.mark.parametrize(("one", "two"), [*product(DTYPES, DTYPES)])
def test_rounding_is_that_of_the_coarser_type(one, two):
    """Sums of the 16-bit types are made in float32; a pair with float64 is no finer for it."""
    found = Rounding.of([one, two])
    store = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
    assert found.store == max(store[one], store[two])
    assert found.accumulate == (2.0**-53 if one == two == "float64" else 2.0**-24)
    small = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}
    assert found.underflow == max(small.get(one, 2.0**-1022), small.get(two, 2.0**-1022))
    assert (found.multiply, found.winograd) == (0.0, False)
    assert found == Rounding.of([two, one]) == Rounding.of({one, two})


def test_rounding_of_no_type_is_that_of_float32():
    assert Rounding.of([]) == Rounding.of(["float32"]) == Rounding()


@pytest.mark.parametrize("tf32", [True, False])
def test_a_gpu_adds_tf32_and_winograd_and_nothing_else(tf32):
    found = Rounding.of(["float16"]).on_gpu(tf32=tf32)
    assert (found.multiply, found.winograd) == (TF32 if tf32 else 0.0, True)
    assert (found.store, found.accumulate, found.underflow) == (2.0**-11, 2.0**-24, 2.0**-14)


def tail(n: int, ratio: float) -> float:
    """P(F(n, n) > ratio) for an even n: that of a binomial, with y = 1 / (1 + ratio).

    The regularised incomplete beta function I_y(n/2, n/2), which for whole parameters is the
    probability of n/2 successes or more in n - 1 trials (Abramowitz and Stegun 26.5.24, 26.6.2).
    """
    y, half = 1 / (1 + ratio), n // 2
    return sum(comb(n - 1, j) * y**j * (1 - y) ** (n - 1 - j) for j in range(half, n))


@pytest.mark.parametrize("n", [4, 8])
def test_the_closed_form_is_what_random_errors_give(n):
    """10^5 pairs: a share near 5 % is known to 0.07 %, four times that is allowed."""
    draws = np.random.default_rng(7).standard_normal((2, 100_000, n)) ** 2
    reference, candidate = draws.mean(axis=-1)
    for ratio in (2.0, 6.0):
        share = tail(n, ratio)
        assert 0.001 < share < 0.3
        room = 4 * np.sqrt(share / 100_000)
        assert np.mean(candidate > ratio * reference) == pytest.approx(share, abs=room)


def test_honest_pairs_rarely_exceed_the_factor():
    """The odds that the docstring of FACTOR states, to two digits."""
    assert 1 / tail(FACTOR_NEEDS, FACTOR**2) == pytest.approx(1_400, rel=0.03)
    assert 1 / tail(8, FACTOR**2) == pytest.approx(530_000, rel=0.01)


def test_movement_is_the_largest_of_all_samples_or_three_root_mean_squares():
    far = np.zeros(50)
    far[7] = 1e-3
    assert movement(TRUTH, [TRUTH, TRUTH + far]) == pytest.approx(1e-3)
    assert movement(TRUTH, [TRUTH + 1e-3]) == pytest.approx(3e-3)
    assert movement(TRUTH, [TRUTH + 1e-3, TRUTH]) == pytest.approx(3e-3 / np.sqrt(2))
    assert movement(TRUTH, []) == 0.0
    assert movement(np.zeros((0, 3)), [np.zeros((0, 3))]) == 0.0
    assert movement(np.array(1.0), [np.array(1.5)]) == pytest.approx(1.5)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_movement_of_extreme_numbers(scale):
    assert movement(TRUTH * scale, [(TRUTH + 1e-3) * scale]) == pytest.approx(3e-3 * scale)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_value_that_rounding_makes_infinite_moves_without_bound(broken):
    moved = TRUTH.copy()
    moved[7] = broken
    assert movement(TRUTH, [TRUTH, moved]) == np.inf


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_does_not_move(broken):
    truth = TRUTH.copy()
    truth[7] = broken
    assert movement(truth, [truth]) == 0.0
    assert movement(truth, [TRUTH + 1e-3]) == pytest.approx(3e-3)


def test_a_shape_that_rounding_changes_moves_without_bound():
    """One that broadcasts too: the boxes that a detector keeps."""
    assert movement(np.ones((3, 4)), [np.ones((1, 4))]) == np.inf
    assert movement(np.ones((0, 4)), [np.ones((1, 4))]) == np.inf


def test_movement_of_integers():
    assert movement(np.array([1, 2, 300]), [np.array([1, 2, 299])]) == pytest.approx(3 / np.sqrt(3))
