"""A matplotlib figure as inline SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape

from matplotlib import style
from matplotlib.figure import Figure

REFERENCE, CANDIDATE = "#0000f1", "#0000f2"
TEXT, MUTED, LINE, BAD = "#0000f3", "#0000f4", "#0000f5", "#0000f6"
"""Colours to draw with: each stands for a CSS variable, so that one drawing suits every scheme."""

_VARIABLES = {
    REFERENCE: "--reference",
    CANDIDATE: "--candidate",
    TEXT: "--text",
    MUTED: "--muted",
    LINE: "--line",
    BAD: "--bad",
}

WIDTH = 4.2
"""Inches: at 72 units each, no wider than a phone's pixels, so that text stays readable there."""

_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "dwr",  # the same figure has the same ids
    "font.size": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINE,
    "axes.linewidth": 1,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.4,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw(name: str, label: str, height: float, paint: Callable[[Figure], None]) -> str:
    """Draws a figure.

    Args:
        name: ``id`` of the SVG, and what the ids inside begin with.
        label: what it shows, for those who do not see it.
        height: inches.
        paint: draws on the figure.

    Returns:
        An ``<svg>`` element that fills the width it is given; the same bytes for the same figure.
    """
    written = io.StringIO()
    with style.context(["default", _STYLE]):  # whatever the user's own settings are
        figure = Figure((WIDTH, height), layout="constrained")
        paint(figure)
        figure.savefig(written, format="svg", metadata=_NO_METADATA)
    return inline(written.getvalue(), name, label)


def inline(text: str, name: str, label: str) -> str:
    """An SVG file as an element of a page."""
    _, _, content = text.partition("<svg ")
    head, _, body = content.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None, "matplotlib writes a viewBox"
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)  # it is not scoped
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name), body)
    return (
        f'<svg id="{name}" role="img" aria-label="{escape(label)}" viewBox="{box[1]}">'
        f"{body.rstrip()}"
    )


def _tag(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'xlink:href="#', f'href="#{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-")
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    return re.sub("|".join(_VARIABLES), lambda colour: f"var({_VARIABLES[colour[0]]})", tag)
