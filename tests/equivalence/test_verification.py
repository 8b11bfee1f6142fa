"""The verdict: what it needs, and that every kind of evidence against it is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dwr_rewrite.equivalence.comparison import Comparison, compare
from dwr_rewrite.equivalence.evidence import Gradient, Lemma, Probe, Proof, Training
from dwr_rewrite.equivalence.statistics import errors
from dwr_rewrite.equivalence.tolerance import FACTOR, FACTOR_NEEDS, UNIT_ROUNDOFF
from dwr_rewrite.equivalence.verification import DOUBLE, Case, Verification

TRUTH = np.linspace(-1, 1, 50)
REFERENCE = (TRUTH + 1e-7).astype("f4")


def found(candidate=REFERENCE, moved=1e-6, output="y") -> Comparison:
    return compare(output, REFERENCE, candidate, TRUTH, moved)


GOOD = found()
BAD = found(REFERENCE + np.float32(1e-3))
BLIND = found(np.zeros_like(REFERENCE), moved=2.0)
EMPTY = compare("y", REFERENCE[:0], REFERENCE[:0], TRUTH[:0], 0.0)
BROKEN = np.full(3, np.nan, "f4")
UNDEFINED = compare("y", BROKEN, BROKEN, BROKEN.astype("f8"), 0.0)
PROBE = Probe("conv1", "dense", 4, 8, 4, (), 0, ())
LEMMA = Lemma("conv2", "dense", "precomputed", "proved", "the weights are equal")
OFF, NONE = (errors(np.array([1.0 + e]), np.ones(1), "float32") for e in (1e-3, 0.0))
GRADIENT = Gradient("conv3", "grad_weight", 1.0, NONE, NONE, 1e-5)


def check(*comparisons: Comparison, **rest) -> Verification:
    return Verification((Case("normal", "numpy", comparisons),), **rest)


def refuted(detail: str) -> Proof:
    return Proof((LEMMA, replace(LEMMA, site="conv7", status="refuted", detail=detail)), 3)


VERDICTS = {
    "one good output": (check(GOOD), "equivalent"),
    "two good outputs": (check(GOOD, found(output="z")), "equivalent"),
    "told apart on another input": (check(BLIND, GOOD), "equivalent"),
    "empty on one input": (check(EMPTY, GOOD), "equivalent"),
    "one input skipped": (
        Verification((Case("large", DOUBLE, skipped="overflow"), Case("normal", "numpy", (GOOD,)))),
        "equivalent",
    ),
    "a probe without leaks": (check(GOOD, probes=(PROBE,)), "equivalent"),
    "a proof": (check(GOOD, proof=Proof((LEMMA,), 3)), "equivalent"),
    "a partial proof": (
        check(GOOD, proof=Proof((replace(LEMMA, status="unproved"),), 3, 0, ("a node more",))),
        "equivalent",
    ),
    "training": (check(GOOD, training=Training((GRADIENT,))), "equivalent"),
    "a bad output": (check(BAD), "not equivalent"),
    "a bad output among good ones": (check(GOOD, BAD, GOOD), "not equivalent"),
    "a missing output": (
        check(GOOD, Comparison("z", reason="the candidate does not compute it")), "not equivalent",
    ),
    "a candidate that does not run": (
        check(Comparison("", reason="the candidate does not run")), "not equivalent",
    ),
    "a movement without bound": (check(GOOD, found(REFERENCE + 1, np.inf)), "not equivalent"),
    "a leak": (
        check(GOOD, probes=(PROBE, replace(PROBE, leaks=((0, 5),), leaking=1))), "not equivalent",
    ),
    "a refuted lemma": (check(GOOD, proof=refuted("other weights")), "not equivalent"),
    "a gradient that is off": (
        check(GOOD, training=Training((replace(GRADIENT, candidate=OFF),))), "not equivalent",
    ),
    "a refutation without a comparison": (
        Verification((), proof=refuted("other weights")), "not equivalent",
    ),
    "nothing at all": (Verification(()), "not checked"),
    "no output": (check(), "not checked"),
    "all inputs skipped": (
        Verification((Case("large", DOUBLE, skipped="overflow"),)), "not checked",
    ),
    "a proof alone": (Verification((), proof=Proof((LEMMA,), 3)), "not checked"),
    "a tolerance as large as the output": (check(BLIND), "not checked"),
    "empty outputs only": (check(EMPTY, EMPTY), "not checked"),
    "an output that is always empty": (check(GOOD, replace(EMPTY, output="z")), "not checked"),
    "an output that is always NaN": (check(UNDEFINED), "not checked"),
    "one output of two told apart": (check(GOOD, replace(BLIND, output="z")), "not checked"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict(name):
    verification, verdict = VERDICTS[name]
    assert verification.verdict == verdict
    assert bool(verification.failures) == (verdict == "not equivalent")


LOSSES = dict(truth=(2.0, 1.0, 0.5), reference=(2.0, 1.0, 0.5), tolerance=(1e-3,) * 3)
SENTENCES = {
    "an error": (
        check(BAD), "output 'y': its error is 0.001, allowed 2.25e-06 (input 'normal', numpy)",
    ),
    "a difference": (
        check(compare("y", REFERENCE, REFERENCE + np.float32(1e-3), TRUTH + 9, 1e-6)),
        "output 'y': its difference is 0.001, allowed 4e-06 (input 'normal', numpy)",
    ),
    "a shape": (
        check(found(REFERENCE[1:])),
        "output 'y': float32 [50] became float32 [49] (input 'normal', numpy)",
    ),
    "a model that does not run": (
        check(Comparison("", reason="the candidate does not run: no kernel")),
        "the candidate does not run: no kernel (input 'normal', numpy)",
    ),
    "a leak": (
        check(GOOD, probes=(replace(PROBE, leaks=((0, 5),), leaking=1),)),
        "site 'conv1': channel 0 leaks into output channel 5",
    ),
    "leaks": (
        check(GOOD, probes=(replace(PROBE, leaks=((0, 5), (1, 6)), leaking=2),)),
        "site 'conv1': channel 0 leaks into output channel 5, and 1 more",
    ),
    "a lemma": (
        check(GOOD, proof=refuted("2 of 36 weights differ")),
        "site 'conv7': 2 of 36 weights differ",
    ),
    "a gradient": (
        check(GOOD, training=Training((GRADIENT, replace(GRADIENT, candidate=OFF)))),
        "grad_weight of 'conv3': its error is 0.001, allowed 1e-05",
    ),
    "a loss": (
        check(GOOD, training=Training((), **LOSSES, candidate=(2.0, 1.1, 7.0))),
        "the training loss is 0.1 off after step 2, allowed 0.001",
    ),
    "a loss that is not a number": (
        check(GOOD, training=Training((), **LOSSES, candidate=(float("nan"), 1.0, 0.5))),
        "the training loss is nan off after step 1, allowed 0.001",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_a_failure_is_named(name):
    verification, sentence = SENTENCES[name]
    assert verification.failures == [sentence]
    assert verification.verdict == "not equivalent"


def test_every_failure_is_told():
    everything = check(
        BAD, BAD, probes=(replace(PROBE, leaks=((0, 5),), leaking=1),), proof=refuted("no"),
        training=Training((replace(GRADIENT, candidate=OFF),)),
    )  # fmt: skip
    assert len(everything.failures) == 5


@pytest.mark.parametrize(
    ("tolerance", "passed"),
    [(OFF.largest, True), (OFF.largest / 2, False), (np.inf, False), (np.nan, False)],
)
def test_a_gradient_and_a_loss_need_a_finite_tolerance(tolerance, passed):
    """``OFF`` is the error of both."""
    assert replace(GRADIENT, candidate=OFF, tolerance=tolerance).passed == passed
    loss = Training((), (1.0,), (1.0,), (1.0 + 1e-3,), (tolerance,))
    assert loss.passed == (not loss.failures) == passed


@pytest.mark.parametrize(
    ("lemmas", "differences", "status"),
    [
        ([LEMMA], (), "proved"),
        ([], (), "proved"),
        ([LEMMA], ("a node more",), "partial"),
        ([LEMMA, replace(LEMMA, status="unproved")], (), "partial"),
        ([LEMMA, replace(LEMMA, status="refuted")], ("a node more",), "refuted"),
    ],
)
def test_the_status_of_a_proof(lemmas, differences, status):
    assert Proof(tuple(lemmas), 3, 0, differences).status == status


def test_the_worst_comparison_used_most_of_its_tolerance():
    near = found((TRUTH + 1.5e-6).astype("f4"))
    assert check(GOOD, near, GOOD).worst[1] is near
    assert check(near, BAD).worst[1] is BAD
    assert Verification(()).worst is None


def noisy(reference: float, candidate: float, moved=1e-3, scale=1.0, output="y") -> Comparison:
    """Errors of these sizes, relative to the scale."""
    truth = TRUTH * scale
    before, after = (truth + e * scale * np.cos(9 * TRUTH) for e in (reference, candidate))
    return compare(output, before, after, truth, moved * scale)


def over(*comparisons: Comparison, engine="numpy") -> Verification:
    return Verification(tuple(Case(str(i), engine, (c,)) for i, c in enumerate(comparisons)))


def test_a_candidate_with_a_larger_error_than_the_reference_fails_though_it_is_within_bounds():
    both = [noisy(1e-5, 9e-5, scale=s) for s in (1, 1e-3, 1e3, 10)]
    assert all(c.passed for c in both)
    verification = over(*both)
    assert verification.verdict == "not equivalent"
    assert verification.failures == [
        "output 'y': its error is 9 times the reference's own over 4 inputs, allowed 8"
    ]
    assert over(*[noisy(1e-5, 7e-5)] * 4).verdict == "equivalent"


def test_one_bad_input_among_good_ones_is_luck_but_not_when_it_is_very_bad():
    """Root mean squares: sqrt((3 + 20^2) / 4) = 10 > 8 > sqrt((3 + 10^2) / 4) = 5.1."""
    good = [noisy(1e-5, 1e-5)] * 3
    assert over(*good, noisy(1e-5, 10e-5)).verdict == "equivalent"
    assert over(*good, noisy(1e-5, 20e-5)).ratios[0].value == pytest.approx(10, rel=0.01)
    assert over(*good, noisy(1e-5, 20e-5)).verdict == "not equivalent"


@pytest.mark.parametrize("lost", [(0.3, 0.9), (1e-3, 0.1)], ids=["blind", "coarse"])
def test_a_badly_conditioned_input_hides_nothing_in_the_others(lost):
    """There the reference is far off itself, as where its arithmetic flushes to zero."""
    error, moved = lost
    lost = noisy(error, error, moved=moved)
    assert over(*[noisy(1e-5, 20e-5)] * 7, lost).verdict == "not equivalent"
    assert over(*[noisy(1e-5, 1e-5)] * 7, lost).verdict == "equivalent"


def test_few_inputs_decide_nothing():
    few = over(*[noisy(1e-5, 9e-5)] * (FACTOR_NEEDS - 1))
    assert few.verdict == "equivalent"
    (ratio,) = few.ratios
    assert (ratio.inputs, ratio.allowed, ratio.passed) == (FACTOR_NEEDS - 1, None, True)
    assert ratio.value == pytest.approx(9, rel=0.01)
    (ratio,) = over(*[noisy(1e-5, 9e-5)] * FACTOR_NEEDS).ratios
    assert (ratio.inputs, ratio.allowed, ratio.passed) == (FACTOR_NEEDS, FACTOR, False)
    assert replace(ratio, candidate=FACTOR * ratio.reference).passed


def test_every_output_has_its_own_ratio():
    verification = Verification(
        tuple(
            Case(str(i), "numpy", (noisy(1e-5, 2e-5), noisy(1e-5, 3e-5, output="z")))
            for i in range(4)
        )
    )
    assert [(r.output, round(r.value, 2)) for r in verification.ratios] == [("y", 2), ("z", 3)]


def test_a_reference_that_is_right_by_luck_is_taken_to_round_its_result():
    """Else no candidate could be as good; float32 rounds by 2^-24 of the largest value."""
    truth = (8 * TRUTH).astype("f4")
    candidate = truth.copy()
    candidate[-1] -= np.float32(2.0**-21)  # the largest, 8
    assert candidate[-1] == 8 - 2.0**-21
    (ratio,) = over(*[compare("y", truth, candidate, truth.astype("f8"), 1e-5)] * 4).ratios
    assert ratio.reference == pytest.approx(8 * UNIT_ROUNDOFF["float32"] / 1e-5)
    assert ratio.value == pytest.approx(1.0)


INTEGERS = compare("y", np.arange(4), np.arange(4), np.arange(4.0), 0.0)
EXACT = compare("y", TRUTH, TRUTH, TRUTH.copy(), 0.0)
ZERO = compare("y", np.zeros(4), np.zeros(4), np.zeros(4), 1e-9)
NO_TRUTH = compare("y", TRUTH, TRUTH, TRUTH, 1e-9)


@pytest.mark.parametrize(
    "verification",
    [
        over(*[noisy(1e-5, 1e-5)] * 4, engine=DOUBLE),
        over(*[INTEGERS] * 4),
        over(*[ZERO] * 4),
        over(*[EMPTY] * 4),
        over(*[EXACT] * 4),
        over(*[found(REFERENCE[1:])] * 4),
        over(*[NO_TRUTH] * 4),
    ],
    ids=["float64", "integers", "zeros", "empty", "exact", "shape", "no truth"],
)
def test_what_has_no_error_of_its_own_has_no_ratio(verification):
    assert verification.ratios == []
