"""The comparison accepts every honest result and refuses every wrong one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dwr_rewrite.equivalence.comparison import Comparison, compare
from dwr_rewrite.equivalence.tolerance import TRUSTED, movement
from dwr_rewrite.equivalence.verification import Case, Verification

TRUTH = np.linspace(-1, 1, 50)
REFERENCE = (TRUTH + 1e-7).astype("f4")
EMPTY = np.zeros((0, 3), "f4")


def comparison(candidate, moved=1e-6, reference=REFERENCE, truth=TRUTH, slack=0.0) -> Comparison:
    return compare("y", reference, candidate, truth, moved, slack)


def changed(value, where=7, array=REFERENCE):
    other = array.copy()
    other[where] = value
    return other


def test_a_result_as_close_as_the_reference_passes():
    found = comparison((TRUTH - 1e-7).astype("f4"))
    assert found.passed
    assert found.telling
    assert found.reference.largest == pytest.approx(1e-7, rel=0.5)
    assert found.tolerance == pytest.approx(2 * (found.reference.largest + 1e-6))
    assert (found.scale, found.movement, found.by) == (1.0, 1e-6, "error")
    assert (found.output, found.dtype, found.shape) == ("y", "float32", (50,))
    assert found.measured == found.candidate.largest
    assert found.used == found.measured / found.tolerance
    assert found.difference.largest == pytest.approx(2e-7, rel=0.5)


WRONG = {
    "one element": lambda y: changed(y[7] + 1e-3),
    "shape": lambda y: y[:-1],
    "rank": lambda y: y[None],
    "dtype": lambda y: y.astype("f8"),
    "bfloat16": lambda y: y.astype(ml_dtypes.bfloat16),
    "empty": lambda y: y[:0],
    "nan": lambda y: changed(np.nan),
    "inf": lambda y: changed(np.inf),
    "order": lambda y: y[::-1].copy(),
    "sign": lambda y: -y,
    "zero": np.zeros_like,
    "all nan": lambda y: np.full_like(y, np.nan),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_fails(name):
    found = comparison(WRONG[name](REFERENCE))
    assert not found.passed
    assert found.used == np.inf


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (REFERENCE[:-1], "float32 [50] became float32 [49]"),
        (REFERENCE.astype("f2"), "float32 [50] became float16 [50]"),
        (REFERENCE[:0], "float32 [50] became float32 [0]"),
        (changed(np.nan, slice(3)), "3 of 50 finite values became Inf or NaN"),
    ],
)
def test_the_reason_names_what_is_wrong(candidate, reason):
    found = comparison(candidate)
    assert found.reason == reason
    assert (found.measured, found.candidate) == (np.inf, None)
    assert (found.scale, found.movement, found.tolerance) == (0.0, 0.0, 0.0)


def test_something_that_was_empty_may_not_become_something():
    assert comparison(REFERENCE, reference=REFERENCE[:0], truth=TRUTH[:0]).reason == (
        "float32 [0] became float32 [50]"
    )


def test_a_truth_of_another_shape_cannot_be_compared_with():
    assert comparison(REFERENCE, truth=TRUTH[None]).reason == (
        "float32 [50] is float64 [1, 50] in float64"
    )


@pytest.mark.parametrize("moved", [np.inf, np.nan, movement(TRUTH, [TRUTH * np.nan])])
def test_a_movement_without_bound_cannot_make_anything_pass(moved):
    found = comparison(WRONG["one element"](REFERENCE), moved)
    assert not found.tolerance < np.inf
    assert Verification((Case("normal", "numpy", (found,)),)).verdict != "equivalent"


def test_slack_is_relative_to_the_largest_truth():
    found = comparison(REFERENCE, slack=1e-3, truth=TRUTH * 4, reference=REFERENCE * 4)
    assert found.movement == pytest.approx(1e-6 + 4e-3)


def test_a_yardstick_that_the_reference_contradicts_is_not_used():
    """Otherwise a float64 evaluation that is wrong would let everything pass."""
    off = TRUTH + 0.5
    same = comparison(REFERENCE, truth=off)
    assert (same.by, same.passed, same.tolerance) == ("difference", True, pytest.approx(4e-6))
    assert same.measured == same.difference.largest == 0
    assert not comparison(WRONG["one element"](REFERENCE), truth=off).passed


def test_without_a_yardstick_the_two_models_are_compared_with_each_other():
    """Each may be off by its rounding: 2 (movement + slack), twice for luck."""
    near, far = REFERENCE + np.float32(3e-6), REFERENCE + np.float32(5e-6)
    found = comparison(near, 5e-7, truth=REFERENCE, slack=5e-7)
    assert (found.by, found.tolerance) == ("difference", pytest.approx(4e-6))
    assert (found.passed, comparison(far, 1e-6, truth=REFERENCE).passed) == (True, False)
    assert comparison(near, 5e-7, truth=REFERENCE.astype("f8"), slack=5e-7).by == "error"


@pytest.mark.parametrize(("times", "by"), [(0.99, "error"), (1.01, "difference")])
def test_the_yardstick_is_used_up_to_some_movements(times, by):
    reference = (TRUTH + times * TRUSTED * 1e-2).astype("f4")
    assert comparison(reference, 1e-2, reference).by == by


def test_what_is_not_finite_in_the_reference_is_not_compared_but_may_not_spread():
    reference = changed(np.inf, 3)
    assert comparison(reference, reference=reference).passed
    assert comparison(changed(np.nan, 3), reference=reference).passed, "overflow of float32 alone"
    spread = comparison(changed(np.nan, 4, reference), reference=reference)
    assert not spread.passed
    assert spread.reason == "1 of 49 finite values became Inf or NaN"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_finite_value_may_not_spoil_where_the_truth_is_not_finite(value):
    found = comparison(changed(np.nan), truth=changed(value, array=TRUTH))
    assert found.reason == "1 of 50 finite values became Inf or NaN"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_infinity_of_the_function_may_not_be_lost(value):
    """A mask of -Inf, say, which both evaluations of the reference give."""
    reference, truth = changed(value), changed(value, array=TRUTH)
    assert comparison(reference, reference=reference, truth=truth).passed
    for other in {7.0, np.nan, np.inf, -np.inf} - {value}:
        if not (np.isnan(other) and np.isnan(value)):
            lost = comparison(changed(other), reference=reference, truth=truth)
            assert lost.reason == "1 of 1 values that are Inf or NaN became something else"


def test_statistics_leave_out_what_is_not_finite():
    reference, truth = changed(np.inf, 0), changed(np.inf, 0, TRUTH)
    found = comparison(changed(-0.5, 7, reference), 10.0, reference, truth)
    assert found.worst.index == (7,)
    assert found.scale == 1.0
    assert found.candidate.largest == pytest.approx(-0.5 - TRUTH[7])
    assert found.agreement is None


def test_nothing_that_is_finite_tells_nothing():
    broken = np.full(3, np.nan, "f4")
    found = comparison(broken, reference=broken, truth=broken.astype("f8"))
    assert (found.passed, found.telling, found.worst) == (True, False, None)


def test_the_worst_element_is_named_with_its_values():
    truth = np.zeros((2, 3, 4))
    reference = truth.astype("f4") + np.float32(1e-6)
    candidate = reference.copy()
    candidate[1, 2, 0] = -0.25
    worst = compare("y", reference, candidate, truth, 1e-6).worst
    assert worst.index == (1, 2, 0)
    assert (worst.truth, worst.candidate) == (0.0, -0.25)
    assert worst.reference == pytest.approx(1e-6)


def test_one_number_has_a_worst_element():
    found = compare("y", np.float32(1), np.float32(1.5), np.array(1.0), 1e-6)
    assert (found.worst.index, found.worst.candidate, found.passed) == ((), 1.5, False)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_integers_have_to_be_equal(dtype):
    one = (np.arange(6) % 2).astype(dtype)
    assert compare("y", one, one, one.astype(float), 0.0).passed
    assert not compare("y", one, changed(one[3] ^ 1, 3, one), one.astype(float), 0.0).passed


def test_only_floats_are_ranked():
    scores = np.eye(3)
    assert compare("y", scores, scores, scores, 0.0).agreement.topk == 1.0
    half = scores.astype(ml_dtypes.bfloat16)
    assert compare("y", half, half, scores, 0.0).agreement.rows == 3
    ints = scores.astype("i4")
    assert compare("y", ints, ints, scores, 0.0).agreement is None


def test_empty_outputs_are_equal_and_tell_nothing():
    found = compare("y", EMPTY, EMPTY, EMPTY.astype("f8"), 0.0)
    assert (found.passed, found.telling, found.measured, found.used) == (True, False, 0.0, 0.0)


def test_an_output_of_zeros_tells_something_only_where_it_is_right():
    """A tolerance as large as the output would let zeros pass for it."""
    blind = comparison(np.zeros_like(REFERENCE), moved=2.0)
    assert (blind.passed, blind.telling) == (True, False)
    zeros = np.zeros(5, "f4")
    assert compare("y", zeros, zeros, zeros.astype("f8"), 0.0).telling


def test_a_bound_of_nothing_is_used_up_by_nothing():
    found = compare("y", np.ones(3), np.ones(3), np.ones(3), 0.0)
    assert (found.tolerance, found.used, found.passed) == (0.0, 0.0, True)
    assert compare("y", np.ones(3), np.ones(3), np.ones(3, "f8"), 0.0).by == "error"


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_extreme_numbers_are_compared(scale):
    truth = TRUTH * scale
    found = compare("y", truth, truth * (1 + 1e-12), truth, 1e-10 * scale)
    assert found.passed
    assert not compare("y", truth, truth + 1e-3 * scale, truth, 1e-10 * scale).passed
    assert not compare("y", truth, -truth * 1e8, truth, 1e-10 * scale).passed
