"""Sharing out, in one process: a dictionary is the store, and workers run inside one another."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from dwr_rewrite.errors import DwrError
from dwr_rewrite.tuning.board import LARGEST_PART, PARTS_EACH, START, Board
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.sharing import share
from tests.tuning.fakes import ABACUS, FakeBench, FakeClock, answer, question, with_facts

QUESTIONS = [question(channels) for channels in range(8, 8 + 40)]
WORKLOADS = [asked.workload for asked in QUESTIONS]


class Memory(dict[str, bytes]):
    """A store."""

    def add(self, key: str, amount: int) -> int:
        total = int(super().get(key, b"0")) + amount
        super().__setitem__(key, str(total).encode())
        return total

    def set(self, key: str, value: str) -> None:
        super().__setitem__(key, value.encode())

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def board(store, questions=QUESTIONS, clock=FakeClock()) -> Board:  # noqa: B008
    return Board(store, ABACUS, questions, clock, lambda seconds: None)


def begun(store, questions=QUESTIONS):
    """A store in which rank 0 has told what there is to do."""
    assert board(store, questions).elect(0)
    board(store, questions).open(range(len(questions)))
    return store


class Lost(Memory):
    """A store that is gone after some answers."""

    def set(self, key: str, value: str) -> None:
        if len([name for name in self if self[name].startswith(b"{")]) == 3:
            raise RuntimeError("Connection reset by peer")
        super().set(key, value)


@pytest.fixture
def open_database(tmp_path):
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(Database.open(tmp_path / f"{name}.sqlite3"))


def work(store, bench, rank, database=None, workers=2, questions=QUESTIONS, **options):
    options = {"budget": 1e6, "clock": bench.clock, "patience": 5.0} | options
    options.setdefault("sleep", lambda seconds: setattr(bench.clock, "now", bench.clock() + 1))
    return share(questions, bench, database, store, rank=rank, workers=workers, **options)


def test_each_question_is_measured_once_and_a_fast_worker_takes_more(open_database):
    store, fast = Memory(), FakeBench()
    own = [open_database("slow"), open_database("fast")]

    def meanwhile(number: int) -> None:
        if number == 0:  # while the slow one measures its first question
            work(store, fast, 1, own[1])

    slow = FakeBench(before=meanwhile)
    found = work(store, slow, 0, own[0])
    assert Counter([*slow.asked, *fast.asked]) == Counter(WORKLOADS)
    part = min(len(QUESTIONS) // (PARTS_EACH * 2), LARGEST_PART)
    assert slow.asked == WORKLOADS[:part]
    assert set(found) == set(WORKLOADS)
    assert all(own[0].get(slow.device, asked) == found[asked.workload] for asked in QUESTIONS)
    assert own[1].get(fast.device, QUESTIONS[0]) is None  # only rank 0 collects


@pytest.mark.parametrize(("count", "workers", "part"), [(3, 2, 1), (40, 2, 5), (999, 2, 8)])
def test_parts_are_small_beside_the_whole(count, workers, part):
    given = []
    bench = FakeBench()
    questions = [question(channels) for channels in range(1, count + 1)]
    store = begun(Memory(), questions)
    work(store, bench, 1, workers=workers, questions=questions,
         progress=lambda what, done=0, total=0: given.append((done, total)))  # fmt: skip
    assert bench.calls == -(-count // part)
    assert given[-1] == (count, count)


def test_what_a_lost_worker_measured_is_kept_and_what_it_claimed_is_measured(open_database):
    store, common = begun(Memory()), open_database("common")

    def die(number: int) -> None:
        if number == 2:
            raise SystemExit

    dying, survivor = FakeBench(before=die), FakeBench(clock=FakeClock())
    with pytest.raises(SystemExit):
        work(store, dying, 1, open_database("elsewhere"))
    store.add("finished", -1)  # it did not come to say so
    began = survivor.clock()
    found = work(store, survivor, 0, common)
    assert dying.asked == WORKLOADS[:2]
    assert Counter([*dying.asked, *survivor.asked]) == Counter(WORKLOADS)
    assert set(found) == set(WORKLOADS)
    assert survivor.asked[-3:] == WORKLOADS[2:5]  # claimed by the lost one, at the end
    waited = survivor.clock() - began - len(survivor.asked)
    assert 5 <= waited <= 7
    assert all(common.get(survivor.device, asked) is not None for asked in QUESTIONS)


def test_a_worker_that_still_answers_is_waited_for():
    store, bench, looks = Memory(), FakeBench(), []

    def sleep(seconds: float) -> None:
        bench.clock.now += 4  # of five seconds of patience
        looks.append(seconds)
        if len(looks) < 4:
            board(store).count("answered", 1)
        elif len(looks) == 4:
            store.add("finished", 1)

    work(store, bench, 0, sleep=sleep)
    assert len(looks) == 4


def test_the_budget_ends_every_worker(open_database):
    store = begun(Memory())
    first, second = FakeBench(), FakeBench()
    work(store, second, 1, open_database("1"), budget=3)
    found = work(store, first, 0, open_database("0"), budget=3)
    assert (len(first.asked), len(second.asked)) == (3, 3)
    assert set(found) == {*first.asked, *second.asked}
    # the next run measures the rest, with a store of its own
    rest = FakeBench()
    work(Memory(), rest, 0, open_database("0"), workers=1)
    assert Counter(rest.asked) == Counter(set(WORKLOADS) - set(found))


def test_what_the_head_holds_is_given_to_nobody(open_database):
    store, mine = Memory(), open_database("0")
    other = FakeBench()
    head = FakeBench(before=lambda number: number or work(store, other, 1, open_database("1")))
    for asked in QUESTIONS[:3]:
        mine.put(ABACUS, answer(asked))
    assert set(work(store, head, 0, mine)) == set(WORKLOADS)
    assert Counter([*head.asked, *other.asked]) == Counter(WORKLOADS[3:])


def test_what_a_worker_holds_is_told_to_the_head(open_database):
    store, mine, theirs = begun(Memory()), open_database("0"), open_database("1")
    for asked in QUESTIONS[:3]:
        theirs.put(ABACUS, answer(asked))
    other, head = FakeBench(), FakeBench()
    assert set(work(store, other, 1, theirs)) == set(WORKLOADS)
    assert Counter(other.asked) == Counter(WORKLOADS[3:])
    assert set(work(store, head, 0, mine)) == set(WORKLOADS)
    assert head.asked == []
    assert mine.get(ABACUS, QUESTIONS[0]) is not None


def test_other_questions_and_other_devices_share_nothing():
    store = Memory()
    other = with_facts(driver="9")
    benches = [FakeBench(), FakeBench(device=other), FakeBench(), FakeBench(device=other)]
    work(store, benches[0], 0)
    work(store, benches[1], 1)
    work(store, benches[2], 2, questions=[*QUESTIONS[1:], question(9999)])
    work(store, benches[3], 3)
    assert [len(bench.asked) for bench in benches] == [40, 40, 40, 0]


def test_a_head_that_never_comes_is_a_sentence():
    bench = FakeBench()
    with pytest.raises(DwrError, match=f"told nothing for {START:g} s"):
        work(Memory(), bench, 1)
    assert START <= bench.clock() < START + 2


def test_a_lost_store_is_a_sentence_and_loses_nothing(open_database):
    bench, database = FakeBench(), open_database("0")
    with pytest.raises(DwrError, match=r"cannot be reached any more: Connection reset.* goes on"):
        work(begun(Lost()), bench, 1, database)
    assert len(bench.asked) == 4
    assert database.holdings()[0].answers == 4
    assert bench.closed == bench.calls


def test_ctrl_c_passes_through_and_is_told():
    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    store = begun(Memory())
    with pytest.raises(KeyboardInterrupt):
        work(store, FakeBench(before=interrupt), 1)
    assert store["finished"] == b"1"


def test_a_failure_travels_too():
    failed = replace(answer(QUESTIONS[0]), timings={}, failures={"keep": "out of memory"})
    store = begun(Memory())
    board(store).tell(failed)
    assert list(board(store).answers(QUESTIONS)) == [(QUESTIONS[0], failed)]
