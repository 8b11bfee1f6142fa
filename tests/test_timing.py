"""Statistics of times, and what is measured on devices that misbehave, all on a fake clock."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from dwr_rewrite.errors import DwrError
from dwr_rewrite.report import plain
from dwr_rewrite.timing import DECISIVE, Measurement, Paired, Runtime, Timing, measure_pair
from dwr_rewrite.timing import measure as measuring

SCHEMA = json.loads((Path(__file__).parent.parent / "dwr_rewrite/report.schema.json").read_text())


class Device:
    """A device whose clock goes on only while something runs on it.

    Args:
        factor: what the n-th call on it takes in units of the time it should take.
    """

    def __init__(self, factor: Callable[[int], float] = lambda n: 1.0) -> None:
        self.now, self.calls, self.factor = 0.0, count(), factor
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += seconds * self.factor(next(self.calls))

        return run

    def measure(self, reference: float, candidate: float, **options) -> Paired:
        calls = self.call("A", reference), self.call("B", candidate)
        return measure_pair(*calls, clock=self.clock, **{"budget": 600.0, **options})


def noise(sigma: float, outliers: float = 0.0, seed: int = 0) -> Callable[[int], float]:
    """Log-normal factors, some of them tripled."""
    rng = np.random.default_rng(seed)
    return lambda n: math.exp(sigma * rng.normal()) * (3 if rng.random() < outliers else 1)


def samples(rng: np.random.Generator, rounds: int, seconds: float = 1e-3) -> Timing:
    return Timing(tuple(seconds * np.exp(0.05 * rng.normal(size=2 * rounds))))


def pair(rng: np.random.Generator, rounds: int, ratio: float = 1.0) -> Paired:
    return Paired(samples(rng, rounds), samples(rng, rounds, 1e-3 * ratio))


# ---------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("values", "median", "variation"),
    [
        ((2.0,), 2.0, 0.0),
        ((3.0, 1.0), 2.0, math.sqrt(2) / 2),
        ((1.0, 9.0, 2.0), 2.0, math.sqrt(19) / 4),
        ((5.0, 5.0, 5.0, 5.0), 5.0, 0.0),
    ],
)
def test_median_and_variation(values, median, variation):
    timing = Timing(values)
    assert timing.median == median
    assert timing.variation == pytest.approx(variation)
    assert min(values) <= timing.interval.low <= median <= timing.interval.high <= max(values)


def test_the_interval_of_the_median_has_the_width_that_theory_gives():
    """The median of n normal values has a standard error of sqrt(pi / 2) sigma / sqrt(n)."""
    widths = []
    for seed in range(20):
        low, high = Timing(tuple(np.random.default_rng(seed).normal(100, 1, 400))).interval
        widths.append(high - low)
    expected = 2 * 1.96 * math.sqrt(math.pi / 2) / math.sqrt(400)
    # A bootstrap's own width scatters by about 20 % here, and a mean of 20 by 4 %.
    assert np.mean(widths) == pytest.approx(expected, rel=0.15)


BAD = [(), (1.0, 0.0), (-1.0,), (math.nan, 1.0), (1.0, math.inf)]


@pytest.mark.parametrize("values", BAD, ids=str)
def test_a_timing_of_impossible_samples_is_refused(values):
    with pytest.raises(DwrError, match="needs samples of more than 0 s; found"):
        Timing(values)


@pytest.mark.parametrize("counts", [(2, 4), (3, 3), (1, 2)])
def test_sides_of_different_rounds_are_refused(counts):
    with pytest.raises(DwrError, match=f"found {counts[0]} and {counts[1]}"):
        Paired(*(Timing((1.0,) * n) for n in counts))


def test_the_same_samples_give_the_same_interval_in_any_process():
    one, two = (pair(np.random.default_rng(3), 20) for _ in range(2))
    assert one.interval == two.interval == pickle.loads(pickle.dumps(one)).interval


def test_what_disturbs_whole_rounds_leaves_the_ratio_alone():
    """Every round on a device that is up to ten times slower: the ratio stays exactly 0.8."""
    slow = np.repeat(np.random.default_rng(0).uniform(1, 10, 30), 2)
    found = Paired(Timing(tuple(slow)), Timing(tuple(0.8 * slow)))
    assert found.interval == pytest.approx((0.8, 0.8))
    assert found.reference.interval.high > 1.2 * found.reference.interval.low


def wrong(rounds: int, experiments: int = 400) -> float:
    """How often an interval says of two equal sides that the candidate is faster."""
    rng = np.random.default_rng(rounds)
    return sum(pair(rng, rounds).interval.high < 1 for _ in range(experiments)) / experiments


def test_equal_sides_are_rarely_told_apart():
    """2.5 % are expected, and 400 experiments scatter by 0.8 % around that."""
    assert wrong(DECISIVE) < 0.05
    assert wrong(3) > 0.05  # which is why three rounds decide nothing


def test_few_rounds_decide_nothing():
    rng = np.random.default_rng(0)
    assert pair(rng, DECISIVE, 0.5).is_faster()
    assert not pair(rng, DECISIVE - 1, 0.5).is_faster()


@pytest.mark.parametrize(
    ("ratio", "min_speedup", "faster"),
    [
        (0.5, 1.0, True), (0.5, 1.8, True), (0.5, 2.0, False), (0.5, 2.2, False),
        (1.0, 1.0, False), (1.0, 0.9, True), (2.0, 1.0, False), (2.0, 0.4, True),
    ],
)  # fmt: skip
def test_faster_means_faster_by_more_than_the_margin(ratio, min_speedup, faster):
    assert pair(np.random.default_rng(1), 50, ratio).is_faster(min_speedup) is faster


# --------------------------------------------------------------------------------- measurement


@pytest.mark.parametrize(
    ("reference", "candidate", "factor"),
    [
        (2e-3, 2e-3, noise(0.0)),
        (2e-3, 1e-3, noise(0.02)),
        (1e-3, 2e-3, noise(0.02)),
        (2e-3, 2e-3, noise(0.1, 0.05)),
        (2e-3, 1.8e-3, noise(0.1, 0.05)),
        (5e-6, 4e-6, noise(0.02)),
        (3.0, 1.0, noise(0.02)),
    ],
)
def test_the_ratio_is_found(reference, candidate, factor):
    found = Device(factor).measure(reference, candidate)
    assert found.interval.low <= candidate / reference * 1.001
    assert found.interval.high >= candidate / reference * 0.999
    assert found.is_faster() is (candidate < reference)


def test_equal_models_are_measured_to_the_last_round_and_different_ones_are_not():
    assert Device(noise(0.02)).measure(2e-3, 2e-3, rounds=50).rounds == 50
    assert Device(noise(0.02)).measure(2e-3, 1e-3, rounds=50).rounds < 50


def test_a_round_is_a_b_b_a():
    device = Device()
    found = device.measure(2e-3, 2e-3, rounds=3)
    assert found.rounds == 3
    assert "".join(device.log).endswith("ABBA" * 3)


def test_a_device_that_slows_down_favours_nobody(monkeypatch):
    """One part in a thousand with each call, so that it ends at half its speed or less."""

    def measure() -> Paired:
        return Device(lambda n: 1 + 1e-3 * n).measure(2e-3, 2e-3, rounds=200)

    found = measure()
    assert found.reference.samples[-1] > 1.5 * found.reference.samples[0]
    assert found.ratio == pytest.approx(1, abs=1e-9)
    assert found.interval.low <= 1 <= found.interval.high
    monkeypatch.setattr(measuring, "turns", lambda count: (0, 0, 1, 1))
    assert measure().ratio > 1 + 1e-3  # two calls later


def test_slow_first_calls_are_not_measured():
    def measure(warmup: int) -> Paired:
        device = Device(lambda n: 100.0 if n < 20 else 1.0)
        return device.measure(2e-3, 2e-3, rounds=20, warmup=warmup)

    assert max(measure(10).reference.samples) == pytest.approx(2e-3)
    assert max(measure(0).reference.samples) == pytest.approx(0.2)


def test_the_warm_up_of_a_steady_device_takes_two_windows():
    """Each lasts 100 ms, which is 25 calls of 2 ms on each side."""
    device = Device()
    device.measure(2e-3, 2e-3, rounds=20)
    assert 2 + 2 * 50 <= len(device.log) - 4 * 20 <= 2 + 2 * 52


def test_the_warm_up_goes_on_while_the_times_still_fall():
    """They halve every 100 calls until they are 5 % above what they come to."""
    device = Device(lambda n: 1 + 2 ** (3 - n / 100))
    found = device.measure(2e-3, 2e-3, rounds=20, warmup=100)
    assert max(found.reference.samples) < 1.2 * 2e-3


@pytest.mark.parametrize("candidate", [1e-4, 0.3, 60.0])
def test_no_budget_is_one_round_which_decides_nothing(candidate):
    found = Device().measure(1.0, candidate, budget=0.0)
    assert found.rounds == 1
    assert found.ratio == pytest.approx(candidate)
    assert found.interval == pytest.approx((candidate, candidate))
    assert not found.is_faster()


@pytest.mark.parametrize("budget", [1.0, 10.0, 100.0])
def test_the_budget_ends_the_measurement_within_a_round(budget):
    device = Device(noise(0.2))
    device.measure(0.1, 0.1, budget=budget, rounds=10**6)
    assert budget <= device.now < budget + 2.0


def test_short_calls_are_counted_until_the_clock_resolves_them(monkeypatch):
    """A clock that ticks every 50 microseconds, and calls of a tenth of that."""

    def measure() -> Paired:
        device = Device()
        calls = device.call("A", 5e-6), device.call("B", 4e-6)
        return measure_pair(*calls, clock=lambda: 5e-5 * (device.now // 5e-5), budget=10.0)

    assert measure().ratio == pytest.approx(0.8, rel=0.1)  # 2 ticks in at least 20
    monkeypatch.setattr(measuring, "SHORTEST", 0.0)
    with pytest.raises(DwrError, match=r"found 0\.0 s"):
        measure()


def test_a_clock_that_stands_still_is_reported(monkeypatch):
    monkeypatch.setattr(measuring, "MOST_CALLS", 1 << 10)
    with pytest.raises(DwrError, match=r"1024 calls took less than 0\.001 s"):
        measure_pair(lambda: None, lambda: None, clock=lambda: 1.0)


def test_the_real_clock_goes_on():
    spins: Iterator[int] = repeat(0, 10**9)
    found = measure_pair(lambda: next(spins), lambda: next(spins), budget=0.0)
    assert found.rounds == 1


# ------------------------------------------------------------------------------------- reports


def test_a_runtime_is_what_the_schema_of_a_report_says():
    found = Runtime("a device", (Measurement.of("inference", pair(np.random.default_rng(0), 9)),))
    document = plain(found)
    schema = {"$ref": "#/$defs/runtime", "$defs": SCHEMA["$defs"]}
    jsonschema.validate(document, schema)
    (row,) = document["measurements"]
    assert row["unit"] == "ms"
    assert 0.9 < row["reference"]["low"] <= row["reference"]["median"] <= row["reference"]["high"]
    del row["unit"]
    with pytest.raises(jsonschema.ValidationError, match="'unit' is a required property"):
        jsonschema.validate(document, schema)
