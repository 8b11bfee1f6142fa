"""The report on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dwr_rewrite.planner import format_bytes
from dwr_rewrite.report import Report, SiteReport
from dwr_rewrite.verify import Verification


def show(report: Report, console: Console, verbose: bool = False) -> None:
    """Prints what was done: a table of before and after, the check, and what was left alone.

    Args:
        report: the run.
        console: where to.
        verbose: also one line for each convolution that was seen.
    """
    console.print()
    console.print(_totals(report))
    console.print()
    lines = [*_lines(report), *(["", *map(_site, report.sites)] if verbose else [])]
    for line in lines:  # a line stays one where a program reads it
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)


def _totals(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column()
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    old = Counter(_form_before(site) for site in report.sites if site.spec or site.changed)
    for form in sorted({*old, *report.forms}, key=_form_order):
        name = "depthwise" if form == "keep" else form
        table.add_row(f"sites: {name}", str(old[form]), str(report.forms[form]))
    before, after = report.before, report.after
    table.add_row("nodes", f"{before.nodes:,}", f"{after.nodes:,}")
    table.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}")
    table.add_row("size", format_bytes(before.bytes), format_bytes(after.bytes))
    if report.macs(False) is not None:
        table.add_row("MACs of these sites", _count(report.macs(False)), _count(report.macs(True)))
    worst = report.verification and report.verification.worst
    if worst:
        _, found = worst
        table.add_row("largest error", f"{found.original:.2g}", f"{found.rewritten:.2g}")
        table.add_row("  allowed", "", f"{found.tolerance:.2g}")
    return table


def _form_before(site: SiteReport) -> str:
    return site.undone or "keep"


def _form_order(form: str) -> tuple[int, int]:
    name, _, width = form.partition(":")
    return ("keep", "blocks", "dense").index(name), int(width or 0)


def _count(value: int | None) -> str:
    """1234567 -> ``1.2 M``."""
    size = float(value or 0)
    for unit in ("", " K", " M", " G"):
        if size < 1000:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g} T"


def _lines(report: Report) -> Iterator[str]:
    if not report.changed:
        yield "[bold]Nothing to do[/]: no convolution was changed."
    if report.verification is not None:
        yield from _verdict(report.verification)
    elif report.changed:
        yield "[yellow]Not checked[/]: the models were not compared."
    reasons = Counter(_reason(site) for site in report.sites if site.reason is not None)
    for reason, count in reasons.most_common():
        yield f"Left alone: {count} x {escape(reason)}"
    for note in report.notes:
        yield escape(note)
    if report.changed and not report.options.get("restore"):
        yield "Speed: not measured. Time both models on the GPU that will run them."
    if report.output is not None:
        yield f"Written: [bold]{escape(report.output)}[/]"
    else:
        yield "Not written: dry run."


def _verdict(check: Verification) -> Iterator[str]:
    colour = "green" if check.verdict == "passed" else "red"
    where = ""
    if check.worst is not None:
        case, worst = check.worst
        where = (
            f" The errors are those nearest to their tolerance: output {escape(repr(worst.output))}"
            f" of up to {worst.scale:.2g}, input {escape(case.name)}, {case.engine}."
        )
    yield f"[bold {colour}]Same function: {check.verdict}.[/]{where}"
    engines = sorted({case.engine for case in check.cases})
    versions = ", ".join(f"{name} {version}" for name, version in check.versions.items())
    inputs = list(dict.fromkeys(case.name for case in check.cases))
    yield (
        f"Compared: inputs {', '.join(map(escape, inputs))}; in {' and '.join(engines)}; "
        f"{versions}; {check.seconds:.1f} s; {check.warnings} onnxruntime warnings not shown."
    )
    for case in check.cases:
        if case.skipped:
            yield f"Not compared: input {escape(case.name)}, {case.engine}: {escape(case.skipped)}."
    for note in check.notes:
        yield f"Note: {escape(note)}."


def _reason(site: SiteReport) -> str:
    assert site.reason is not None
    return f"{site.op}: {site.reason.reason}"


def _site(site: SiteReport) -> str:
    name = escape(site.name)
    if site.reason is not None:
        return f"[dim]{name}[/]: {site.op} left: {escape(site.reason.reason)}"
    if site.undone is not None:
        return f"{name}: {site.op} {site.undone} -> depthwise"
    assert site.spec is not None
    spec = site.spec
    kernel = "x".join(map(str, spec.kernel))
    width = f"C={spec.channels}" + (f" m={spec.multiplier}" if spec.multiplier > 1 else "")
    return (
        f"{name}: {site.op} {kernel} {width} {spec.dtype} -> [bold]{site.form}[/] {site.weights}, "
        f"+{format_bytes(site.growth)}"
    )
