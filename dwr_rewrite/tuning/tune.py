"""Asks a device what it has not answered before, within a time."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Protocol, cast

from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.timing import Clock
from dwr_rewrite.tuning import rows
from dwr_rewrite.tuning.bench import Answer, Bench, Device, Question
from dwr_rewrite.workload import Workload


class Progress(Protocol):
    """Is told what is going on."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Something begins; ``total`` is 0 where it is not counted."""
        ...


class Memory(Protocol):
    """Keeps answers; a :class:`~dwr_rewrite.tuning.database.Database` is one."""

    def get(self, device: Device, question: Question, /) -> Answer | None:
        """The answer to a question, as far as it is there."""
        ...

    def put(self, device: Device, answer: Answer, /) -> None:
        """Keeps an answer for good."""
        ...


def silent(what: str, done: int = 0, total: int = 0) -> None:
    """The :class:`Progress` that tells nobody."""


def tune(
    questions: Sequence[Question],
    bench: Bench,
    database: Memory | None,
    *,
    budget: float,
    progress: Progress = silent,
    clock: Clock = time.monotonic,
) -> dict[Workload, Answer]:
    """The answers that are known, and those that can be had within a time.

    What the database holds is not measured again. What is measured is stored at once, so that
    Ctrl-C, which passes through, loses nothing that was measured before it.

    Args:
        questions: what is asked; the first are measured first.
        bench: the device.
        database: what it answered before, and where its answers go; None for neither.
        budget: seconds for measuring; what runs when they end is finished.
        progress: told what is measured, and how many questions are answered.
        clock: what the budget is measured by.

    Raises:
        DwrError: the bench answers something else than it was asked, or the database fails.
    """
    deadline = clock() + budget
    answers = known(questions, bench.device, database)

    def tell() -> None:
        ahead = (q.workload for q in questions if q.workload not in answers)
        progress(next(map(describe, ahead), "all measured"), len(answers), len(questions))

    tell()
    rest = [question for question in questions if question.workload not in answers]
    for answer in _measured(rest, bench, deadline, clock):
        answers[answer.workload] = answer
        if database is not None:
            database.put(bench.device, answer)
        tell()
    return answers


def known(
    questions: Sequence[Question], device: Device, database: Memory | None
) -> dict[Workload, Answer]:
    """What the database holds of the answers."""
    if database is None:
        return {}
    found = ((q.workload, database.get(device, q)) for q in questions)
    return {workload: answer for workload, answer in found if answer is not None}


def describe(workload: Workload) -> str:
    """For a person: ``grad_input of 96 channels, 3x3 on 56x56, float16 channels_last, batch 8``."""
    spec = workload.spec
    kernel, size = ("x".join(map(str, lengths)) for lengths in (spec.kernel, spec.spatial))
    return (f"{workload.direction} of {spec.channels} channels, {kernel} on {size}, {spec.dtype} "
            f"{workload.layout}, batch {workload.batch}")  # fmt: skip


def _measured(
    questions: Sequence[Question], bench: Bench, deadline: float, clock: Clock
) -> Generator[Answer]:
    """Answers, each to a question of its own, until the deadline."""
    if not questions or clock() >= deadline:
        return
    asked = {question.workload: question for question in questions}
    # By its contract it can be closed, for which Iterator has no word.
    answers = cast("Generator[Answer]", bench.measure(questions))
    try:
        for answer in answers:
            _check(bench, asked.pop(answer.workload, None), answer)
            yield answer
            if clock() >= deadline:
                return
    finally:
        answers.close()


def _check(bench: Bench, question: Question | None, answer: Answer) -> None:
    """Refuses what is no answer to a question.

    Raises:
        DwrError: it is none.
    """
    what = f"{bench.device} answered about {describe(answer.workload)}"
    if question is None:
        raise DwrError(f"{what}, which it was not asked, or was asked once")
    try:
        rows.check(answer)
    except ValueError as error:
        raise DwrError(f"{what}, but {error}") from None
    forms = {*answer.timings, *answer.failures}
    lacking = set(question.forms) - forms if answer.timings else {KEEP} - forms
    if lacking or forms - set(question.forms):
        raise DwrError(f"{what} with {', '.join(sorted(forms))}; it was asked about "
                       f"{', '.join(question.forms)}")  # fmt: skip
