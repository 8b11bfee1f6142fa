"""What happens to every site, within the room that weights may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import KEEP, form_of
from dwr_rewrite.planner.policy import Chooser
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import Site


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
        """Its name, with the width that was chosen; ``keep`` where it is kept."""
        return KEEP if self.recipe is None else form_of(self.recipe)


def decide(sites: Iterable[Site], chooser: Chooser, max_growth: int) -> list[Decision]:
    """Decides every site in order, as long as the added weight bytes stay within ``max_growth``.

    A weight that several sites share in one form is packed, and counted, once.
    """
    packed: set[tuple[str, int]] = set()
    total = 0
    decisions: list[Decision] = []
    for site in sites:
        recipe = chooser.recipe(site.name, site.spec, "forward")
        if isinstance(recipe, Rejection):
            decisions.append(Decision(site, None, 0, recipe))
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
