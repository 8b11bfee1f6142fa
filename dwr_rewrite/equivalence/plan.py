"""Which inputs are run, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from dwr_rewrite.equivalence.sample import Sample, first_line
from dwr_rewrite.equivalence.samples import KINDS, Arrays, InputError, Inputs, Shapes
from dwr_rewrite.equivalence.statistics import Array

MORE_SIZES = 2
"""Further sizes that are run where an input has dynamic lengths: another batch, another length."""

TRIES = 12
"""Sizes that are tried for them."""


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        kinds: the seeded inputs.
        shapes: wanted shapes for inputs with dynamic lengths.
        given: real inputs: case name -> input name -> array.
        seed: of the seeded inputs and of the signs of rounding errors.
        timeout: seconds that the whole check may take; then it is ended, where that is possible.
        budget: seconds after which no further input is begun; 80 % of the timeout by default.
        minimal: where to write the smallest model that still fails, if the check does.
    """

    kinds: Sequence[str] = KINDS
    shapes: Shapes = field(default_factory=dict[str, tuple[int, ...]])
    given: Mapping[str, Mapping[str, Array]] = field(default_factory=dict[str, Mapping[str, Array]])
    seed: int = 0
    timeout: float = 600.0
    budget: float | None = None
    minimal: Path | None = None

    @property
    def seconds(self) -> float:
        """The budget."""
        return 0.8 * self.timeout if self.budget is None else self.budget


class Plan:
    """The samples of one check.

    Args:
        inputs: makes them.
        settings: what to run.
        attempt: runs the reference; raises where it does not run.
    """

    def __init__(
        self, inputs: Inputs, settings: Settings, attempt: Callable[[Arrays], object]
    ) -> None:
        """Takes what there is to choose from."""
        self.inputs, self.settings, self.attempt = inputs, settings, attempt
        self.refusal = ""

    def __iter__(self) -> Iterator[Sample]:
        """The seeded kinds, the given cases, then other sizes.

        Raises:
            InputError: the reference runs on no input that was tried.
        """
        for index, (name, kind, shapes) in enumerate(self._wanted()):
            yield Sample(index, name, kind, shapes)

    def feeds(self, sample: Sample) -> Arrays:
        """The inputs of a sample, the same whenever they are asked for."""
        return self.inputs.feeds(sample.kind, sample.shapes, self.rng(sample, 0))

    def rng(self, sample: Sample, purpose: int) -> np.random.Generator:
        """Randomness that depends on nothing that ran before."""
        return np.random.default_rng([self.settings.seed, sample.index, purpose])

    def _wanted(self) -> Iterator[tuple[str, str, Shapes]]:
        sizes = self._sizes("")
        if self.settings.kinds:
            first = self._first(sizes)
            yield from ((kind, kind, first) for kind in self.settings.kinds)
        for case in self.settings.given:
            yield case, case, self._first(self._sizes(case))
        if self.settings.kinds:
            for shapes in islice(sizes, MORE_SIZES):
                text = ", ".join("x".join(map(str, shape)) for shape in shapes.values())
                yield f"normal {text}", "normal", shapes

    def _first(self, sizes: Iterator[Shapes]) -> Shapes:
        shapes = next(sizes, None)
        if shapes is None:
            raise InputError(
                f"the reference runs on no input that was tried ({self.refusal}); its inputs are "
                f"{self.inputs.describe()}: give --shape for what is dynamic, or real data with "
                f"--input"
            )
        return shapes

    def _sizes(self, case: str) -> Iterator[Shapes]:
        """Sizes that the reference runs on: the first, then one for each thing that varies."""
        found: list[Shapes] = []
        further = 0
        for shapes in self.inputs.shapes(case):
            if found and (further == TRIES or not _is_new(shapes, found)):
                continue
            further += bool(found)
            try:
                self.attempt(self.feeds(Sample(0, case, case or "normal", shapes)))
            except Exception as error:  # noqa: BLE001  a length that the network cannot take
                self.refusal = self.refusal or first_line(error)
                continue
            found.append(shapes)
            yield shapes


def _is_new(shapes: Shapes, found: Sequence[Shapes]) -> bool:
    """Whether it differs from the first in the batch or in the lengths, as none before it does."""

    def varied(other: Shapes) -> tuple[bool, bool]:
        pairs = list(zip(found[0].values(), other.values(), strict=True))
        return any(a[:1] != b[:1] for a, b in pairs), any(a[1:] != b[1:] for a, b in pairs)

    return sum(varied(shapes)) == 1 and varied(shapes) not in map(varied, found[1:])
