"""The comparison: what it accepts, and that it fails when it has to."""

from __future__ import annotations

import numpy as np
import pytest

from dwr_rewrite.verify import (
    FINITE_MAX,
    KINDS,
    UNIT_ROUNDOFF,
    Case,
    Comparison,
    Rounding,
    Verification,
    compare,
    make_input,
    movement,
)

TRUTH = np.linspace(-1, 1, 50)
ORIGINAL = (TRUTH + 1e-7).astype("f4")


def comparison(rewritten, moved=1e-6, original=ORIGINAL, truth=TRUTH) -> Comparison:
    return compare("y", original, rewritten, truth, moved)


def test_a_result_as_close_as_the_original_passes():
    found = comparison((TRUTH - 1e-7).astype("f4"))
    assert found.passed
    assert found.original == pytest.approx(1e-7, rel=0.5)
    assert found.tolerance == pytest.approx(2 * (found.original + 1e-6))
    assert found.scale == 1.0


WRONG = {
    "one element": lambda y: np.where(np.arange(50) == 7, y + 1e-3, y).astype("f4"),
    "shape": lambda y: y[:-1],
    "dtype": lambda y: y.astype("f8"),
    "nan": lambda y: np.where(np.arange(50) == 7, np.nan, y).astype("f4"),
    "inf": lambda y: np.where(np.arange(50) == 7, np.inf, y).astype("f4"),
    "order": lambda y: y[::-1].copy(),
    "zero": np.zeros_like,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_fails(name):
    assert not comparison(WRONG[name](ORIGINAL)).passed


def test_a_nan_in_the_measured_movement_cannot_make_anything_pass():
    found = comparison(WRONG["one element"](ORIGINAL), movement(TRUTH, [TRUTH * np.nan]))
    assert found.tolerance == float("inf")
    assert Verification((Case("normal", "float64", (found,)),)).verdict != "passed"


def test_a_yardstick_that_the_original_contradicts_is_not_used():
    """Otherwise a float64 evaluation that is wrong would let everything pass."""
    off = TRUTH + 0.5
    same = comparison(ORIGINAL, truth=off)
    assert (same.by, same.passed, same.tolerance) == ("difference", True, pytest.approx(4e-6))
    assert not comparison(WRONG["one element"](ORIGINAL), truth=off).passed


def test_what_is_not_finite_in_the_original_is_not_compared_but_may_not_spread():
    original = ORIGINAL.copy()
    original[3] = np.inf
    assert comparison(original, original=original).passed
    spread = original.copy()
    spread[4] = np.nan
    found = comparison(spread, original=original)
    assert not found.passed
    assert "1 of 49 finite values became Inf or NaN" in found.reason


def test_integers_have_to_be_equal():
    ints = np.arange(5)
    assert compare("y", ints, ints, ints.astype(float), 0.0).passed
    assert not compare("y", ints, ints + 1, ints.astype(float), 0.0).passed


def test_empty_outputs_are_equal():
    empty = np.zeros((0, 3), "f4")
    assert compare("y", empty, empty, empty, 0.0).passed


def test_movement_is_the_largest_of_all_samples_or_three_root_mean_squares():
    far = np.zeros(50)
    far[7] = 1e-3
    assert movement(TRUTH, [TRUTH, TRUTH + far]) == pytest.approx(1e-3)
    assert movement(TRUTH, [TRUTH + 1e-3]) == pytest.approx(3e-3)
    assert movement(TRUTH, []) == 0.0


def failing() -> Comparison:
    return comparison(WRONG["one element"](ORIGINAL))


def test_the_verdict_needs_something_compared_and_all_of_it_passed():
    good, bad = comparison(ORIGINAL), failing()
    cases = lambda *found: Verification((Case("normal", "float64", found),))  # noqa: E731
    assert cases(good).verdict == "passed"
    assert cases(good, bad).verdict == "failed"
    assert Verification(()).verdict == "not compared"
    assert Verification((Case("large", "float64", skipped="overflow"),)).verdict == "not compared"
    assert cases(good, bad).worst[1] is bad


def test_a_tolerance_as_large_as_the_output_tells_nothing():
    blind = comparison(np.zeros_like(ORIGINAL), moved=2.0)
    assert blind.passed
    assert not blind.telling
    assert Verification((Case("normal", "float64", (blind,)),)).verdict == "not compared"
    both = Verification((Case("normal", "float64", (blind, comparison(ORIGINAL))),))
    assert both.verdict == "passed", "one comparison of the same output was telling"


def test_rounding_follows_from_the_element_types():
    assert Rounding.of(["float16"]) == Rounding(2.0**-24, 2.0**-11)
    assert Rounding.of(["float64", "float64"]) == Rounding(2.0**-53, 2.0**-53)
    assert Rounding.of(["float64", "bfloat16"]) == Rounding(2.0**-24, 2.0**-8)
    assert Rounding.of([]) == Rounding.of(["float32"]) == Rounding()


@pytest.mark.parametrize("terms", [1, 4, 9, 1000])
def test_gamma_bounds_the_error_of_real_sums(terms):
    rng = np.random.default_rng(0)
    products = rng.standard_normal((2000, terms)).astype("f4")
    total = np.zeros(2000, "f4")
    for column in products.T:
        total += column
    exact = products.astype("f8")
    error = np.abs(total - exact.sum(axis=1)) / np.abs(exact).sum(axis=1)
    assert error.max() <= Rounding().gamma(terms)
    assert Rounding().gamma(terms) <= terms * 2.0**-24


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_constants_are_numpys(dtype):
    assert UNIT_ROUNDOFF[dtype] == np.finfo(dtype).eps / 2
    assert FINITE_MAX[dtype] == np.finfo(dtype).max


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "int64", "bool"])
def test_inputs_are_seeded_finite_and_of_the_asked_type(kind, dtype):
    import ml_dtypes  # noqa: F401  registers bfloat16 with numpy

    one, two = (make_input(kind, dtype, (3, 4), np.random.default_rng(5)) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert (one.dtype.name, one.shape) == (dtype, (3, 4))
    assert np.isfinite(one.astype(np.float64)).all()
