"""The smallest failing part of a set of changes."""

from __future__ import annotations

from itertools import combinations
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.equivalence.minimize import minimize


class Asked:
    """A predicate that notes what it was asked, and is asked nothing twice."""

    def __init__(self, fails):
        self.fails, self.subsets = fails, []

    def __call__(self, subset):
        assert tuple(subset) not in self.subsets
        self.subsets.append(tuple(subset))
        return self.fails({*subset})


def named(count):
    return [f"site{i}" for i in range(count)]


@settings(deadline=None)
@given(st.data(), st.integers(1, 40))
def test_a_hidden_set_is_found_exactly(data, count):
    """Where a set fails when it holds all of the hidden ones, the answer is those and in order."""
    names = named(count)
    hidden = data.draw(st.sets(st.sampled_from(names), min_size=1))
    asked = Asked(lambda subset: hidden <= subset)
    assert minimize(names, asked) == tuple(n for n in names if n in hidden)
    assert len(asked.subsets) <= count**2 + 3 * count  # the worst case


@settings(deadline=None)
@given(st.data(), st.integers(1, 12))
def test_of_several_hidden_sets_one_is_found(data, count):
    names = named(count)
    hidden = data.draw(st.lists(st.sets(st.sampled_from(names), min_size=1), min_size=1))
    found = minimize(names, Asked(lambda subset: any(one <= subset for one in hidden)))
    assert {*found} in hidden


@settings(deadline=None)
@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_nothing_can_be_left_out_of_the_answer(count, random):
    """Whatever the predicate, as long as all together fail: two mistakes may cancel."""
    names = named(count)
    parts = [frozenset(s) for n in range(1, count) for s in combinations(names, n)]
    failing = {frozenset(names), *(part for part in parts if random.random() < 0.3)}
    found = minimize(names, Asked(lambda subset: frozenset(subset) in failing))
    assert frozenset(found) in failing
    if len(found) > 1:
        assert all(frozenset(found) - {name} not in failing for name in found)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 52, 100, 1000])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_culprit_is_found_by_bisection(count, where):
    """Two questions for every halving."""
    names = named(count)
    culprit = names[int(where * count)]
    asked = Asked(lambda subset: culprit in subset)
    assert minimize(names, asked) == (culprit,)
    assert len(asked.subsets) <= 2 * ceil(log2(count)) if count > 1 else not asked.subsets


def test_all_of_them_when_each_is_needed():
    names = named(9)
    assert minimize(names, Asked(lambda subset: len(subset) == 9)) == tuple(names)


def test_nothing_of_nothing():
    asked = Asked(lambda subset: True)
    assert minimize([], asked) == ()
    assert asked.subsets == []
