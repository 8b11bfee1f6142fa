"""One convolution in one direction: every form that was weighed, and the one that was taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.timing import Time
from dwr_rewrite.tuning.bench import Answer, Question
from dwr_rewrite.workload import Workload

Predict = Callable[[Workload, str], float]
"""Seconds that a form is expected to take."""


@dataclass(frozen=True, slots=True)
class Option:
    """A form that a convolution could take.

    Attributes:
        form: its name.
        time: as it was measured; None where it was not.
        predicted: milliseconds that the cost model expects; None without a model.
        failure: why it was not measured, though it was tried.
    """

    form: str
    time: Time | None = None
    predicted: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a convolution becomes in one direction.

    Attributes:
        workload: the convolution.
        options: what was weighed; ``keep`` is the first.
        form: of the one that was taken.
        gain: seconds that it saves each time it runs; 0 for ``keep``.
    """

    workload: Workload
    options: tuple[Option, ...]
    form: str = KEEP
    gain: float = 0.0


def by_measurement(answer: Answer, min_speedup: float, predict: Predict | None = None) -> Choice:
    """The fastest form, of those that are faster than ``keep`` by the margin beyond doubt."""
    names = [*answer.timings, *answer.failures]
    options = tuple(
        Option(
            name,
            Time.of(answer.timings[name]) if name in answer.timings else None,
            None if predict is None else 1e3 * predict(answer.workload, name),
            answer.failures.get(name, ""),
        )
        for name in names
    )
    faster = [
        form
        for form in answer.timings
        if form != KEEP and answer.paired(form).is_faster(min_speedup)
    ]
    if not faster:
        return Choice(answer.workload, options)
    best = min(faster, key=lambda form: answer.timings[form].median)
    gain = answer.timings[KEEP].median - answer.timings[best].median
    return Choice(answer.workload, options, best, gain)


def by_model(question: Question, predict: Predict, margin: float) -> Choice:
    """The form that is expected to be fastest, if the model's error leaves no doubt of it.

    Args:
        question: the convolution and its forms.
        predict: the cost model.
        margin: how many times faster it must be expected to be.
    """
    seconds = {form: predict(question.workload, form) for form in question.forms}
    options = tuple(Option(form, predicted=1e3 * t) for form, t in seconds.items())
    best = min(seconds, key=lambda form: seconds[form])
    if seconds[KEEP] <= margin * seconds[best]:
        return Choice(question.workload, options)
    return Choice(question.workload, options, best, seconds[KEEP] - seconds[best])
