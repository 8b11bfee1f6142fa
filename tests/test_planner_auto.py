"""Choices by time: what is measured, what is modelled, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf

import pytest

from dwr_rewrite.cost import Model, find_target, load_model
from dwr_rewrite.cost.efficiency import Efficiency, Factors, Key
from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import KEEP, KERNEL, candidates, kernel
from dwr_rewrite.planner import Basis, Plan, decide
from dwr_rewrite.planner.auto import Sites, measured, modelled, nothing
from dwr_rewrite.planner.choice import by_measurement, by_model
from dwr_rewrite.spec import Site
from dwr_rewrite.timing import DECISIVE
from dwr_rewrite.tuning import Answer, Device, Question
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.recorded import Recorded
from tests.tuning.fakes import ABACUS, FakeBench, FakeClock, samples, workload

SMALL, LARGE = workload(64), workload(256)
BACK = replace(SMALL, direction="grad_input", stored=False)

# ------------------------------------------------------------------------------ one convolution


def said(failures=None, rounds=24, noise=0.0, **milliseconds: float) -> Answer:
    timings = {
        name.replace("_", ":"): samples(1e-3 * time, rounds, noise, seed)
        for seed, (name, time) in enumerate(milliseconds.items())
    }
    return Answer(SMALL, timings, failures or {})


@pytest.mark.parametrize(
    ("answer", "min_speedup", "form"),
    [
        (said(keep=2, dense=1), 1.0, "dense"),
        (said(keep=2, dense=1.5, blocks_32=1), 1.0, "blocks:32"),
        (said(keep=1, dense=2, blocks_32=3), 1.0, KEEP),  # everything is slower
        (said(keep=1, dense=1), 1.0, KEEP),  # and as fast is not faster
        (said(keep=1.04, dense=1), 1.02, "dense"),
        (said(keep=1.01, dense=1), 1.02, KEEP),  # within the margin
        (said(keep=2, dense=1), 2.0, KEEP),
        (said(keep=2, dense=1, rounds=DECISIVE - 1), 1.0, KEEP),  # too few rounds to decide
        (said(keep=2, dense=1, rounds=DECISIVE), 1.0, "dense"),
        (said(keep=1.3, dense=1, noise=0.05), 1.0, "dense"),  # the noise leaves no doubt
        (said(keep=1.02, dense=1, noise=0.2), 1.0, KEEP),  # and here it does
        (said(keep=2, blocks_32=1, failures={"dense": "out of memory"}), 1.0, "blocks:32"),
        (said(keep=1, failures={"dense": "out of memory"}), 1.0, KEEP),
        (said(failures={KEEP: "out of memory", "dense": "it took too long"}), 1.0, KEEP),
    ],
)
def test_the_fastest_form_beyond_doubt_is_taken(answer, min_speedup, form):
    choice = by_measurement(answer, min_speedup)
    assert (choice.form, choice.workload) == (form, SMALL)
    assert {option.form for option in choice.options} == {*answer.timings, *answer.failures}
    gain = 0.0 if form == KEEP else answer.timings[KEEP].median - answer.timings[form].median
    assert choice.gain == gain
    assert (gain > 0) == (form != KEEP)


def test_noise_alone_is_seldom_taken_for_speed():
    """Two equal sides: an end of a 95 % interval lies beyond 1 in 2.5 % of the cases."""
    taken = 0
    for seed in range(100):
        timings = {KEEP: samples(1e-3, 24, 0.05, 2 * seed)}
        timings["dense"] = samples(1e-3, 24, 0.05, 2 * seed + 1)
        taken += by_measurement(Answer(SMALL, timings), 1.0).form != KEEP
    assert taken <= 8  # of a binomial distribution with n = 100, p = 0.025: P(> 8) = 0.1 %


def test_an_option_carries_its_time_its_expectation_and_its_failure():
    answer = said(keep=2, dense=1, failures={"blocks:8": "it computed something else"})
    choice = by_measurement(answer, 1.0, lambda workload, form: {"dense": 3e-3}.get(form, 5e-3))
    kept, dense, failed = choice.options
    assert [option.form for option in choice.options] == [KEEP, "dense", "blocks:8"]
    assert kept.time is not None
    assert kept.time.median == pytest.approx(2.0)  # milliseconds
    assert (kept.predicted, dense.predicted) == (5.0, 3.0)
    assert (failed.time, failed.failure) == (None, "it computed something else")


@pytest.mark.parametrize(
    ("seconds", "margin", "form"),
    [
        ({KEEP: 4.0, "dense": 1.0, "blocks:8": 2.0}, 1.5, "dense"),
        ({KEEP: 1.0, "dense": 2.0, "blocks:8": 2.0}, 1.5, KEEP),
        ({KEEP: 1.5, "dense": 1.0, "blocks:8": 2.0}, 1.5, KEEP),  # the model may err by as much
        ({KEEP: 1.51, "dense": 1.0, "blocks:8": 2.0}, 1.5, "dense"),
    ],
)
def test_a_form_is_taken_by_the_model_beyond_its_error(seconds, margin, form):
    asked = Question(SMALL, tuple(seconds))
    choice = by_model(asked, lambda workload, form: seconds[form], margin)
    assert choice.form == form
    assert choice.gain == seconds[KEEP] - seconds[form]
    assert [option.predicted for option in choice.options] == [1e3 * t for t in seconds.values()]
    assert all(option.time is None for option in choice.options)


# ------------------------------------------------------------------------------- what is asked


def test_a_size_is_asked_once_and_what_counts_most_comes_first():
    sites = Sites({"a": (SMALL,), "b": (LARGE,), "c": (SMALL,), "d": (SMALL,) * 3, "e": (BACK,)})
    asked = sites.questions
    assert {q.workload for q in asked} == {SMALL, LARGE, BACK}
    assert [q.workload for q in asked] == [SMALL, LARGE, BACK]  # 5 * 64, 256, 64 channels
    assert all(q.forms == tuple(candidates(q.workload.spec)) for q in asked)
    assert all(q.forms[0] == KEEP for q in asked)


@pytest.mark.parametrize(
    ("max_growth", "forms"), [(0, {KEEP}), (256 * 9 * 4 * 31, {KEEP, "blocks:8", "blocks:16",
                                                               "blocks:32"})],
)  # fmt: skip
def test_a_weight_past_the_limit_is_not_asked_about(max_growth, forms):
    (asked,) = Sites({"a": (LARGE,)}, max_growth=max_growth).questions
    assert set(asked.forms) == forms


TILES = ("kernel:fma.c1.p128.d1.r4.v2.w4.s1", "kernel:fma.c8.p16.d1.r1.v1.w4.s1")


def with_kernels(*forms: str) -> Sites:
    return Sites({"a": (SMALL,)}, kernels=lambda workload: forms)


def test_kernels_are_asked_about_after_the_others_and_only_where_they_run():
    (asked,) = with_kernels(*TILES).questions
    assert asked.forms == (*candidates(SMALL.spec), *TILES)
    (asked,) = Sites({"a": (SMALL,)}).questions
    assert asked.forms == tuple(candidates(SMALL.spec))


def test_the_fastest_tile_is_taken_and_named():
    sites = with_kernels(*TILES)
    plan = plan_of(fast(TILES[1]), sites)
    assert plan.choices["a"][0].form == TILES[1]
    recipe = plan.recipe("a", SMALL.spec, "forward")
    assert recipe == kernel.lower(SMALL.spec, TILES[1].partition(":")[2])
    (decision,) = decide([Site("a", "conv", SMALL.spec, "w", 4)], plan, max_growth=0)
    assert (decision.form, decision.growth) == (TILES[1], 0)


SLOW_KEEP = {Key(KEEP): Factors(0.01, 0.01)}
FITTED = SLOW_KEEP | {Key(KERNEL): Factors(0.9, 0.9)}


@pytest.mark.parametrize(("factors", "weighed"), [({}, False), (SLOW_KEEP, False), (FITTED, True)])
def test_a_model_weighs_a_kernel_only_where_it_was_fitted_to_some(factors, weighed):
    """Never faster by assumption: a bare roofline would take it wherever ``keep`` is slow."""
    known = {"observations": 99, "layers": 9, "median": 1.2, "p90": 1.5}
    sites = Sites({"a": (LARGE,)}, kernels=lambda workload: (KERNEL,))
    plan = modelled(sites, Model(find_target("H200"), Efficiency(factors, 2.0, known)))
    (choice,) = plan.choices["a"]
    forms = [option.form for option in choice.options]
    assert forms == [*candidates(LARGE.spec), *[KERNEL] * weighed]
    assert (choice.form == KERNEL) is weighed


# ----------------------------------------------------------------------------------- the plans


@dataclass
class Bench:
    """Takes the times of a function; every question lasts a second."""

    milliseconds: object
    clock: FakeClock = field(default_factory=FakeClock)
    device: Device = ABACUS

    def measure(self, questions) -> Iterator[Answer]:
        for asked in questions:
            self.clock.now += 1
            times = {form: samples(1e-3 * self.milliseconds(form)) for form in asked.forms}
            yield Answer(asked.workload, times)


def fast(*forms: str) -> Bench:
    return Bench(lambda form: 1.0 if form in forms else 2.0)


SITES = Sites(
    {"first": (SMALL,), "second": (LARGE,), "trained": (SMALL, BACK)},
    {"dynamic": Rejection("unknown-size", "its size is not known")},
)


def plan_of(bench, sites=SITES, database=None, **options) -> Plan:
    options = {"budget": inf, "min_speedup": 1.0, "clock": bench.clock} | options
    return measured(sites, bench, database, **options)


def forms_of(plan: Plan, sites=SITES) -> dict[str, list[str]]:
    found = {}
    for name, workloads in sites.workloads.items():
        recipes = [plan.recipe(name, w.spec, w.direction) for w in workloads]
        found[name] = [r.code if isinstance(r, Rejection) else "rewritten" for r in recipes]
    return found


def test_a_measured_plan_gives_every_site_its_fastest_form():
    plan = plan_of(fast("blocks:16"))
    assert plan.basis == Basis("measured", "measured on Abacus 9 (torch)")
    for name, workloads in SITES.workloads.items():
        for work in workloads:
            recipe = plan.recipe(name, work.spec, work.direction)
            assert recipe == candidates(work.spec)["blocks:16"]
    assert plan.recipe("dynamic", SMALL.spec, "forward") == SITES.left["dynamic"]
    assert plan.recipe("another", SMALL.spec, "forward") == Rejection(
        "not-measured", "it was not measured"
    )
    assert plan.gains == pytest.approx({"first": 1e-3, "second": 1e-3, "trained": 2e-3})


def test_on_a_device_on_which_everything_is_slower_nothing_is_rewritten():
    plan = plan_of(fast(KEEP))
    assert {code for codes in forms_of(plan).values() for code in codes} == {"not-faster"}
    assert plan.gains == {}
    assert all(option.time for choices in plan.choices.values() for option in choices[0].options)


def test_a_direction_without_a_choice_is_kept():
    plan = plan_of(fast("dense"))
    assert isinstance(plan.recipe("first", SMALL.spec, "grad_weight"), Rejection)
    assert not isinstance(plan.recipe("first", SMALL.spec, "forward"), Rejection)


def test_what_the_budget_does_not_reach_is_kept_and_said():
    bench = fast("dense")
    plan = plan_of(bench, budget=2)
    assert plan.basis.sentence == (
        "measured on Abacus 9 (torch); 1 of 3 sizes were not reached within 2 s"
    )
    assert forms_of(plan) == {
        "first": ["rewritten"], "second": ["rewritten"], "trained": ["not-measured"] * 2,
    }  # fmt: skip
    assert plan.left["trained"] == Rejection(
        "not-measured", "the time for measuring was used up before it"
    )
    nothing_at_all = plan_of(fast("dense"), budget=0)
    assert nothing_at_all.gains == {}


def test_what_was_not_recorded_is_kept_and_said(tmp_path):
    with Database.open(tmp_path / "tuning.sqlite3") as database:
        plan_of(fast("dense"), database=database, budget=2)
        plan = plan_of_recorded(database)
    assert plan.basis.sentence == "measured on Abacus 9 (torch); 1 of 3 sizes were not reached"
    assert plan.left["trained"] == Rejection("not-measured", "its size was not measured there")
    assert set(plan.gains) == {"first", "second"}


def plan_of_recorded(database) -> Plan:
    return measured(SITES, Recorded(database, ABACUS), None, budget=inf, min_speedup=1.0)


def test_a_second_run_measures_only_the_rest(tmp_path):
    with Database.open(tmp_path / "tuning.sqlite3") as database:
        plan_of(fast("dense"), database=database, budget=2)
        bench = fast("dense")
        plan = plan_of(bench, database=database)
        assert bench.clock() == 1
        assert plan == plan_of(fast("dense"))


def test_the_expectations_of_a_model_stand_beside_the_times():
    model = load_model("H200")
    plan = plan_of(fast("dense"), model=model)
    (choice,) = plan.choices["first"]
    for option in choice.options:
        assert option.time is not None
        expected = model.seconds(SMALL, candidates(SMALL.spec)[option.form])
        assert option.predicted == 1e3 * expected


def test_a_modelled_plan_says_so_and_follows_the_model():
    model = load_model("H200")
    plan = modelled(SITES, model)
    assert plan.basis == Basis("modelled", model.sentence)
    for name, workloads in SITES.workloads.items():
        for work, choice in zip(workloads, plan.choices[name], strict=True):
            seconds = {f: model.seconds(work, r) for f, r in candidates(work.spec).items()}
            best = min(seconds, key=seconds.get)
            surely = seconds[KEEP] > model.margin * seconds[best]
            assert choice.form == (best if surely else KEEP)


def test_without_a_device_everything_is_kept_with_a_reason():
    plan = nothing()
    assert plan.gains == {}
    kept = plan.recipe("first", SMALL.spec, "forward")
    assert kept == Rejection("not-measured", plan.basis.sentence)
    assert "no GPU" in plan.basis.sentence


def test_a_plan_decides_sites_like_any_policy():
    plan = plan_of(fast("blocks:16"))
    sites = [Site(name, "Conv", SMALL.spec, f"{name}.w", 4) for name in ("first", "another")]
    first, another = decide(sites, plan, max_growth=1 << 30)
    assert (first.form, another.form) == ("blocks:16", KEEP)
    assert another.kept is not None
    dropped, _ = decide(sites, plan.without(["first"]), max_growth=1 << 30)
    assert dropped.kept == Rejection("not-faster", "with it the whole model was not faster")


def test_a_plan_without_sites_keeps_its_choices_for_the_report():
    plan = plan_of(fast("dense")).without(["first"]).without(["second"])
    assert plan.dropped == {"first", "second"}
    assert set(plan.gains) == {"trained"}
    assert set(plan.choices) == set(SITES.workloads)


def test_a_convolution_that_never_runs_is_kept():
    class Failing(FakeBench):
        def measure(self, questions):
            for asked in questions:
                yield Answer(asked.workload, {}, dict.fromkeys(asked.forms, "out of memory"))

    plan = plan_of(Failing())
    assert plan.gains == {}
    assert {option.failure for option in plan.choices["first"][0].options} == {"out of memory"}
