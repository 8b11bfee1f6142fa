"""What gives every site its form, and which sites may be touched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.lowerings import blocks, dense, is_kernel, keep, kernel, lower
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Direction

AUTO = "auto"
"""The policy that is no :class:`Policy`: every site takes the form that is fastest."""


class Chooser(Protocol):
    """What gives a site its form: a :class:`Policy`, or a :class:`~dwr_rewrite.planner.Plan`."""

    def recipe(self, name: str, spec: ConvSpec, direction: Direction) -> Recipe | Rejection:
        """The recipe of a site in one direction, or why it is kept."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """One form for every site.

    Attributes:
        form: ``keep``, ``dense``, ``blocks:N``, ``kernel`` or ``kernel:TILE``.
    """

    form: str

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Reads a form; ``blocks`` is the published width, ``kernel`` a heuristic tile.

        Raises:
            DwrError: anything else.
        """
        form, colon, rest = text.partition(":")
        if text in (keep.name, dense.name, kernel.name):
            return cls(text)
        if text == blocks.name:
            return cls(f"{blocks.name}:{blocks.PUBLISHED_WIDTH}")
        if form == blocks.name and rest.isdecimal() and 2 <= int(rest) <= 1 << 20:
            return cls(f"{blocks.name}:{int(rest)}")
        if form == kernel.name and colon:
            return cls(f"{kernel.name}:{_tile(rest)}")
        raise DwrError(
            f"policy {text!r} is not known: use auto, keep, dense, blocks, or blocks:N with N "
            f"channels per group, 2 or more (blocks:32); for a torch model also kernel"
        )

    @property
    def is_kernel(self) -> bool:
        """Whether it asks for a kernel of our own, which only torch models can call."""
        return is_kernel(self.form)

    def recipe(self, name: str, spec: ConvSpec, direction: Direction) -> Recipe | Rejection:
        """The recipe that this policy gives a convolution, or why it gives none."""
        if self.form == keep.name:
            return Rejection("policy-keep", "kept by the policy")
        return lower(spec, self.form, direction)

    def __str__(self) -> str:
        """The text that :meth:`parse` reads."""
        return self.form


def _tile(text: str) -> Tile:
    try:
        return Tile.parse(text)
    except ValueError as error:
        raise DwrError(f"policy '{kernel.name}:{text}': {error}") from None


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
