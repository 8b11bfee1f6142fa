"""Every statistic, against its definition written out."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import astuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.equivalence.statistics import (
    MANTISSA,
    SMALLEST_EXPONENT,
    cosine,
    decibels,
    errors,
    largest,
    mean,
    quantile,
    rms,
    spacing,
)

FLOATS = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
INFINITE = float("inf")
numbers = st.integers(-(2**30), 2**30).map(lambda n: n / 1024)  # squares do not underflow


def ladder(dtype: str) -> np.ndarray:
    """Finite numbers of a type from zero on: all of 16 bits, else those around powers of two."""
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(FLOATS[dtype]).itemsize]
    top = int(np.array(np.inf, FLOATS[dtype]).view(unsigned))
    if unsigned is np.uint16:
        return np.arange(top, dtype=unsigned).view(FLOATS[dtype])
    step = 1 << MANTISSA[dtype]
    near = np.array([-2, -1, 0, 1, step // 2], np.int64)
    bits = np.arange(0, top, step)[:, None] + near
    subnormal = 2 ** np.arange(MANTISSA[dtype])
    chosen = np.unique([*bits[(bits >= 0) & (bits < top)], *subnormal])
    return chosen.astype(unsigned).view(FLOATS[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_spacing_is_the_distance_to_the_next_number(dtype):
    """The next number is the one whose bits, read as an integer, are one more."""
    found = ladder(dtype)
    bits = found.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[found.itemsize])
    low, high = bits[bits < bits.max()], bits[bits < bits.max()] + bits.dtype.type(1)
    low, high = (side.view(found.dtype).astype(np.float64) for side in (low, high))
    assert low.size > 60
    assert low[0] == 0.0
    assert (spacing(low, dtype) == high - low).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_spacing_is_numpys(dtype):
    found = ladder(dtype)[:-1]  # numpy has no next number for the last
    assert (spacing(found.astype(np.float64), dtype) == np.spacing(found).astype(np.float64)).all()


def test_spacing_between_two_numbers_is_that_of_the_lower():
    assert spacing(np.array([1.0, 1.3, 2 - 1e-9, 2.0]), "float16").tolist() == [
        *(3 * [2.0**-10]), 2.0**-9,
    ]  # fmt: skip


def test_spacing_of_integers_is_one():
    assert spacing(np.array([0.0, 7.0, 1e6]), "int64").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_types_are_described_as_ml_dtypes_describes_them(dtype):
    facts = ml_dtypes.finfo(FLOATS[dtype])
    assert (MANTISSA[dtype], SMALLEST_EXPONENT[dtype]) == (facts.nmant, facts.minexp)


def plainly(values, truth, dtype):
    """The errors from their definitions, element by element."""
    pairs = [(float(v), float(t)) for v, t in zip(values.ravel(), truth.ravel(), strict=True)]
    off = sorted(abs(v - t) for v, t in pairs)
    relative = sorted(abs(v - t) / abs(t) for v, t in pairs if t)

    def of(found):
        place = math.ceil(0.99 * len(found)) - 1
        return (found[-1], math.fsum(found) / len(found), found[place]) if found else (0.0,) * 3

    ulp = [
        abs(v - t) / float(np.spacing(np.array(abs(t)).astype(dtype))) for v, t in pairs
    ]  # the elements are numbers of that type
    signal, noise = (math.fsum(t * t for _, t in pairs), math.fsum(e * e for e in off))
    peak = max(t * t for _, t in pairs) * len(pairs)

    def db(power):
        return INFINITE if not noise else -INFINITE if not power else 10 * math.log10(power / noise)

    norm = math.sqrt(math.fsum(v * v for v, _ in pairs) * signal)
    angle = math.fsum(v * t for v, t in pairs) / norm if norm else None
    return (*of(off), *of(relative), max(ulp), angle, db(signal), db(peak))


@settings(deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=120),
    st.sampled_from(["float32", "float64"]),
)
def test_errors_are_what_their_definitions_say(pairs, dtype):
    truth = np.array([t for t, _ in pairs], dtype).astype(np.float64)
    values = np.array([v for _, v in pairs])
    expected = plainly(values, truth, dtype)
    for found, wanted in zip(astuple(errors(values, truth, dtype)), expected, strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-9, abs=1e-9))


def test_the_shape_does_not_matter():
    rng = np.random.default_rng(0)
    truth, values = rng.standard_normal((2, 3, 4, 5))
    flat = errors(values.ravel(), truth.ravel(), "float32")
    assert errors(values, truth, "float32") == flat
    assert errors(values.T, truth.T, "float32").largest == flat.largest


@pytest.mark.parametrize(("value", "truth", "ulps"), [(3.0, 2.0, 2.0**22), (2.0, 2.0, 0.0)])
def test_an_array_without_axes_has_errors(value, truth, ulps):
    found = errors(np.array(value), np.array(truth), "float32")
    assert (found.largest, found.relative_p99, found.ulps) == (
        value - truth,
        (value - truth) / 2,
        ulps,
    )
    assert found.cosine == 1.0


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_no_elements_have_no_errors(shape):
    found = errors(np.zeros(shape), np.zeros(shape), "float32")
    assert astuple(found) == (0.0,) * 7 + (None, INFINITE, INFINITE)


def test_differences_from_zero_are_not_relative():
    found = errors(np.array([1e-3, 1.1]), np.array([0.0, 1.0]), "float32")
    assert found.relative_largest == pytest.approx(0.1)
    assert errors(np.ones(2), np.zeros(2), "float32").relative_largest == 0.0


def test_one_element_of_two_hundred_is_beyond_the_99th_percentile():
    truth, values = np.full(200, 2.0), np.full(200, 2.0)
    values[:2] += [8.0, 4.0]
    found = errors(values, truth, "float64")
    assert (found.largest, found.p99) == (8.0, 0.0)
    values[2] += 2.0
    found = errors(values, truth, "float64")
    assert (found.p99, found.relative_p99) == (2.0, 1.0)


def test_integers_are_counted_in_units():
    found = errors(np.array([5.0, 9.0]), np.array([5.0, 6.0]), "int64")
    assert (found.ulps, found.largest) == (3.0, 3.0)


@pytest.mark.parametrize("power", [-900, -500, 500, 900])
def test_a_power_of_two_changes_no_ratio(power):
    """Squares of 1e200 overflow and those of 1e-200 vanish; nothing here may."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(200)
    values = truth + 1e-4 * rng.standard_normal(200)
    here = errors(values, truth, "float64")
    there = errors(values * 2.0**power, truth * 2.0**power, "float64")
    assert there.largest == here.largest * 2.0**power
    assert (there.relative_p99, there.ulps, there.cosine) == (
        here.relative_p99, here.ulps, here.cosine,
    )  # fmt: skip
    assert (there.snr, there.psnr) == pytest.approx((here.snr, here.psnr), rel=1e-12)
    assert here.snr == pytest.approx(80, abs=2)  # 20 log10(1 / 1e-4)


def test_what_is_too_large_for_float64_is_infinite():
    top = np.finfo(np.float64).max
    found = errors(np.array([top, 1.0]), np.array([-top, 1e-310]), "float64")
    assert (found.largest, found.relative_largest, found.snr) == (INFINITE, INFINITE, -INFINITE)
    assert found.cosine == pytest.approx(-1)


def test_errors_hold_few_arrays_at_a_time():
    """Difference, magnitude, relative error, and one or two that are needed to make them."""
    rng = np.random.default_rng(2)
    truth = rng.standard_normal(2**20)
    values = truth + 1e-7
    tracemalloc.start()
    errors(values, truth, "float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * truth.nbytes


@settings(deadline=None)
@given(st.lists(numbers, max_size=300), st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.99, 1.0]))
def test_a_quantile_is_the_smallest_with_that_share_below(values, q):
    found = quantile(np.array(values), q)
    enough = [v for v in values if sum(w <= v for w in values) >= q * len(values)]
    assert found == min(enough, default=0.0)


def test_a_quantile_orders_nothing_in_place():
    values = np.array([3.0, 1.0, 2.0])
    assert quantile(values, 0.5) == 2.0
    assert values.tolist() == [3.0, 1.0, 2.0]


def test_the_99th_of_a_hundred():
    assert quantile(np.arange(1, 101.0)[::-1], 0.99) == 99.0
    assert quantile(np.arange(1, 102.0), 0.99) == 100.0


@pytest.mark.parametrize("scale", [1e300, 1.0, 1e-300, 5e-324])
def test_a_cosine_does_not_depend_on_magnitudes(scale):
    one, two = np.array([[scale, 0.0]]), np.array([[1e-300, 1e-300]])
    assert cosine(one, two) == pytest.approx(2**-0.5)
    assert cosine(one, -two) == pytest.approx(-(2**-0.5))
    assert cosine(one, np.array([[0.0, 7.0]])) == 0.0


def test_a_cosine_is_never_outside_its_range():
    rng = np.random.default_rng(3)
    for vector in rng.standard_normal((200, 3)):
        assert -1.0 <= cosine(vector, -3 * vector) <= -1 + 1e-12
        assert 1 - 1e-12 <= cosine(vector, vector) <= 1.0


@pytest.mark.parametrize(
    "two", [np.zeros(3), np.array([np.inf, 0, 0]), np.array([np.nan, 1, 1])], ids=str
)
def test_some_arrays_have_no_direction(two):
    assert cosine(np.ones(3), two) is None
    assert cosine(two, np.ones(3)) is None


def test_nothing_has_no_direction():
    assert cosine(np.ones(0), np.ones(0)) is None


@pytest.mark.parametrize(
    ("signal", "noise", "wanted"),
    [(10, 1, 20), (1, 10, -20), (1e300, 1e-300, 12000), (1e-300, 1e300, -12000), (1, 1, 0),
     (0, 1, -INFINITE), (1, 0, INFINITE), (0, 0, INFINITE), (1, INFINITE, -INFINITE)],
)  # fmt: skip
def test_decibels(signal, noise, wanted):
    assert decibels(signal, noise) == pytest.approx(wanted)


def test_small_helpers_of_nothing_and_of_nan():
    none, broken = np.zeros((0, 2)), np.array([1.0, np.nan])
    assert (largest(none), mean(none), quantile(none, 0.99), rms(none)) == (0, 0, 0, 0)
    assert (largest(broken), rms(broken)) == (INFINITE, INFINITE)
    assert rms(np.array([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))
    assert rms(np.full(4, 1e300)) == pytest.approx(1e300)
    assert rms(np.zeros(3)) == 0.0
