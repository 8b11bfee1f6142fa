"""Numbers and verdicts of a report as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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
