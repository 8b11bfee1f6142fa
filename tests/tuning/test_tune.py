from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.timing import Timing
from dwr_rewrite.tuning import Answer
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.recorded import Recorded
from dwr_rewrite.tuning.tune import describe, tune
from tests.tuning.fakes import ABACUS, FakeBench, answer, question, samples, with_facts, workload

QUESTIONS = [question(channels) for channels in (64, 96, 128, 160)]
WORKLOADS = [asked.workload for asked in QUESTIONS]


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "tuning.sqlite3") as opened:
        yield opened


@pytest.mark.parametrize(
    ("budget", "answered"), [(0, 0), (0.5, 1), (1, 1), (1.5, 2), (3, 3), (99, 4)]
)
def test_what_runs_when_the_budget_ends_is_finished(database, budget, answered):
    bench = FakeBench()
    found = tune(QUESTIONS, bench, database, budget=budget, clock=bench.clock)
    assert list(found) == bench.asked == WORKLOADS[:answered]
    assert bench.closed == bench.calls == (budget > 0)


def test_what_the_database_holds_is_not_measured(database):
    database.put(ABACUS, answer(QUESTIONS[1]))
    bench = FakeBench()
    found = tune(QUESTIONS, bench, database, budget=2, clock=bench.clock)
    assert bench.asked == [WORKLOADS[0], WORKLOADS[2]]
    assert set(found) == set(WORKLOADS[:3])
    again = tune(QUESTIONS[:3], FakeBench(), database, budget=0)
    assert again == found
    assert FakeBench().calls == 0


def test_nothing_is_started_where_everything_is_known(database):
    database.put(ABACUS, answer(QUESTIONS[0]))
    bench = FakeBench()
    assert len(tune(QUESTIONS[:1], bench, database, budget=9)) == 1
    assert bench.calls == 0


def test_without_a_database_everything_is_measured():
    bench = FakeBench()
    assert len(tune(QUESTIONS, bench, None, budget=9, clock=bench.clock)) == 4


def test_ctrl_c_keeps_what_was_measured(database):
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    bench = FakeBench(before=interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune(QUESTIONS, bench, database, budget=9, clock=bench.clock)
    assert bench.closed == 1
    rest = FakeBench()
    tune(QUESTIONS, rest, database, budget=9, clock=rest.clock)
    assert rest.asked == WORKLOADS[2:]


def test_ctrl_c_between_two_answers_ends_the_bench(database):
    def interrupt(what, done=0, total=0):
        if done == 1:
            raise KeyboardInterrupt

    bench = FakeBench()
    with pytest.raises(KeyboardInterrupt):
        tune(QUESTIONS, bench, database, budget=9, clock=bench.clock, progress=interrupt)
    assert bench.closed == 1
    assert database.get(ABACUS, QUESTIONS[0]) is not None


def test_an_answer_is_stored_before_the_next_question(database):
    stored = []
    bench = FakeBench(before=lambda number: stored.append(len(database.holdings())))
    tune(QUESTIONS[:2], bench, database, budget=9, clock=bench.clock)
    assert stored == [0, 1]


def test_progress_names_what_is_measured_and_counts(database):
    database.put(ABACUS, answer(QUESTIONS[0]))
    told = []
    bench = FakeBench()
    tune(QUESTIONS[:3], bench, database, budget=9, clock=bench.clock,
         progress=lambda what, done=0, total=0: told.append((what, done, total)))  # fmt: skip
    assert told == [
        (describe(WORKLOADS[1]), 1, 3), (describe(WORKLOADS[2]), 2, 3), ("all measured", 3, 3),
    ]  # fmt: skip
    assert told[0][0] == "forward of 96 channels, 3x3 on 14x14, float32 nchw, batch 1"


class Saying(FakeBench):
    """Gives one and the same answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def measure(self, questions):
        with closing(super().measure(questions)) as measured:
            for _ in measured:
                yield self.answer


FAILED = Answer(WORKLOADS[0], {}, {KEEP: "out of memory", "dense": "out of memory"})


@pytest.mark.parametrize("keep_only", [True, False])
def test_a_convolution_that_does_not_run_at_all_is_not_tried_again(database, keep_only):
    failed = replace(FAILED, failures={KEEP: "out of memory"}) if keep_only else FAILED
    bench = Saying(failed)
    assert tune(QUESTIONS[:1], bench, database, budget=9, clock=bench.clock) == {
        WORKLOADS[0]: failed
    }
    again = FakeBench()
    assert tune(QUESTIONS[:1], again, database, budget=9) == {WORKLOADS[0]: failed}
    assert again.calls == 0


GOOD = answer(QUESTIONS[0])
KEPT = samples(1e-3)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer(QUESTIONS[2]), "128 channels.*, which it was not asked"),
        (replace(GOOD, timings={**GOOD.timings, "blocks:8": KEPT}), "asked about keep, dense$"),
        (replace(GOOD, timings={KEEP: KEPT}), "with keep; it was asked about keep, dense$"),
        (replace(GOOD, timings={KEEP: KEPT, "dense": samples(1, 3)}), "found 48 and 6$"),
        (replace(GOOD, timings={KEEP: Timing((1.0,)), "dense": Timing((1.0,))}), "found 1 and 1$"),
        (replace(GOOD, timings={"dense": KEPT}, failures={KEEP: "no"}), "nothing to compare"),
        (replace(GOOD, failures={"dense": "no"}), "dense has both"),
        (replace(GOOD, timings={}), "none has either"),
        (replace(GOOD, timings={}, failures={"dense": "no"}), "it was asked about keep, dense$"),
    ],
)
def test_an_answer_to_something_else_is_refused(database, said, reason):
    with pytest.raises(DwrError, match=reason):
        tune(QUESTIONS[:1], Saying(said), database, budget=9)
    assert database.holdings() == []


def test_an_answer_that_comes_twice_is_refused(database):
    with pytest.raises(DwrError, match="or was asked once"):
        tune(QUESTIONS[:2], Saying(GOOD), database, budget=9)
    assert database.get(ABACUS, QUESTIONS[0]) == GOOD


def test_a_good_answer_is_taken(database):
    assert tune(QUESTIONS[:1], Saying(GOOD), database, budget=9) == {WORKLOADS[0]: GOOD}


def test_a_recorded_device_answers_what_it_was_asked_before(database):
    database.put(ABACUS, answer(QUESTIONS[2]))
    assert list(Recorded(database, ABACUS).measure(QUESTIONS)) == [answer(QUESTIONS[2])]
    assert list(Recorded(database, with_facts(driver="1.3")).measure(QUESTIONS)) == []
    found = tune(QUESTIONS, Recorded(database, ABACUS), None, budget=9)
    assert found == {WORKLOADS[2]: answer(QUESTIONS[2])}


def test_a_direction_and_a_batch_are_part_of_what_is_told():
    told = describe(
        workload(batch=8, direction="grad_weight", layout="channels_last", stored=False)
    )
    assert told == "grad_weight of 64 channels, 3x3 on 14x14, float32 channels_last, batch 8"
