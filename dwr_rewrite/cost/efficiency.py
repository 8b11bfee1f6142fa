"""How much of its peaks a device reaches, by what it runs: factors that measurements gave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any, NamedTuple

from dwr_rewrite.recipe import Kernel, Recipe
from dwr_rewrite.workload import Workload

SCHEMA = 1
FILE = "efficiency.json"
ANY = ""
"""In a key: whatever it is."""

UNFITTED_MARGIN = 2.0
"""How many times faster a form has to be expected where no error of the model is known. A rule: a
factor of two between a roofline and a kernel is common, so less than that says nothing."""


class Key(NamedTuple):
    """What shares its factors; ``ANY`` for all of a field.

    Attributes:
        form: ``keep``, ``blocks:8`` (the nearest power of two), ``blocks``, ``dense`` or
            ``kernel``, whatever its tile.
        direction: of the training step.
        numbers: the type of the factors that are multiplied; see :func:`numbers_of`.
        layout: of input and output.
    """

    form: str
    direction: str = ANY
    numbers: str = ANY
    layout: str = ANY


class Factors(NamedTuple):
    """What is reached under one key.

    Attributes:
        bandwidth: share of the target's bandwidth.
        rate: share of the target's rate.
        launch: seconds that a step takes besides; None for the target's.
    """

    bandwidth: float = 1.0
    rate: float = 1.0
    launch: float | None = None


@dataclass(frozen=True)
class Efficiency:
    """The factors of a device, and what is known about them; empty where nothing was fitted.

    Attributes:
        factors: by key; see :func:`keys`.
        margin: how many times faster a form has to be expected before it is taken.
        errors: of the model with these factors, by name; see :mod:`dwr_rewrite.cost.errors`.
        sources: the results that they were fitted to: file, date, versions.
    """

    factors: Mapping[Key, Factors] = field(default_factory=dict[Key, Factors])
    margin: float = UNFITTED_MARGIN
    errors: Mapping[str, float] = field(default_factory=dict[str, float])
    sources: tuple[Mapping[str, str], ...] = ()

    def of(self, workload: Workload, recipe: Recipe) -> Factors:
        """Those of the narrowest key that has some; factors of 1 where none has."""
        found = (self.factors[key] for key in keys(workload, recipe) if key in self.factors)
        return next(found, Factors())

    def covers(self, kind: str) -> bool:
        """Whether it was fitted to times of this kind of form."""
        return any(key.form == kind for key in self.factors)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; :meth:`from_dict` reads them."""
        rows = [{**key._asdict(), **value._asdict()} for key, value in self.factors.items()]
        return {**asdict(self), "factors": rows}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Efficiency:
        """From JSON."""
        factors = {
            Key(*(each[name] for name in Key._fields)): Factors(
                *(each[name] for name in Factors._fields)
            )
            for each in row["factors"]
        }
        return cls(factors, row["margin"], row["errors"], tuple(row["sources"]))


def numbers_of(workload: Workload) -> str:
    """The type of the factors that are multiplied: ``tf32``, or the element type."""
    return "tf32" if workload.tf32 else workload.spec.dtype


def kind_of(recipe: Recipe) -> str:
    """``keep``, ``blocks``, ``dense`` or ``kernel``."""
    if isinstance(recipe.conv, Kernel):
        return "kernel"
    width = recipe.packing.width
    if width == 1:
        return "keep"
    return "dense" if width == recipe.conv.spec.channels else "blocks"


def keys(workload: Workload, recipe: Recipe) -> Iterator[Key]:
    """The keys of a form, the narrowest first: without width, layout, type, direction in turn."""
    kind, width = kind_of(recipe), recipe.packing.width
    direction, numbers = workload.direction, numbers_of(workload)
    if kind == "blocks":
        form = f"{kind}:{2 ** round(log2(width))}"
        yield Key(form, direction, numbers, workload.layout)
    yield Key(kind, direction, numbers, workload.layout)
    yield Key(kind, direction, numbers)
    yield Key(kind, direction)
    yield Key(kind)


@cache
def shipped() -> Mapping[str, Efficiency]:
    """What was fitted and is shipped, by the name of the target."""
    text = (files("dwr_rewrite.cost") / FILE).read_text(encoding="utf-8")
    devices: Mapping[str, Any] = json.loads(text)["devices"]
    return {name: Efficiency.from_dict(row) for name, row in devices.items()}


def as_json(devices: Mapping[str, Efficiency]) -> str:
    """The text of the file that :func:`shipped` reads, one line for each key."""
    blocks = [f"  {json.dumps(name)}: {_lines(each.to_dict())}" for name, each in devices.items()]
    body = "{\n" + ",\n".join(blocks) + "\n }" if blocks else "{}"
    return f'{{\n "schema": {SCHEMA},\n "devices": {body}\n}}\n'


def _lines(row: dict[str, Any]) -> str:
    factors = ",\n".join(f"    {json.dumps(each)}" for each in row["factors"])
    rest = ", ".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in row.items() if n != "factors")
    return f'{{{rest},\n   "factors": [\n{factors}\n   ]}}'
