"""Numbers and verdicts of a report as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Number = float | str | None
"""A number of a report: Infinity and NaN are strings there, None is no number."""

NONE = "\N{EN DASH}"
"""Stands for what there is not."""

TIMES = "\N{MULTIPLICATION SIGN}"

VERDICTS = {
    "equivalent": "Equivalent",
    "not equivalent": "NOT equivalent",
    "not checked": "NOT CHECKED",
}
"""The verdicts as headings."""

CHOSEN = {
    False: "Chosen is the fastest form, where it beats the depthwise one beyond doubt.",
    True: "Chosen is the form that is expected to be fastest, where the error of the cost model "
    "leaves no doubt that it beats the depthwise one. No clock has seen these times.",
}
"""How a form is chosen: by measurement, or by a model."""

Status = Literal["faster", "slower", "alike", "kept", "alone", "modelled", "unknown"]
"""What is known about speed: of both models; that the original was kept; only of convolutions taken
alone; only what a cost model expects; nothing."""

EXPECTED = "expected by the cost model, not measured"
"""Of every time that no clock has seen."""

SPEED: dict[Status, str] = {
    "faster": "{factor} faster{interval} on {device}{against}.",
    "slower": "Slower: {factor}{interval} on {device}{against}.",
    "alike": "No difference in speed beyond doubt: {factor}{interval} on {device}{against}.",
    "kept": "The original was kept: nothing was faster beyond doubt on {device}.",
    "alone": "Speed: the convolutions were measured one by one; the two models were not.",
    "modelled": "Speed: not measured; the forms were chosen by a cost model.",
    "unknown": "Speed: not measured. Time both models on the device that will run them.",
}
"""What is known about speed, as a sentence."""

SPEED_HEADINGS: dict[Status, str] = {
    "faster": "{factor} faster",
    "slower": "Slower: {factor}",
    "alike": "As fast: {factor}",
    "kept": "Original kept",
    "alone": "Not measured",
    "modelled": "Not measured",
    "unknown": "Not measured",
}
"""The same in a few words."""


def number(value: Number) -> str:
    """Three digits or all before the point: ``0.0123``, ``3.91e-07``, ``12,345``, ``Inf``."""
    if value is None:
        return NONE
    x = float(value)
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "Inf" if x > 0 else "-Inf"
    if x == 0 or 1e-3 <= abs(x) < 999.5:
        return f"{x:.3g}"
    return f"{x:,.0f}" if 999.5 <= abs(x) < 1e5 else f"{x:.2e}"


def exact(value: Number) -> str:
    """All the digits that a float64 needs."""
    return NONE if value is None else repr(float(value))


def cosine(value: Number) -> str:
    """A cosine, with 1 minus it where it is nearly 1."""
    if value is None or not 0.999 < float(value) < 1:
        return number(value)
    return f"1 - {1 - float(value):.1e}"


def times(value: Number) -> str:
    """A factor: 0.64 and a multiplication sign."""
    return NONE if value is None else f"{number(value)}{TIMES}"


def digits(value: float) -> str:
    """Three significant digits, or all before the point: ``4.00``, ``0.0201``, ``1,235``."""
    if not 1e-4 <= value < 1e5:
        return f"{value:.2e}"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def milliseconds(found: Mapping[str, float]) -> str:
    """A time with its interval: ``4.00 ms [3.98, 4.05]``."""
    return f"{digits(found['median'])} ms [{digits(found['low'])}, {digits(found['high'])}]"


def factor(value: float) -> str:
    """How many times faster: 1.34 and a multiplication sign."""
    return f"{value:.2f}{TIMES}" if 0.095 <= value < 999.5 else times(value)


def interval(found: Mapping[str, float]) -> str:
    """Of a speedup: ``[1.31, 1.37]``."""
    return "[{}, {}]".format(*(factor(found[end]).rstrip(TIMES) for end in ("low", "high")))


def speedup(found: Mapping[str, float]) -> str:
    """With its interval."""
    return f"{factor(found['median'])} {interval(found)}"


def percent(fraction: float) -> str:
    """``5.5 %``; what is not quite all is not called 100 %, nor what is not quite none 0 %."""
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    if fraction > 0.9995 and fraction < 1:
        return "> 99.9 %"
    return f"{100 * fraction:.1f} %" if fraction >= 0.0005 else "< 0.1 %"


def count(value: int | None) -> str:
    """1234567 -> ``1.23 M``."""
    if value is None:
        return NONE
    size = float(value)
    for unit in ("", " K", " M", " G"):
        if size < 999.5:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g} T"


def plural(n: int, thing: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def short(text: str, limit: int = 60) -> str:
    """A name, without its middle where it is long."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[: half - 1]}…{text[-half:]}"


def span(values: Iterable[int]) -> str:
    """The smallest and the largest: ``1``, or ``4\N{EN DASH}32``."""
    found = list(values)
    low, high = min(found), max(found)
    return f"{low}" if low == high else f"{low}\N{EN DASH}{high}"


def shape(lengths: Sequence[int | None]) -> str:
    """Lengths with multiplication signs between them; ? for what is dynamic."""
    sizes = ["?" if n is None else str(n) for n in lengths]
    return TIMES.join(sizes) if sizes else "scalar"


def form(name: str) -> str:
    """``keep`` is the depthwise form; the others have their own names."""
    return "depthwise" if name == "keep" else name


def power(value: float) -> str:
    """A power of two as such: ``2⁻²⁴``; anything else as :func:`number` gives it."""
    mantissa, exponent = math.frexp(value)
    return f"2{superscript(exponent - 1)}" if mantissa == 0.5 else number(value)


def superscript(value: int) -> str:
    """-24 -> ``⁻²⁴``."""
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
