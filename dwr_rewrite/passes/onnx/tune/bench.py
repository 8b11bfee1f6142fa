"""onnxruntime as a bench: the forms of a convolution, timed in a child process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

from dwr_rewrite.passes.onnx import child
from dwr_rewrite.passes.onnx.device import JOBS, Found, look
from dwr_rewrite.passes.onnx.provider import Provider
from dwr_rewrite.tuning import Answer, Device, Question

SECONDS = 3.0
"""That one question is measured for, at most."""


@dataclass(frozen=True)
class BenchJob:
    """A job: questions to a provider.

    Attributes:
        provider: what runs them.
        questions: what is asked.
        seconds: for each measurement.
    """

    provider: Provider
    questions: Sequence[Question]
    seconds: float

    def __call__(self) -> Iterator[Answer]:
        """The answers, one by one."""
        from dwr_rewrite.passes.onnx.tune.answering import answers

        return answers(self)


@dataclass(frozen=True)
class OnnxBench:
    """A :class:`~dwr_rewrite.tuning.Bench`: models of one convolution in onnxruntime.

    Attributes:
        name: of the provider, as :func:`~dwr_rewrite.passes.onnx.providers.choose` takes it; None
            for a GPU if there is one, else the CPU, which is not the target then.
        options: for it, as onnxruntime takes them.
        timeout: seconds that one question may take, with its loading, before the child is ended.
        seconds: that it is measured for, at most.
    """

    name: str | None = None
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    timeout: float = 120.0
    seconds: float = SECONDS

    @cached_property
    def found(self) -> Found:
        """The provider and its device.

        Raises:
            DwrError: it is missing or does not load.
        """
        return look(self.name, self.options)

    @property
    def provider(self) -> Provider:
        """What runs the models."""
        return self.found.provider

    @property
    def device(self) -> Device:
        """What is measured."""
        return self.found.device

    def measure(self, questions: Sequence[Question]) -> Generator[Answer]:
        """Answers in the order of the questions, each as soon as it is there.

        Where the child crashes or takes too long, that is the answer to the question in work, and
        the rest go to another child. Closing the generator ends the child.
        """
        left = list(questions)
        while left:
            job = BenchJob(self.provider, left, self.seconds)
            try:
                with closing(child.stream(JOBS, job, self.timeout)) as pieces:
                    for answer in pieces:
                        del left[0]
                        yield answer
            except child.ChildError as error:
                lost = left.pop(0)
                why = f"the process that measured it {error}"
                yield Answer(lost.workload, {}, dict.fromkeys(lost.forms, why))
