"""A logarithmic axis on which zero and Infinity have places of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes

from dwr_rewrite.document.wording import superscript

TICKS = 7
"""Decades that are labelled at most."""


@dataclass(frozen=True, slots=True)
class Decades:
    """Where non-negative values stand, in powers of ten.

    Attributes:
        low: exponent at the lower end.
        high: exponent at the upper end.
        zero: whether zero stands one decade below.
        infinite: whether what is not finite stands one decade above.
    """

    low: int
    high: int
    zero: bool = False
    infinite: bool = False

    @classmethod
    def of(cls, values: Iterable[float]) -> Decades:
        """The decades that hold these values; one decade at least."""
        found = list(values)
        logs = [math.log10(value) for value in found if 0 < value < math.inf]
        low, high = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (-1, 0)
        infinite = not all(value < math.inf for value in found)
        return cls(low, max(high, low + 1), any(value <= 0 for value in found), infinite)

    def place(self, value: float) -> float:
        """The exponent at which a value stands."""
        if value <= 0:
            return self.low - 1
        return math.log10(value) if value < math.inf else self.high + 1

    def label(self, axes: Axes) -> None:
        """Labels the y-axis."""
        step = max(1, math.ceil((self.high - self.low) / TICKS))
        places = list(range(self.low, self.high + 1, step))
        names = [f"10{superscript(place)}" for place in places]
        bottom, top = self.low - 1.5 * self.zero, self.high + 1.5 * self.infinite
        axes.set_yticks(
            [*places, *[self.low - 1] * self.zero, *[self.high + 1] * self.infinite],
            [*names, *["0"] * self.zero, *["Inf"] * self.infinite],
        )
        if self.high - self.low <= 3:
            between = [p + math.log10(n) for p in range(self.low, self.high) for n in range(2, 10)]
            axes.set_yticks(between, minor=True)
        axes.set_ylim(bottom - 0.1, top + 0.1)
