"""One input, and what both models made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dwr_rewrite.equivalence.comparison import Comparison, compare
from dwr_rewrite.equivalence.samples import Arrays, Shapes
from dwr_rewrite.equivalence.statistics import Array


@dataclass
class Sample:
    """One input and what came of it.

    Attributes:
        index: position in the plan.
        name: for a person.
        kind: what it is made of: a seeded kind or a given case.
        shapes: of the inputs.
        before: outputs of the reference.
        after: outputs of the candidate.
        failure: why there are none.
        exact: the float64 truth.
        moved: how far rounding moves each output.
        slack: error relative to the largest truth that is allowed besides.
        double: the sample for a comparison of both models in float64, once there was one.
    """

    index: int
    name: str
    kind: str
    shapes: Shapes
    before: Arrays = field(default_factory=dict[str, Array])
    after: Arrays = field(default_factory=dict[str, Array])
    failure: str = ""
    exact: Arrays = field(default_factory=dict[str, Array])
    moved: Mapping[str, float] = field(default_factory=dict[str, float])
    slack: float = 0.0
    double: Sample | None = None

    def comparisons(self, after: Arrays) -> Iterator[Comparison]:
        """Every output of the reference, held against outputs of another model.

        Where rounding alone can turn an output into anything, nothing can be told of it.
        """
        for name, before in self.before.items():
            if name in self.moved and not self.moved[name] < float("inf"):
                continue
            if name not in after:
                yield Comparison(name, reason="the candidate does not compute it")
                continue
            yield compare(
                name, before, after[name], self.exact[name], self.moved.get(name, 0.0), self.slack
            )

    def identical(self) -> bool:
        """Whether both models gave the same bits."""
        return self.before.keys() == self.after.keys() and all(
            before.dtype == after.dtype and before.tobytes() == after.tobytes()
            for before, after in ((self.before[name], self.after[name]) for name in self.before)
        )


def tensors(outputs: Mapping[str, Any]) -> Arrays:
    """The outputs that are arrays of real numbers: no sequences, maps, texts or complex numbers."""
    return {
        name: value
        for name, value in outputs.items()
        if isinstance(value, np.ndarray) and value.dtype.kind not in "OSUcMm"
    }


def first_line(error: BaseException | None) -> str:
    """The first line of an exception's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
