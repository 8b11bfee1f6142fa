"""What the torch pass does to every network of the table, against what really runs.

`python -m models.coverage [NAME ...] [--front export] [--markdown]`. The depthwise convolutions are
counted below torch's dispatcher, before and after the rewrite. One that still runs although no
report of the pass says why is MISSED; then, or where the pass fails or changes the output, the exit
code is 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

import dwr_rewrite as dwr
from dwr_rewrite.report import SiteReport
from models.calls import Call, describe, run
from models.entry import Entry, Network
from models.zoo import ZOO

NOT_DEPTHWISE = {"grouped", "pointwise"}
"""Codes of the reports of convolutions that the count leaves out as well."""

WRONG = 1e-3
"""An error that float32 rounding does not reach in these networks, as a wrong weight does."""


@dataclass(frozen=True)
class Row:
    """One network: `calls` run before the rewrite and `left` after it, `sites` are the reports.

    `error` is the root mean square of the difference of the outputs, relative to the original.
    """

    entry: Entry
    calls: list[Call] = field(default_factory=list)
    left: list[Call] = field(default_factory=list)
    sites: list[SiteReport] = field(default_factory=list)
    error: float = 0.0
    failure: str = ""

    @property
    def faults(self) -> str:
        """What a reader has to act on."""
        if self.failure:
            return f"FAILED: {self.failure}"
        if self.missed:
            places = sorted({call.where or "top level" for call in self.missed})
            return f"MISSED: {describe(self.missed)} in {', '.join(places)}"
        return "" if self.error < WRONG else f"WRONG: {self.error:.1e}"  # NaN is wrong too

    @property
    def rewritten(self) -> list[SiteReport]:
        return [site for site in self.sites if site.changed]

    @property
    def refused(self) -> list[SiteReport]:
        return [site for site in self.sites if site.reason is not None]

    @property
    def missed(self) -> list[Call]:
        """The calls that are left and that no refusal explains.

        A refusal explains the calls of the module of its name; one that names something else, one
        call of its geometry, or any one call if it states none.
        """
        names = {site.name for site in self.refused}
        modules = {call.where for call in self.left} & names
        others = Counter(_geometry(site) for site in self.refused if site.name not in modules)
        missed: list[Call] = []
        for call in self.left:
            known = next((key for key in (call[:-1], None) if others[key]), ())
            if call.where in modules:
                continue
            if known == ():
                missed.append(call)
            else:
                others[known] -= 1
        return missed


def _geometry(site: SiteReport) -> tuple[Any, ...] | None:
    """That of a Call."""
    if site.spec is None:
        return None
    spec = site.spec
    geometry = (spec.channels, spec.kernel, spec.stride, spec.dilation)
    return (*geometry, spec.multiplier, spec.transposed)


def exported(net: Network) -> Any:
    return torch.export.export(net.module, net.inputs)


FRONTS: dict[str, Callable[[Network], tuple[Any, ...]]] = {
    "modules": lambda net: (net.module, net.inputs),
    "export": lambda net: (exported(net),),
}
"""What fx_rewrite is given."""


def rewritten(*given: Any) -> Any:
    """All that can be rewritten, whether it is faster or not."""
    return dwr.fx_rewrite(*given, policy="blocks:32")


def cover(
    entry: Entry,
    front: str = "modules",
    rewrite: Callable[..., Any] = rewritten,
    record: Callable[[Any], list[SiteReport]] = dwr.record,
) -> Row:
    """Runs a network, rewrites it, runs it again; a failure is part of the result."""
    net = entry.build()
    expected, calls = run(net.module, net.inputs)
    try:
        result = rewrite(*FRONTS[front](net))
        reports = record(result)
        module = result if isinstance(result, nn.Module) else result.module()
        actual, left = run(module, net.inputs)
        difference = (actual - expected).double().norm() / expected.double().norm()
    except Exception as error:  # noqa: BLE001 -- whatever it is, the other networks are of interest
        lines = str(error).strip().splitlines() or [""]
        return Row(entry, calls, calls, failure=f"{type(error).__name__}: {lines[0][:200]}")
    sites = [
        site for site in reports if site.reason is None or site.reason.code not in NOT_DEPTHWISE
    ]
    return Row(entry, calls, left, sites, float(difference))


def cells(row: Row) -> tuple[str, ...]:
    """A line of the table, without markup."""
    codes = Counter(site.reason.code for site in row.refused if site.reason is not None)
    forms = Counter(site.form for site in row.rewritten)
    return (
        row.entry.name,
        row.entry.family,
        describe(row.calls),
        str(len(row.calls)),
        str(len(row.sites)),
        ", ".join(f"{n} {form}" for form, n in forms.most_common()),
        ", ".join(f"{n} {code}" for code, n in codes.most_common()),
        str(len(row.left)),
        row.faults or f"{row.error:.1e}",
    )


HEADERS = (
    "network", "family", "depthwise calls", "calls", "sites", "rewritten", "refused", "left",
    "error",
)  # fmt: skip
NUMBERS = {"calls", "sites", "left"}


def reasons(rows: Iterable[Row]) -> dict[str, str]:
    """One sentence for every code of a refusal."""
    found = (site.reason for row in rows for site in row.refused)
    return {reason.code: reason.reason for reason in found if reason is not None}


def summary(rows: list[Row]) -> str:
    total = sum(len(row.calls) for row in rows)
    left = sum(len(row.left) for row in rows)
    missed = sum(len(row.missed) for row in rows if not row.failure)
    failed = sum(not row.error < WRONG or bool(row.failure) for row in rows)
    return (
        f"{len(rows)} networks, {total} depthwise calls: {total - left} rewritten, {left} left, "
        f"of which {missed} without a reason; {failed} networks failed or differ."
    )


def markdown(rows: list[Row]) -> str:
    rule = ("-:" if header in NUMBERS else "-" for header in HEADERS)
    lines = [HEADERS, tuple(rule), *map(cells, rows)]
    table = ("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)
    codes = (f"- `{code}`: {text}" for code, text in reasons(rows).items())
    return "\n".join([*table, "", summary(rows), "", *codes]).rstrip() + "\n"


def show(rows: list[Row], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in HEADERS:
        table.add_column(header, justify="right" if header in NUMBERS else "left")
    for row in rows:
        table.add_row(*map(escape, cells(row)), style="red" if row.faults else None)
    console.print(table)
    console.print(summary(rows), highlight=False)
    for code, text in reasons(rows).items():
        console.print(f"[bold]{escape(code)}[/]: {escape(text)}", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models.coverage")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these networks; default all")
    parser.add_argument("--front", choices=FRONTS, default="modules", help="what is rewritten")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    unknown = set(options.names) - ZOO.keys()
    if unknown:
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(ZOO)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the networks, not of the pass
        logging.disable(logging.WARNING)
        rows = [cover(ZOO[name], options.front) for name in options.names or ZOO]
    if options.markdown:
        print(markdown(rows), end="")
    else:
        show(rows, Console(width=None if sys.stdout.isatty() else 200))
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
