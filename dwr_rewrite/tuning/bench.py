"""What is asked of a device, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.timing import Paired, Timing
from dwr_rewrite.workload import Workload


@dataclass(frozen=True)
class Device:
    """What measures.

    Attributes:
        name: of the device: ``NVIDIA H200``.
        engine: what runs on it: ``torch``, or a provider of onnxruntime.
        facts: everything besides the workload that changes an answer: the device's name, driver,
            versions of the libraries, options and flags. Clocks and temperature are no fact.
        target: whether the models are to be fast on it. A CPU is a target only where it was asked
            for: one that stands in for a missing GPU decides nothing.
    """

    name: str
    engine: str
    facts: Mapping[str, str]
    target: bool = True

    def __str__(self) -> str:
        """For a person."""
        return f"{self.name} ({self.engine})" + ("" if self.target else ", not the target")


@dataclass(frozen=True)
class Question:
    """How long every form of a convolution takes.

    Attributes:
        workload: the convolution.
        forms: names that :func:`~dwr_rewrite.lowerings.lower` reads; ``keep`` is the first.
    """

    workload: Workload
    forms: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """How long they took.

    Attributes:
        workload: the convolution.
        timings: of each form that ran, in seconds; all taken in the same rounds, two samples of
            each in every round, so that any two of them are :class:`~dwr_rewrite.timing.Paired`.
            Empty where ``keep`` did not run.
        failures: why a form has no timing: it did not run, took too much memory or time, or
            computed something else.
        state: of the device just before: clocks, power, temperature, where it tells them.
    """

    workload: Workload
    timings: Mapping[str, Timing]
    failures: Mapping[str, str] = field(default_factory=dict[str, str])
    state: Mapping[str, str] = field(default_factory=dict[str, str])

    def paired(self, form: str) -> Paired:
        """A form beside ``keep``."""
        return Paired(self.timings[KEEP], self.timings[form])


class Bench(Protocol):
    """A device that answers questions."""

    @property
    def device(self) -> Device:
        """What it is."""
        ...

    def measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answers in the order of the questions, each as soon as it is there.

        Closing the iterator ends the work at once.
        """
        ...
