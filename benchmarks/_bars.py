"""Speed-ups as bars with their intervals, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from dwr_rewrite.timing import Speedup

HEIGHT = 0.22
"""Inches of a bar."""


def write(groups: Mapping[str, Mapping[str, Speedup]], label: str, title: str, path: Path) -> str:
    """Draws a bar for each name in each group; says where it cannot."""
    if importlib.util.find_spec("matplotlib") is None:
        return "; no plot: matplotlib is missing, --merge again where it is"
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    rows = [(head, name) for head, group in groups.items() for name in group]
    figure = Figure((9, 1.6 + HEIGHT * len(rows)), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(names):
        here = [(row, groups[row[0]][name]) for row in rows if row[1] == name]
        if here:
            middles = [gain.median for _, gain in here]
            errors = [[max(g.median - g.low, 0) for _, g in here],
                      [max(g.high - g.median, 0) for _, g in here]]  # fmt: skip
            places = [rows.index(row) for row, _ in here]
            axes.barh(places, middles, xerr=errors, color=f"C{index}", label=name, capsize=2)
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(rows)), [head for head, _ in rows], fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_title(title)
    if rows:
        figure.legend(loc="outside lower center", ncols=len(names), fontsize="small")
    figure.savefig(path, dpi=110)
    return ""
