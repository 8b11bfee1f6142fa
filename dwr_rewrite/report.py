"""What was done and what was observed, as data; JSON and the terminal are made from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dwr_rewrite.errors import Rejection
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.verify import Verification

SCHEMA = 1
"""Version of the JSON layout; raised when a field changes its meaning or goes."""


@dataclass(frozen=True)
class SiteReport:
    """One convolution that was seen.

    Attributes:
        name: where it is.
        op: its operator.
        form: ``keep``, ``dense`` or ``blocks:b``.
        reason: why it is kept; None when it was rewritten or restored.
        spec: its geometry, where it is depthwise.
        output: name of the value that it computes.
        weights: ``precomputed`` or ``linked`` when it was rewritten.
        growth: weight bytes added for it (in memory; a linked weight adds none to the file).
        macs: multiply-accumulates for one batch element before and after, where sizes are known.
        undone: the form that it had before it was restored.
    """

    name: str
    op: str
    form: str
    reason: Rejection | None = None
    spec: ConvSpec | None = None
    output: str = ""
    weights: str | None = None
    growth: int = 0
    macs: tuple[int | None, int | None] = (None, None)
    undone: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the model is different here."""
        return self.weights is not None or (self.undone is not None and self.reason is None)


@dataclass(frozen=True)
class Totals:
    """A whole model: nodes and stored numbers at any depth, and bytes on disk."""

    nodes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """One run of the tool.

    Attributes:
        version: of dwr-rewrite.
        source: the input file, or a word for what was given instead.
        output: the file that was written; None when none was.
        options: what was asked.
        sites: every convolution that was seen, in graph order.
        before: the original model.
        after: the rewritten model.
        verification: what the check observed; None when it was not run.
        notes: anything else a reader has to know.
    """

    version: str
    source: str
    output: str | None
    options: Mapping[str, Any]
    sites: tuple[SiteReport, ...]
    before: Totals
    after: Totals
    verification: Verification | None = None
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> list[SiteReport]:
        """The sites where the model is different now."""
        return [site for site in self.sites if site.changed]

    @property
    def forms(self) -> Counter[str]:
        """How many depthwise sites have each form now."""
        return Counter(site.form for site in self.sites if site.spec is not None or site.changed)

    def macs(self, after: bool) -> int | None:
        """Multiply-accumulates of the depthwise sites for one batch element; None if unknown."""
        counts = [site.macs[after] for site in self.sites if site.spec is not None]
        known = [count for count in counts if count is not None]
        return sum(known) if known and len(known) == len(counts) else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, see :data:`SCHEMA`."""
        check = self.verification
        return {
            "schema": SCHEMA,
            "version": self.version,
            "source": self.source,
            "output": self.output,
            "options": dict(self.options),
            "summary": {
                "rewritten": len(self.changed),
                "left": len(self.sites) - len(self.changed),
                "forms": dict(self.forms),
                "macs": [self.macs(False), self.macs(True)],
                "growth_bytes": sum(site.growth for site in self.changed),
            },
            "before": _plain(self.before),
            "after": _plain(self.after),
            "sites": [_site(site) for site in self.sites],
            "verification": None if check is None else _verification(check),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Indented JSON without NaN or Infinity, which are not JSON: they are strings."""
        return json.dumps(_finite(self.to_dict()), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _site(site: SiteReport) -> dict[str, Any]:
    entry = _plain(site)
    entry["spec"] = None if site.spec is None else _plain(site.spec)
    entry["reason"] = None if site.reason is None else _plain(site.reason)
    return entry


def _verification(check: Verification) -> dict[str, Any]:
    return {
        "verdict": check.verdict,
        "versions": dict(check.versions),
        "warnings": check.warnings,
        "seconds": round(check.seconds, 3),
        "notes": list(check.notes),
        "cases": [
            {**_plain(case), "comparisons": [
                {**_plain(c), "measured": c.measured, "passed": c.passed} for c in case.comparisons
            ]}
            for case in check.cases
        ],
    }  # fmt: skip


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
