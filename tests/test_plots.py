"""The plots: every one is whole SVG, in the page's colours, and the same each time."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from dwr_rewrite import html, markdown
from dwr_rewrite.document import choices, wording
from dwr_rewrite.document.reading import Document, parse, printable
from dwr_rewrite.plots import outputs, times, training
from dwr_rewrite.plots.decades import Decades
from dwr_rewrite.plots.plot import Plot, relative
from dwr_rewrite.plots.svg import REFERENCE, draw
from tests.reports import REPORTS, document

VARIABLES = {"--reference", "--candidate", "--text", "--muted", "--line", "--bad"}


def drawn(found: Document) -> list[Plot]:
    found = printable(found)  # as the page shows it
    return [*outputs.plots(found), *times.plots(found), *training.plots(found)]


def problems(plot: Plot) -> list[str]:
    """What is wrong with the SVG of a plot."""
    try:
        root = ET.fromstring(plot.svg)
    except ET.ParseError as error:
        return [f"not well-formed: {error}"]
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    used = re.findall(r'(?:url\(|href=")#([^")]+)', plot.svg)
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", plot.svg)) - {"none"}
    foreign = colours - {f"var({name})" for name in VARIABLES}
    return [
        *(["no label"] if not root.get("aria-label") or root.get("role") != "img" else []),
        *(["an id twice"] if len(ids) != len(set(ids)) else []),
        *(f"id {name!r} of another plot" for name in ids if not (name or "").startswith(plot.name)),
        *(f"{name!r} leads nowhere" for name in set(used) - set(ids)),
        *(f"colour {colour}" for colour in foreign),
        *(["a font of its own"] if "font-family" in plot.svg else []),
        *(["a style for the whole page"] if "<style" in plot.svg else []),
        *(f"{v} in a path" for v in ("nan", "inf") if re.search(rf'[ "]-?{v}\b', _paths(root))),
    ]  # fmt: skip


def _paths(root: ET.Element) -> str:
    return " ".join(element.get("d", "") for element in root.iter())


@pytest.mark.parametrize("name", REPORTS)
def test_the_plots_of_a_report_are_whole(name):
    plots = drawn(document(name, timed=True))
    assert {plot.name: found for plot in plots if plot.svg and (found := problems(plot))} == {}
    assert all(plot.title and plot.caption for plot in plots)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("equivalent", set()),
        ("trained", set()),
        ("exact", set()),
        ("unchecked", {"plot-depth", "plot-histogram", "plot-scatter"}),
        ("broken", {"plot-depth", "plot-histogram", "plot-scatter"}),
    ],
)
def test_what_cannot_be_drawn_says_so(name, missing):
    plots = drawn(document(name, timed=True))
    assert {plot.name for plot in plots if not plot.svg} == missing
    assert all(plot.caption.startswith("Not ") for plot in plots if not plot.svg)


@cache
def timed(name: str) -> list[Plot]:
    """The plots of the times that a report has of its own."""
    return list(times.plots(document(name)))


def test_times_are_drawn_where_there_are_some():
    forms = [f"plot-forms-{n}" for n in range(times.SHOWN)]
    names = {"equivalent": [], "slower": ["plot-runtime"], "expected": forms,
             "faster": ["plot-runtime", *forms]}  # fmt: skip
    assert {name: [plot.name for plot in timed(name)] for name in names} == names


def written(plot: Plot) -> list[str]:
    """All text in a plot."""
    return [element.text or "" for element in ET.fromstring(plot.svg).iter() if element.text]


@pytest.mark.parametrize("name", ["faster", "expected", "recorded"])
def test_every_form_is_drawn_with_its_time(name):
    found = document(name)
    groups = choices.weighed(found)[: times.SHOWN]
    plots = [plot for plot in timed(name) if plot.name != "plot-runtime"]
    for group, plot in zip(groups, plots, strict=True):
        words = written(plot)
        for choice in group.choices:
            for option in choice["options"]:
                time = option["time"]["median"] if option["time"] else option["predicted"]
                told = "not timed" if option["failure"] else f"{wording.digits(time)} ms"
                assert wording.form(option["form"]) in words
                assert told in words


def test_what_a_model_expects_is_drawn_as_such():
    plot = timed("expected")[0]
    assert wording.EXPECTED in plot.caption
    told = {text for text in written(plot) if "measured" in text}
    assert told == {"expected, not measured", "forward, expected, not measured"}
    seen = set[bool]()
    for group, plot in zip(choices.weighed(document("recorded")), timed("recorded"), strict=True):
        options = [option for choice in group.choices for option in choice["options"]]
        modelled = any(option["predicted"] for option in options)
        assert any("expected" in text for text in [plot.caption, *written(plot)]) == modelled
        assert "95 % intervals" in plot.caption
        seen.add(modelled)
    assert seen == {False, True}


def test_the_culprits_are_marked():
    marked = outputs.depth(document("refuted")).svg.count("var(--bad)")
    assert marked == 1
    assert "var(--bad)" not in outputs.depth(document("equivalent")).svg


@pytest.mark.parametrize("name", ["refuted", "trained"])
def test_the_same_report_gives_the_same_plots(name):
    assert drawn(document(name, timed=True)) == drawn(document(name, timed=True))


def replaced(value: Any, number: float | str) -> Any:
    """The document with another number in place of each that may be any."""
    if isinstance(value, dict):
        fixed = ("rounding", "rule", "runtime", "choices", "edges", "seconds", "top1", "topk")
        return {k: v if k in fixed else replaced(v, number) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(child, number) for child in value]
    return number if isinstance(value, float) else value


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", 0.0, -1.0, 1e308, 5e-324])
def test_numbers_of_any_size_are_shown(number):
    damaged = json.dumps(replaced(document("trained", timed=True), number))
    found = parse(damaged, "report.json")
    assert {plot.name: p for plot in drawn(found) if plot.svg and (p := problems(plot))} == {}
    assert html.render(found).startswith("<!DOCTYPE html>")
    assert markdown.render(found).startswith("> [!TIP]")


DAMAGES = {
    "not well-formed": lambda svg: svg.replace("</svg>", ""),
    "no label": lambda svg: svg.replace('role="img"', ""),
    "an id twice": lambda svg: re.sub(r'id="(t-\w+_)\d+"', r'id="\g<1>1"', svg),
    "of another plot": lambda svg: svg.replace('id="t-axes_1"', 'id="axes_1"'),
    "leads nowhere": lambda svg: svg.replace("url(#t-", "url(#"),
    "colour #ff0000": lambda svg: svg.replace("var(--reference)", "#ff0000"),
    "a font of its own": lambda svg: svg.replace("font-size:", "font-family: Arial; font-size:"),
    "a style": lambda svg: svg.replace("</svg>", "<style>* { color: red }</style></svg>"),
    "nan in a path": lambda svg: re.sub(r'd="M [\d.]+', 'd="M nan', svg),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_plot_is_noticed(reason):
    """The twin of the test above."""

    def paint(figure: Figure) -> None:
        figure.subplots().plot([1, 2], [3, 4], color=REFERENCE)

    svg = draw("t", "a line", 2.0, paint)
    assert problems(Plot("t", "", "", svg)) == []
    assert any(reason in found for found in problems(Plot("t", "", "", DAMAGES[reason](svg))))


@pytest.mark.parametrize(
    ("values", "decades"),
    [
        ([], Decades(-1, 0)),
        ([0.0], Decades(-1, 0, zero=True)),
        ([1e-7, 3e-5], Decades(-7, -4)),
        ([1e-7], Decades(-7, -6)),
        ([math.inf, 2.0], Decades(0, 1, infinite=True)),
        ([math.nan, 0.0, 5e-324], Decades(-324, -323, zero=True, infinite=True)),
    ],
)
def test_decades_hold_their_values(values, decades):
    found = Decades.of(values)
    assert found == decades
    low, high = found.low - found.zero, found.high + found.infinite
    assert all(low <= found.place(value) <= high for value in values)


@pytest.mark.parametrize(
    ("error", "scale", "expected"),
    [(1e-6, 10.0, 1e-7), (0.0, 0.0, 0.0), (1.0, 0.0, math.inf), ("inf", 2.0, math.inf)],
)
def test_an_error_relative_to_nothing_is_infinite(error, scale, expected):
    assert relative(error, scale) == expected
