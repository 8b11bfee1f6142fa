"""What was done and what was observed, as data; everything shown is made from its JSON."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from dwr_rewrite.equivalence.tolerance import FACTOR, FACTOR_NEEDS, TRUSTED, WINOGRAD
from dwr_rewrite.equivalence.verification import Verdict, Verification
from dwr_rewrite.errors import Rejection
from dwr_rewrite.planner import Choice
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.timing import Runtime

SCHEMA = 3
"""Version of the JSON layout; raised when a field changes its meaning or goes."""


@dataclass(frozen=True)
class SiteReport:
    """One convolution that was seen.

    Attributes:
        name: where it is.
        op: its operator.
        form: ``keep``, ``dense``, ``blocks:b``, ``kernel`` or ``kernel:TILE``; of a torch site also
            ``direction=form`` for each direction, where they differ.
        reason: why it is kept; None when it was rewritten or restored.
        spec: its geometry, where it is depthwise.
        output: name of the value that it computes.
        weights: ``precomputed``, or ``linked`` where the compact weight stays, when it was
            rewritten.
        growth: weight bytes added for it (in memory; a linked weight adds none to the file).
        macs: multiply-accumulates for one batch element before and after, where sizes are known.
        undone: the form that it had before it was restored.
        choices: what was weighed for each direction, where the form was chosen by time.
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
    choices: tuple[Choice, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the model is different here."""
        return self.weights is not None or (self.undone is not None and self.reason is None)

    def kept(self, reason: Rejection) -> SiteReport:
        """The same site, left as it was after all."""
        before, _ = self.macs
        return replace(
            self, form="keep", reason=reason, weights=None, growth=0, macs=(before, before),
            undone=None,
        )  # fmt: skip


@dataclass(frozen=True)
class Totals:
    """A whole model.

    Attributes:
        nodes: operators at any depth (modules of a torch model).
        parameters: stored numbers at any depth.
        bytes: on disk, or what the tensors take in memory.
        sha256: of the file; empty for a model in memory.
    """

    nodes: int
    parameters: int
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Report:
    """One run of the tool.

    Attributes:
        version: of dwr-rewrite.
        source: the reference: a file, or a word for what was given instead.
        output: the candidate: the file that was written or compared; None when there is none.
        options: what was asked.
        sites: every convolution that was seen, in graph order.
        before: the reference.
        after: the candidate.
        verification: what the check observed; None when it was not run.
        notes: anything else a reader has to know.
        kind: ``rewrite`` where the candidate was made in this run, ``verify`` where it was given.
        command: how to repeat the run.
        environment: date and facts about the host; with the times of the verification the only
            part that may change between two runs.
        runtime: how long both models take; None when it was not measured.
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
    kind: Literal["rewrite", "verify"] = "rewrite"
    command: str = ""
    environment: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    runtime: Runtime | None = None

    @property
    def verdict(self) -> Verdict:
        """Of the verification; ``not checked`` without one."""
        return "not checked" if self.verification is None else self.verification.verdict

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
        """The JSON form; ``report.schema.json`` describes it."""
        check = self.verification
        return {
            "schema": SCHEMA,
            "version": self.version,
            "kind": self.kind,
            "command": self.command,
            "verdict": self.verdict,
            "failures": [] if check is None else check.failures,
            "reference": {"name": self.source, **plain(self.before)},
            "candidate": {"name": self.output, **plain(self.after)},
            "options": plain(self.options),
            "summary": {
                "rewritten": len(self.changed),
                "left": len(self.sites) - len(self.changed),
                "forms": dict(self.forms),
                "macs": [self.macs(False), self.macs(True)],
                "growth_bytes": sum(site.growth for site in self.changed),
            },
            "sites": [_site(site) for site in self.sites],
            "verification": None if check is None else _verification(check),
            "runtime": plain(self.runtime),
            "environment": plain(self.environment),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Indented JSON without NaN or Infinity, which are not JSON: they are strings."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def here(self) -> Report:
        """This report with the date and the facts about this host."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        facts = {
            "date": now,
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 0,
        }  # fmt: skip
        return replace(self, environment={**facts, **self.environment})


def processor() -> str:
    """Name of the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123  no regular file
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _site(site: SiteReport) -> dict[str, Any]:
    found = plain(replace(site, choices=()))
    return found | {"choices": [_choice(c) for c in site.choices], "changed": site.changed}


def _choice(choice: Choice) -> dict[str, Any]:
    """Of the geometry only what the site's own does not tell; times in milliseconds."""
    ran = choice.workload
    return {
        "direction": ran.direction,
        "batch": ran.batch,
        "spatial": plain(ran.spec.spatial),
        "dtype": ran.spec.dtype,
        "layout": ran.layout,
        "tf32": ran.tf32,
        "stored": ran.stored,
        "form": choice.form,
        "gain_ms": 1e3 * choice.gain,
        "options": plain(choice.options),
    }


def _verification(check: Verification) -> dict[str, Any]:
    found = plain(check)
    found["rule"] = {
        "trusted": TRUSTED,
        "factor": FACTOR,
        "factor_needs": FACTOR_NEEDS,
        "winograd": WINOGRAD,
        "gamma": None if check.longest is None else check.rounding.gamma(check.longest[1]),
    }
    found["verdict"] = check.verdict
    found["seconds"] = round(check.seconds, 3)
    found["ratios"] = [
        {**plain(r), "value": plain(r.value), "passed": r.passed} for r in check.ratios
    ]
    for case, entry in zip(check.cases, found["cases"], strict=True):
        for comparison, slot in zip(case.comparisons, entry["comparisons"], strict=True):
            slot |= {"measured": plain(comparison.measured), "passed": comparison.passed}
    if check.proof is not None:
        found["proof"]["status"] = check.proof.status
    if check.training is not None:
        found["training"]["passed"] = check.training.passed
        for gradient, slot in zip(
            check.training.gradients, found["training"]["gradients"], strict=True
        ):
            slot["passed"] = gradient.passed
    return found


def plain(value: Any) -> Any:
    """Dataclasses and containers as JSON has them; Infinity and NaN as strings."""
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
