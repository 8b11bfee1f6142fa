"""The plots of what was observed: errors against depth, errors and values of an output."""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.figure import Figure

from dwr_rewrite.document import digest
from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import number, plural, short, superscript, times
from dwr_rewrite.plots.decades import Decades
from dwr_rewrite.plots.plot import DASHED, MODELS, Plot, legend, relative, shown
from dwr_rewrite.plots.svg import BAD, CANDIDATE, MUTED, REFERENCE, TEXT, draw


def plots(document: Document) -> Iterator[Plot]:
    """All of them."""
    yield depth(document)
    yield histogram(document)
    yield scatter(document)


def depth(document: Document) -> Plot:
    """Error of every site against its depth."""
    name, title = "plot-depth", "Error per site against depth"
    check = document["verification"]
    if not check or not check["taps"]:
        return Plot(name, title, "Not taken: the sites were not compared one by one.")
    taps = check["taps"]
    curves = [[relative(t[m]["largest"], t["scale"]) for t in taps] for m, _, _, _ in MODELS]
    unit = float(check["rounding"]["store"])
    culprits = set((check["culprits"] or {"sites": ()})["sites"])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        decades = Decades.of([*curves[0], *curves[1], unit])
        depths, size = [tap["depth"] for tap in taps], 3.5 if len(taps) <= 60 else 1.8
        for tap in taps:
            if tap["site"] in culprits:
                here = tap["depth"]
                axes.axvspan(here - 0.5, here + 0.5, color=BAD, alpha=0.25, linewidth=0)
        for (model, colour, marker, grow), curve in zip(MODELS, curves, strict=True):
            axes.plot(depths, [decades.place(v) for v in curve], marker, linestyle="-",
                      color=colour, markersize=size * grow, linewidth=0.8, label=model)  # fmt: skip
        axes.axhline(decades.place(unit), color=MUTED, linestyle=DASHED, label="u")
        decades.label(axes)
        axes.set(xlabel="depth (position among the sites)", ylabel="largest error / scale")
        axes.locator_params(axis="x", integer=True)
        legend(figure, axes)

    found = [(r, t) for t in taps if (r := digest.own(t)) is not None]
    ratio, furthest = max(found, key=lambda pair: pair[0], default=(None, taps[-1]))
    most = f" The candidate's error is furthest above the reference's at depth {furthest['depth']}"
    caption = (
        f"Largest error of each site's value, relative to its largest magnitude, on input "
        f"{short(check['tapped'])!r}; u is the rounding of one stored result."
        f"{f'{most}, {times(ratio)}.' if ratio is not None else ''}"
        f"{' The shade marks the sites that are to blame.' if culprits else ''}"
    )
    return Plot(name, title, caption, draw(name, f"{title}: {caption}", 2.8, paint))


def histogram(document: Document) -> Plot:
    """How often each error occurs."""
    name, title = "plot-histogram", "Errors of the worst output"
    picture = (document["verification"] or {}).get("picture")
    if picture is None:
        return Plot(name, title, "Not drawn: no output could be compared.")
    found = picture["histogram"]
    limit = _limit(document, picture)

    def paint(figure: Figure) -> None:
        axes, edges = figure.subplots(), found["edges"]
        axes.stairs(found["reference"], edges, fill=True, color=REFERENCE, alpha=0.45,
                    label="reference")  # fmt: skip
        axes.stairs(found["candidate"], edges, color=CANDIDATE, linewidth=1.8, label="candidate")
        if limit:
            axes.axvline(math.log10(limit), color=TEXT, linestyle=DASHED, label="tolerance")
        axes.set(xlabel="error / largest magnitude of the output", ylabel="elements")
        low, high = math.floor(axes.get_xlim()[0]), math.ceil(axes.get_xlim()[1])
        places = range(low, high + 1, math.ceil((high - low) / 6))
        axes.set_xticks(list(places), [f"10{superscript(place)}" for place in places])
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.set_ylim(0, 1.08 * max(1, *found["reference"], *found["candidate"]))
        legend(figure, axes)

    before, after = found["exact"]
    caption = (
        f"{_where(picture)}: how many elements have which error. Without any error, and not drawn: "
        f"{before:,} of the reference, {after:,} of the candidate."
    )
    return Plot(name, title, caption, draw(name, f"{title}: {caption}", 2.8, paint))


def _limit(document: Document, picture: Document) -> float | None:
    """The tolerance of the pictured comparison, relative to the output's scale."""
    for case, found in digest.compared(document):
        if (case["name"], found["output"]) == (picture["case"], picture["output"]):
            if case["engine"] == digest.DOUBLE or found["by"] != "error" or found["reason"]:
                continue
            limit = relative(found["tolerance"], found["scale"])
            return limit if 0 < limit < math.inf else None
    return None


def _where(picture: Document) -> str:
    return f"Output {short(picture['output'])!r} on input {short(picture['case'])!r}"


def scatter(document: Document) -> Plot:
    """The candidate's values over the reference's."""
    name, title = "plot-scatter", "Candidate against reference"
    picture = (document["verification"] or {}).get("picture")
    pairs = [(shown(x), shown(y)) for x, y in picture["scatter"]] if picture else []
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    if not picture or not pairs:
        return Plot(name, title, "Not drawn: no output could be compared.")
    x = [a for a, _ in pairs]
    apart = [b - a for a, b in pairs]

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        ends = [min(x), max(x)]
        above.plot(ends, ends, color=MUTED, linewidth=1)
        dots = {"marker": ".", "markersize": 3.5, "linestyle": "", "color": CANDIDATE}
        above.plot(x, [b for _, b in pairs], **dots)
        above.set_ylabel("candidate")
        below.axhline(0, color=MUTED, linewidth=1)
        below.plot(x, apart, **dots)
        below.set(xlabel="reference", ylabel="difference")
        for axes in (above, below):
            axes.locator_params(nbins=5)
        figure.align_ylabels()

    caption = (
        f"{_where(picture)}: {plural(len(pairs), 'element')}, the worst among them. Above, equal "
        f"values lie on the line; below is candidate minus reference, at most "
        f"{number(max(map(abs, apart)))}."
    )
    return Plot(name, title, caption, draw(name, f"{title}: {caption}", 2.8, paint))
