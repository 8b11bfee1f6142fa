"""The choice for every site."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import KEEP, lower
from dwr_rewrite.planner.choice import Choice
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Direction

Source = Literal["measured", "modelled", "nothing"]


@dataclass(frozen=True, slots=True)
class Basis:
    """What a plan rests on.

    Attributes:
        source: times of the device, a cost model for it, or nothing: then everything is kept.
        sentence: for a person; names the device, and says what to do where there is none.
    """

    source: Source
    sentence: str


@dataclass(frozen=True)
class Plan:
    """A form for every site and direction; a :class:`~dwr_rewrite.planner.Chooser`.

    Attributes:
        basis: what it rests on.
        choices: of every site that was weighed, by its name; one for each direction that counts.
        left: why a site was not weighed, by its name.
        dropped: sites whose forms were taken back, because the whole model was not faster.
    """

    basis: Basis
    choices: Mapping[str, tuple[Choice, ...]] = field(
        default_factory=dict[str, "tuple[Choice, ...]"]
    )
    left: Mapping[str, Rejection] = field(default_factory=dict[str, Rejection])
    dropped: frozenset[str] = frozenset()

    def recipe(self, name: str, spec: ConvSpec, direction: Direction) -> Recipe | Rejection:
        """The recipe of a site in one direction, or why it is kept."""
        if self.basis.source == "nothing":
            return Rejection("not-measured", self.basis.sentence)
        if name not in self.choices:
            return self.left.get(name, Rejection("not-measured", "it was not measured"))
        if name in self.dropped:
            return Rejection("not-faster", "with it the whole model was not faster")
        choice = next((c for c in self.choices[name] if c.workload.direction == direction), None)
        if choice is None or choice.form == KEEP:
            return Rejection("not-faster", f"no other form is faster ({self.basis.source})")
        return lower(spec, choice.form)

    @property
    def gains(self) -> Mapping[str, float]:
        """Seconds that each rewritten site saves in all its directions together."""
        return {
            name: sum(choice.gain for choice in choices)
            for name, choices in self.choices.items()
            if name not in self.dropped and any(choice.form != KEEP for choice in choices)
        }

    def without(self, names: Collection[str]) -> Plan:
        """The same plan, with these sites kept."""
        return replace(self, dropped=self.dropped | frozenset(names))
