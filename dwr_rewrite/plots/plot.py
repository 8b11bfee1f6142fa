"""What every plot is, and what all of them share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwr_rewrite.plots.svg import CANDIDATE, LINE, REFERENCE, TEXT

MODELS = (("reference", REFERENCE, "o", 1.6), ("candidate", CANDIDATE, "s", 1.0))
"""Name, colour, marker and its relative size: where both lie on one spot, both are seen."""

DASHED = (0, (4, 3))
"""Line style of what something is held against."""


LARGEST = 1e300
"""Beyond it the differences that an axis is made of overflow."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot.

    Attributes:
        name: ``id`` of its SVG.
        title: what it shows.
        caption: how to read it; what is missing where there is no SVG.
        svg: an ``<svg>`` element; empty where the report holds nothing to draw.
    """

    name: str
    title: str
    caption: str
    svg: str = ""


def shown(value: str | float) -> float:
    """A value to be drawn as it is; NaN, which is not drawn, where it is too large for that."""
    found = float(value)
    return found if abs(found) < LARGEST else math.nan


def relative(error: str | float, scale: str | float) -> float:
    """An error relative to the largest magnitude; 0 / 0 is 0."""
    found, size = float(error), float(scale)
    if size == 0:
        return 0.0 if found == 0 else math.inf
    return found / size


def legend(figure: Figure, axes: Axes) -> None:
    """Names what is drawn, above it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), labelcolor=TEXT)
    axes.tick_params(color=LINE)
