"""A device that is not here, as far as it has answered before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dwr_rewrite.tuning.bench import Answer, Device, Question
from dwr_rewrite.tuning.database import Database


@dataclass(frozen=True)
class Recorded:
    """A :class:`~dwr_rewrite.tuning.bench.Bench` that only reads.

    Attributes:
        database: what it reads.
        device: whose answers.
    """

    database: Database
    device: Device

    def measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """The answers that are there; the other questions are passed over."""
        for question in questions:
            answer = self.database.get(self.device, question)
            if answer is not None:
                yield answer
