"""Never slower: what remains of a plan when the whole model has been timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.planner import Basis, Choice, Plan, settle
from dwr_rewrite.timing import DECISIVE, Paired
from tests.tuning.fakes import samples, workload

GAINS = {name: place + 1.0 for place, name in enumerate("abcdefgh")}
"""Seconds that each site is said to save: `h` is the most useful one."""


def plan(gains=GAINS) -> Plan:
    choices = {name: (Choice(workload(), (), "dense", gain),) for name, gain in gains.items()}
    choices["kept"] = (Choice(workload(), (), KEEP),)
    return Plan(Basis("measured", ""), choices)


class Trial:
    """Times a model that takes 100 s, and with a plan what a function of its sites says."""

    def __init__(self, seconds: Callable[[set[str]], float], rounds: int = 24, noise: float = 0):
        self.seconds, self.rounds, self.noise = seconds, rounds, noise
        self.tried: list[str] = []

    def __call__(self, plan: Plan) -> Paired:
        sites = set(plan.gains)
        self.tried.append("".join(sorted(sites)))
        sides = (100.0, 1), (self.seconds(sites), 2)
        return Paired(*(samples(time, self.rounds, self.noise, seed) for time, seed in sides))


def sum_of_gains(sites: set[str]) -> float:
    return 100 - sum(GAINS[name] for name in sites)


def test_a_plan_that_makes_the_model_faster_stays_whole():
    trial = Trial(sum_of_gains)
    settled = settle(plan(), trial, 1.02)
    assert trial.tried == ["abcdefgh"]
    assert settled.plan == plan()
    (attempt,) = settled.attempts
    assert (attempt.sites, attempt.faster) == (8, True)
    assert attempt.pair.ratio == pytest.approx(0.64)


def test_where_everything_is_slower_nothing_remains():
    trial = Trial(lambda sites: 100 + len(sites))
    settled = settle(plan(), trial, 1.0)
    assert trial.tried == ["abcdefgh", "efgh", "gh", "h"]
    assert settled.plan.gains == {}
    assert settled.plan.dropped == set(GAINS)
    assert [(a.sites, a.faster) for a in settled.attempts] == [
        (8, False), (4, False), (2, False), (1, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spoiler", "remaining"), [("a", "efgh"), ("d", "efgh"), ("e", "gh"), ("g", "h"), ("h", "")]
)
def test_one_site_that_spoils_the_rest_is_dropped(spoiler, remaining):
    trial = Trial(lambda sites: sum_of_gains(sites) + 50 * (spoiler in sites))
    settled = settle(plan(), trial, 1.02)
    assert "".join(sorted(settled.plan.gains)) == remaining
    assert settled.attempts[-1].faster == bool(remaining)


@pytest.mark.parametrize(("seconds", "stays"), [(97.5, True), (98.5, False), (100.0, False)])
def test_the_margin_has_to_be_reached(seconds, stays):
    settled = settle(plan({"a": 1.0}), Trial(lambda sites: seconds), 1.02)
    assert bool(settled.plan.gains) == stays


@pytest.mark.parametrize(("rounds", "stays"), [(DECISIVE, True), (DECISIVE - 1, False)])
def test_few_rounds_decide_nothing(rounds, stays):
    settled = settle(plan({"a": 1.0}), Trial(lambda sites: 50.0, rounds), 1.0)
    assert bool(settled.plan.gains) == stays


def test_doubt_decides_against_the_rewrite():
    settled = settle(plan({"a": 1.0}), Trial(lambda sites: 99.0, noise=0.3), 1.0)
    assert settled.plan.gains == {}
    low, high = settled.attempts[0].pair.interval
    assert low < 1 < high


@pytest.mark.parametrize("gains", [{}, {"a": 1.0}])
def test_nothing_to_try_is_not_tried(gains):
    trial = Trial(lambda sites: 1.0)
    settled = settle(plan(gains).without(gains), trial, 1.0)
    assert (trial.tried, settled.attempts) == ([], ())


@pytest.mark.parametrize("count", range(1, 9))
def test_it_ends_after_few_trials(count):
    gains = dict(list(GAINS.items())[:count])
    trial = Trial(lambda sites: 200.0)
    settle(plan(gains), trial, 1.0)
    assert len(trial.tried) == count.bit_length()  # each trial halves what is left
    assert len(set(trial.tried)) == len(trial.tried)
