"""What plots and rankings are made of: agreement, histogram, scatter."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.equivalence.statistics import (
    COUNTED,
    SCATTER_POINTS,
    agreement,
    histogram,
    picture,
)

INFINITE = float("inf")


def ranked(row, k):
    return sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]


def rows_of(array):
    """The score vectors: along the last axis, or along axis 1 from rank 4 on."""
    if array.ndim <= 3:
        return [array[index] for index in product(*map(range, array.shape[:-1]))]
    rest = [n for axis, n in enumerate(array.shape) if axis != 1]
    return [array[(i, slice(None), *where)] for i, *where in product(*map(range, rest))]


@pytest.mark.parametrize("values", [3, 1000], ids=["many ties", "few ties"])
@pytest.mark.parametrize(
    "shape", [(4, 2), (3, 7), (2, 5, 6), (2, 3, 9), (2, 6, 3, 4), (1, 9, 2, 2, 3), (1, 50)], ids=str
)
def test_agreement_is_what_a_loop_finds(shape, values):
    rng = np.random.default_rng(4)
    one = rng.integers(0, values, shape).astype(float)
    two = one + rng.integers(0, max(2, values // 10), shape)
    found = agreement(one, two)
    pairs = list(zip(rows_of(one), rows_of(two), strict=True))
    k = min(5, pairs[0][0].size)
    tops = [ranked(a, 1) == ranked(b, 1) for a, b in pairs]
    shared = [len({*ranked(a, k)} & {*ranked(b, k)}) / k for a, b in pairs]
    assert (found.rows, found.k) == (len(pairs), k)
    assert found.top1 == pytest.approx(np.mean(tops))
    assert found.topk == pytest.approx(np.mean(shared))


def test_agreement_of_a_model_with_itself_is_whole_even_where_all_scores_tie():
    for scores in (np.zeros((3, 8)), np.full((1, 4, 2, 2), -0.0), np.eye(6)):
        found = agreement(scores, scores)
        assert (found.top1, found.topk) == (1.0, 1.0)


def test_a_swapped_winner_is_seen():
    one, two = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]])
    assert agreement(one, two).top1 == 0.0
    assert agreement(np.vstack([one, one]), np.vstack([one, two])).top1 == 0.5


@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (2, 3, 1), (2, 1, 4, 4), (0, 5), (2, 5, 0, 3)])
def test_what_does_not_look_like_scores_has_no_agreement(shape):
    assert agreement(np.zeros(shape), np.zeros(shape)) is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e30), max_size=60), st.lists(st.floats(0, 1e30), max_size=60))
def test_a_histogram_counts_every_element_once(one, two):
    found = histogram(np.array(one), np.array(two))
    for counts, exact, values in (
        (found.reference, found.exact[0], one), (found.candidate, found.exact[1], two)
    ):  # fmt: skip
        assert exact == sum(v == 0 for v in values)
        assert sum(counts) + exact == len(values)
        assert len(counts) == len(found.edges) - 1
    assert list(found.edges) == sorted(found.edges)


def test_a_histogram_puts_errors_where_they_belong():
    found = histogram(np.array([0.0, 2e-7, 2e-7, 9e-5]), np.array([0.02]))
    assert found.exact == (1, 0)
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (-7.0, -1.0, 25)
    where = {i: n for i, n in enumerate(found.reference) if n}
    assert where == {1: 2, 11: 1}  # log10(2e-7) = -6.7, log10(9e-5) = -4.05
    assert [i for i, n in enumerate(found.candidate) if n] == [21]  # log10(0.02) = -1.7


def test_a_histogram_of_exact_results_only():
    found = histogram(np.zeros(4), np.zeros(3))
    assert found.exact == (4, 3)
    assert sum(found.reference) == sum(found.candidate) == 0
    assert len(found.edges) == 5


def test_a_histogram_of_one_error_has_a_decade():
    found = histogram(np.full(3, 1e-3), np.zeros(1))
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (-3.0, -2.0, 5)
    assert found.reference == (3, 0, 0, 0)


def test_a_histogram_has_ends():
    found = histogram(np.array([1e-300, 1.0]), np.array([INFINITE]))
    assert (10 ** found.edges[0], 10 ** found.edges[-1]) == pytest.approx(COUNTED)
    assert (found.reference[0], found.candidate[-1]) == (1, 1)


@pytest.mark.parametrize("size", [1, 7, SCATTER_POINTS, SCATTER_POINTS + 1, 100_003])
def test_a_scatter_holds_few_pairs_and_the_worst(size):
    rng = np.random.default_rng(5)
    truth = rng.standard_normal(size)
    reference, candidate = truth + 1e-7, truth + 1e-7
    worst = size * 2 // 3
    candidate[worst] += 0.5
    found = picture("y", "normal", reference, candidate, truth)
    assert (found.output, found.case) == ("y", "normal")
    assert (reference[worst], candidate[worst]) in found.scatter
    assert min(size, SCATTER_POINTS // 2) <= len(found.scatter) <= SCATTER_POINTS + 1
    assert {*found.scatter} <= {*zip(reference.tolist(), candidate.tolist(), strict=True)}


def test_a_picture_is_relative_to_the_largest_truth():
    truth = np.array([[0.0, -200.0]])
    found = picture("y", "normal", truth + 2.0, truth, truth)
    assert found.histogram.exact == (0, 2)
    assert found.histogram.edges[0] == -2.0


def test_a_picture_of_a_truth_of_zeros_shows_the_errors_themselves():
    zeros = np.zeros(3)
    found = picture("y", "normal", zeros, zeros + 1e-2, zeros)
    assert found.histogram.edges[0] == -2.0


@pytest.mark.parametrize("shape", [(0,), (0, 4), ()])
def test_a_picture_of_next_to_nothing(shape):
    nothing = np.zeros(shape)
    found = picture("y", "normal", nothing, nothing, nothing)
    assert found.histogram.exact == (nothing.size, nothing.size)
    assert len(found.scatter) == nothing.size


def test_a_picture_of_numbers_beyond_float64():
    top = np.array([np.finfo(np.float64).max])
    found = picture("y", "large", -top, -top, top)
    assert sum(found.histogram.candidate) == 1
    tiny = np.array([5e-324])
    assert sum(picture("y", "denormal", tiny, tiny + 1, tiny).histogram.candidate) == 1
