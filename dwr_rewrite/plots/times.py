"""The plots of times: of both models, and of every form that a convolution could take."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from dwr_rewrite.document import choices
from dwr_rewrite.document.choices import Weighed
from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import EXPECTED, digits, plural, short
from dwr_rewrite.document.wording import form as form_name
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.plots.plot import MODELS, Plot, legend, shown
from dwr_rewrite.plots.svg import BAD, CANDIDATE, LINE, MUTED, REFERENCE, TEXT, draw

SHOWN = 6
"""Sizes whose forms are drawn; the table has all."""

LANE = 0.2
"""Inches for one form: its text, which is 9.5/72 high, and a half of that between the lines."""

ROLES = ("depthwise", "chosen", "not chosen", "expected, not measured")
"""What a mark stands for."""

NARROWEST = 4.0
"""Ratio of the ends of a time axis at least, so that it has two of the ticks 1, 2 and 5."""


def plots(document: Document) -> Iterator[Plot]:
    """Those that the report has data for: both models, then the convolutions that take longest."""
    if document["runtime"] and document["runtime"]["measurements"]:
        yield runtime(document["runtime"])
    for place, group in enumerate(choices.weighed(document)[:SHOWN]):
        if any(choices.cost(o) for choice in group.choices for o in choice["options"]):
            yield forms(f"plot-forms-{place}", group)


def runtime(found: Document) -> Plot:
    """Times of both models."""
    name, title = "plot-runtime", "Time of both models"
    rows: Sequence[Document] = found["measurements"]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for offset, (model, colour, _, _) in zip((-0.2, 0.2), MODELS, strict=True):
            spans = [tuple(shown(r[model][k]) for k in ("low", "median", "high")) for r in rows]
            places = [place + offset for place in range(len(rows))]
            middle = [median for _, median, _ in spans]
            axes.barh(places, middle, 0.36, color=colour, alpha=0.75, label=model)
            axes.errorbar(middle, places, color=TEXT, linestyle="", capsize=2, elinewidth=1,
                          xerr=_arms(spans))  # fmt: skip
        names = [short(row["name"], 22) for row in rows]
        axes.set_yticks(range(len(rows)), names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlabel("median, ms")
        legend(figure, axes)

    caption = (
        f"Paired measurements on {short(found['device'])}; shorter is faster. A line spans the "
        f"95 % confidence interval."
    )
    height = 1.2 + 0.45 * len(rows)
    return Plot(name, title, caption, _draw(name, f"{title}: {caption}", height, paint))


def forms(name: str, group: Weighed) -> Plot:
    """Times of every form of one convolution, a panel for each direction."""
    counts = [len(choices.shown(choice)) for choice in group.choices]

    def paint(figure: Figure) -> None:
        ratios = [count + 1.2 for count in counts]
        grid = figure.subplots(len(counts), sharex=True, squeeze=False, height_ratios=ratios)
        panels: list[Axes] = list(grid[:, 0])
        for axes, choice in zip(panels, group.choices, strict=True):
            _panel(axes, choice)
        _time_axis(panels[-1], group)
        _legend(figure, panels)

    more = len(group.sites) - 1
    title = short(group.sites[0]) + (f" and {plural(more, 'site')} like it" if more else "")
    caption = " ".join(_sentences(group))
    height = 0.9 + LANE * (sum(counts) + 1.6 * len(counts))
    return Plot(name, title, caption, _draw(name, f"{title}: {caption}", height, paint))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Names every mark of all panels once."""
    pairs = [
        pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    handles = {label: handle for handle, label in pairs}
    names = [name for name in ROLES if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside upper left", ncols=2,
                  labelcolor=TEXT)  # fmt: skip


def _sentences(group: Weighed) -> Iterator[str]:
    yield f"{choices.window(group.spec)}{choices.sizes(group.choices, group.spec)}."
    if any(option["time"] for choice in group.choices for option in choice["options"]):
        yield "Dots are medians, lines their 95 % intervals."
    if any(option["predicted"] for choice in group.choices for option in choice["options"]):
        yield f"Diamonds are {EXPECTED}."
    if group.kept:
        yield f"Kept all the same: {group.kept}."


def _panel(axes: Axes, choice: Document) -> None:
    options = choices.shown(choice)
    for lane, option in enumerate(options):
        _lane(axes, lane, option, taken=option["form"] == choice["form"])
    modelled = f", {ROLES[3]}" if choices.is_modelled(choice) else ""
    axes.set_title(f"{choice['direction']}{modelled}", loc="left", fontsize=9.5, color=MUTED)
    axes.set_xscale("log")
    axes.set_ylim(len(options) - 0.4, -0.6)
    axes.set_yticks(range(len(options)), [form_name(o["form"]) for o in options],
                    parse_math=False)  # fmt: skip
    for label, option in zip(axes.get_yticklabels(), options, strict=True):
        if option["form"] == choice["form"]:
            label.set(color=TEXT, fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _lane(axes: Axes, lane: int, option: Document, *, taken: bool) -> None:
    """One form: its mark, its interval, and its time in digits at the right."""
    colour, marker, size = MUTED, "o", 4.0
    if option["form"] == KEEP:
        colour, marker, size = REFERENCE, "o", 5.0
    elif taken:
        colour, marker, size = CANDIDATE, "s", 5.5
    time, expected = option["time"], option["predicted"]
    if time:
        span = tuple(shown(time[end]) for end in ("low", "median", "high"))
        axes.errorbar([span[1]], [lane], xerr=_arms([span]), color=colour, marker=marker,
                      markersize=size, capsize=2, elinewidth=1.2, linestyle="",
                      label=ROLES[0 if option["form"] == KEEP else 1 if taken else 2])  # fmt: skip
    if expected:
        axes.plot([shown(expected)], [lane], "D", color=MUTED if time else colour, markersize=5,
                  markerfacecolor="none", label=ROLES[3])  # fmt: skip
    milliseconds = choices.cost(option)
    words = "not timed" if milliseconds is None else f"{digits(milliseconds)} ms"
    axes.text(1.02, lane, words, transform=axes.get_yaxis_transform(), va="center",
              color=BAD if milliseconds is None else TEXT if taken else MUTED,
              fontweight="bold" if taken else "normal")  # fmt: skip


def _time_axis(axes: Axes, group: Weighed) -> None:
    """Milliseconds on a logarithmic axis, with room around what is shown."""
    options = [option for choice in group.choices for option in choices.shown(choice)]
    ends = [shown(o["time"][end]) for o in options if o["time"] for end in ("low", "high")]
    ends += [shown(o["predicted"]) for o in options if o["predicted"]]
    low, high = (pick((e for e in ends if e > 0), default=1.0) for pick in (min, max))
    room = max(1.15, math.sqrt(NARROWEST / (high / low)))
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(color=LINE)
    axes.set_xlabel("ms")


def _arms(spans: Sequence[tuple[float, ...]]) -> list[list[float]]:
    """Lengths of the lines at both sides of (low, median, high)."""
    return [[max(0.0, m - low) for low, m, _ in spans], [max(0.0, h - m) for _, m, h in spans]]


def _draw(name: str, label: str, height: float, paint: Callable[[Figure], None]) -> str:
    with warnings.catch_warnings():  # it measures with its own font; the page's may have the glyph
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        return draw(name, label, height, paint)
