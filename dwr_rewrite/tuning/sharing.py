"""Shares questions out among processes, each with a device of its own.

They only meet at a store of keys and values, such as torch.distributed has: a counter in it hands
out the next questions, so that each is measured once and a fast worker takes more. Nobody waits
for all the others, as a collective would: a worker that is lost stops nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dwr_rewrite.timing import Clock
from dwr_rewrite.tuning.bench import Answer, Bench, Device, Question
from dwr_rewrite.tuning.board import Board, Store
from dwr_rewrite.tuning.tune import Memory, Progress, known, silent, tune
from dwr_rewrite.workload import Workload

PATIENCE = 120.0
"""Seconds without any answer after which a worker that has not finished is taken for lost."""


def share(
    questions: Sequence[Question],
    bench: Bench,
    database: Memory | None,
    store: Store,
    *,
    rank: int,
    workers: int,
    budget: float,
    progress: Progress = silent,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    patience: float = PATIENCE,
) -> dict[Workload, Answer]:
    """Like :func:`~dwr_rewrite.tuning.tune.tune`, together with other processes.

    Those that ask the same of an equal device share the work. One of them is their head: rank 0,
    or the first to come where the device is another than that of rank 0. What the head's database
    holds is not measured. Every answer goes to the database of the process that measured it at
    once, and through the store to that of the head, which may lie on another disk. In the end the
    head waits for the others, as long as answers come in, and measures what a lost worker has
    left, if there is time.

    Args:
        questions: what is asked; the same in every process.
        bench: this process's own device.
        database: where its answers go; None for nowhere.
        store: empty at first, and the same for every process.
        rank: number of this process.
        workers: how many there are.
        budget: seconds for measuring; what runs when they end is finished.
        progress: told what is measured, and how many questions are answered by anybody.
        clock: what the budget is measured by.
        sleep: how a process waits.
        patience: seconds without any answer after which the head stops waiting.

    Returns:
        What this process knows; in a head that is everything.

    Raises:
        DwrError: as from ``tune``, or the store or the head is lost; what was measured is in the
            database.
    """
    board = Board(store, bench.device, questions, clock, sleep)
    memory = _Telling(board, database)
    answers = known(questions, bench.device, database)

    def ask(some: Sequence[Question]) -> None:
        left = deadline - clock()
        answers.update(tune(some, bench, memory, budget=left, progress=tell, clock=clock))

    def tell(what: str, done: int = 0, total: int = 0) -> None:
        progress(what, len(questions) - len(todo) + board.count("answered"), len(questions))

    with board.working():
        is_head = board.elect(rank)
        if is_head:
            board.open(i for i, q in enumerate(questions) if q.workload not in answers)
        todo = board.todo()
        deadline = clock() + budget
        while clock() < deadline and (part := board.take(todo, workers)):
            ask(part)
    if is_head:
        board.wait(workers, patience)
        for question, answer in board.answers(todo):
            answers[answer.workload] = answer
            if database is not None and database.get(bench.device, question) is None:
                database.put(bench.device, answer)  # it was measured with another database
        ask([question for question in questions if question.workload not in answers])
    return answers


@dataclass(frozen=True)
class _Telling:
    """A memory that tells the others what it remembers or stores."""

    board: Board
    database: Memory | None

    def get(self, device: Device, question: Question) -> Answer | None:
        found = None if self.database is None else self.database.get(device, question)
        if found is not None:
            self.board.tell(found)
        return found

    def put(self, device: Device, answer: Answer) -> None:
        if self.database is not None:
            self.database.put(device, answer)
        self.board.tell(answer)
