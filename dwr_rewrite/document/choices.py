"""How every form was chosen: what was weighed for each convolution, and its times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import CHOSEN, digits, shape
from dwr_rewrite.lowerings import KEEP, is_kernel

LAYOUTS = {"nchw": "NCHW", "channels_last": "channels_last"}
"""The layouts as people write them."""


def all_of(document: Document) -> Iterator[Document]:
    """Every choice of every site."""
    return (choice for site in document["sites"] for choice in site["choices"])


@dataclass(frozen=True, slots=True)
class Weighed:
    """Sites of one size, for which the same was measured (or expected) and chosen.

    Attributes:
        sites: their names.
        spec: their geometry.
        choices: one for each direction.
        kept: why they are kept, though a form was chosen; empty where they are not.
    """

    sites: list[str]
    spec: Document | None
    choices: list[Document]
    kept: str

    @property
    def total(self) -> float:
        """Milliseconds that all of them take in the reference, as far as it is known."""
        kept = (find(choice, KEEP) for choice in self.choices)
        return len(self.sites) * sum(cost(option) or 0.0 for option in kept if option)


def weighed(document: Document) -> list[Weighed]:
    """What was weighed, each size once; what takes most time in the reference comes first."""
    groups: dict[str, Weighed] = {}
    for site in document["sites"]:
        if not site["choices"]:
            continue
        chosen = any(choice["form"] != KEEP for choice in site["choices"])
        kept = site["reason"]["reason"] if chosen and site["reason"] else ""
        key = json.dumps([site["spec"], site["choices"], kept])
        groups.setdefault(key, Weighed([], site["spec"], site["choices"], kept))
        groups[key].sites.append(site["name"])
    return sorted(groups.values(), key=lambda group: -group.total)


def find(choice: Document, form: str) -> Document | None:
    """The option of a choice that has this form."""
    return next((option for option in choice["options"] if option["form"] == form), None)


def cost(option: Document) -> float | None:
    """Milliseconds: measured, or else expected; None for a form that was not timed."""
    if option["time"]:
        return option["time"]["median"]
    return None if option["failure"] else option["predicted"]


def is_modelled(choice: Document) -> bool:
    """Whether no form was measured, and the cost model chose."""
    options = choice["options"]
    return not any(o["time"] for o in options) and any(cost(o) is not None for o in options)


def rule(document: Document) -> str:
    """How the forms were chosen."""
    return CHOSEN[all(map(is_modelled, all_of(document)))]


def shown(choice: Document) -> list[Document]:
    """The options; of the tiles of our kernels only the one that was chosen, or the fastest."""
    tiles = _tiles(choice)
    return [o for o in choice["options"] if not any(o is tile for tile in tiles[1:])]


def folded(choice: Document) -> str:
    """The tiles that are not shown: ``7 further tiles 0.12 to 0.31``; empty for none."""
    rest = _tiles(choice)[1:]
    times = [time for time in map(cost, rest) if time is not None]
    if not rest:
        return ""
    text = f"{len(rest)} further tile{'s' if len(rest) > 1 else ''}"
    if not times:
        return f"{text} not timed"
    ends = dict.fromkeys(map(digits, (min(times), max(times))))
    failed = len(rest) - len(times)
    return f"{text} {' to '.join(ends)}" + (f", {failed} not timed" if failed else "")


def _tiles(choice: Document) -> list[Document]:
    """The options that are kernels of ours: the one that was chosen, then by time."""
    return [option for option in _by_time(choice, choice["options"]) if is_kernel(option["form"])]


def ordered(choice: Document) -> list[Document]:
    """What is shown: the form that was chosen first, then by time, then what was not timed."""
    return _by_time(choice, shown(choice))


def _by_time(choice: Document, options: list[Document]) -> list[Document]:

    def key(option: Document) -> tuple[bool, bool, Any]:
        time = cost(option)
        return option["form"] != choice["form"], time is None, time or 0.0

    return sorted(options, key=key)


def window(spec: Document | None) -> str:
    """Kernel and stride."""
    return "" if spec is None else f"{shape(spec['kernel'])}, stride {shape(spec['stride'])}, on "


def sizes(found: list[Document], spec: Document | None) -> str:
    """What the choices of a site ran on; one size, unless the directions differ."""
    return "; ".join(dict.fromkeys(size(choice, spec) for choice in found))


def size(choice: Document, spec: Document | None) -> str:
    """What it ran on: input shape, element type, layout."""
    channels = [] if spec is None else [spec["channels"]]
    lengths = shape([choice["batch"], *channels, *choice["spatial"]])
    dtype = "TF32" if choice["tf32"] else choice["dtype"]
    return f"{lengths} {dtype} {LAYOUTS[choice['layout']]}"
