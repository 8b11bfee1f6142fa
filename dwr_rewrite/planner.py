"""Chooses a form for every site. Knows shapes and bytes only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.lowerings import blocks, dense, keep
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec, Site


@dataclass(frozen=True, slots=True)
class Policy:
    """Which form every site takes until measurement chooses: ``keep``, ``dense``, ``blocks:N``."""

    form: str
    width: int = blocks.PUBLISHED_WIDTH

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Reads ``keep``, ``dense``, ``blocks`` or ``blocks:N``.

        Raises:
            DwrError: anything else.
        """
        form, colon, number = text.partition(":")
        if form in (keep.name, dense.name) and not colon:
            return cls(form)
        if form == blocks.name and not colon:
            return cls(form)
        if form == blocks.name and number.isdecimal() and 2 <= int(number) <= 1 << 20:
            return cls(form, int(number))
        raise DwrError(
            f"policy {text!r} is not known: use keep, dense, blocks, or blocks:N with N channels "
            f"per group, 2 or more (blocks:32)"
        )

    def lower(self, spec: ConvSpec) -> Recipe | Rejection:
        """The recipe that this policy gives a convolution, or why it gives none."""
        if self.form == keep.name:
            return keep.lower(spec)
        if self.form == dense.name:
            return dense.lower(spec)
        return blocks.lower(spec, self.width)

    def __str__(self) -> str:
        """The text that :meth:`parse` reads."""
        return f"{self.form}:{self.width}" if self.form == blocks.name else self.form


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user lets a pass touch: regular expressions that are searched for in site names.

    Attributes:
        include: only sites whose name one of these finds; empty for all.
        exclude: no site whose name one of these finds.
    """

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def parse(cls, include: Iterable[str], exclude: Iterable[str]) -> Selection:
        """Compiles the expressions.

        Raises:
            DwrError: one of them is none.
        """
        return cls(_patterns("include", include), _patterns("exclude", exclude))

    def reject(self, name: str) -> Rejection | None:
        """Why the user's choice leaves this site out, or None."""
        hit = next((p for p in self.exclude if p.search(name)), None)
        if hit is not None:
            return Rejection("excluded", f"excluded by {hit.pattern!r}")
        if self.include and not any(p.search(name) for p in self.include):
            return Rejection("not-included", "no include pattern matches its name")
        return None


def _patterns(option: str, texts: Any) -> tuple[re.Pattern[str], ...]:
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise DwrError(f"{option} {texts!r}: a list of regular expressions expected")
    patterns: list[re.Pattern[str]] = []
    for text in texts:
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise DwrError(f"{option} {text!r} is not a regular expression: {error}") from None
    return tuple(patterns)


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a site.

    Attributes:
        site: the convolution.
        recipe: how it will be written; None when it is kept.
        growth: weight bytes that it adds (0 for a weight that another site already packs).
        kept: why it is kept; None when it is rewritten.
    """

    site: Site
    recipe: Recipe | None
    growth: int
    kept: Rejection | None

    @property
    def form(self) -> str:
        """``keep``, ``dense`` or ``blocks:b`` with the width that was chosen."""
        if self.recipe is None:
            return keep.name
        width = self.recipe.packing.width
        return dense.name if width == self.site.spec.channels else f"{blocks.name}:{width}"


def plan(sites: Iterable[Site], policy: Policy, max_growth: int) -> list[Decision]:
    """Decides every site in order, as long as the added weight bytes stay within ``max_growth``.

    A weight that several sites share in one form is packed, and counted, once.
    """
    packed: set[tuple[str, int]] = set()
    total = 0
    decisions: list[Decision] = []
    for site in sites:
        recipe = policy.lower(site.spec)
        if isinstance(recipe, Rejection):
            decisions.append(Decision(site, None, 0, recipe))
            continue
        if recipe.packing.width == 1:
            kept = Rejection("policy-keep", "kept by the policy")
            decisions.append(Decision(site, None, 0, kept))
            continue
        key = (site.weight, recipe.packing.width)
        growth = 0 if key in packed else recipe.packing.growth * site.weight_bytes
        if total + growth > max_growth:
            kept = Rejection("over-budget", _over_budget(growth, total, max_growth))
            decisions.append(Decision(site, None, 0, kept))
            continue
        packed.add(key)
        total += growth
        decisions.append(Decision(site, recipe, growth, None))
    return decisions


def format_bytes(count: int) -> str:
    """1536 -> ``1.5 KiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _over_budget(growth: int, total: int, limit: int) -> str:
    return (
        f"its weight would add {format_bytes(growth)} to the {format_bytes(total)} already added, "
        f"past the limit of {format_bytes(limit)}; raise it with --max-growth"
    )
