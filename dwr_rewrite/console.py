"""The report on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dwr_rewrite.document import choices, digest, speed
from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import NONE, TIMES, count, digits
from dwr_rewrite.document.wording import form as form_name
from dwr_rewrite.equivalence.evidence import Culprits
from dwr_rewrite.equivalence.verification import Verification
from dwr_rewrite.planner import format_bytes
from dwr_rewrite.report import Report, SiteReport

SHOWN = 6
"""Failures that are listed."""


def show(report: Report, console: Console, verbose: bool = False) -> None:
    """Prints what was done: a table of before and after, the check, and what was left alone.

    Args:
        report: the run.
        console: where to.
        verbose: also one line for each convolution that was seen.
    """
    document = report.to_dict()
    console.print()
    console.print(_totals(report, document))
    console.print()
    lines = [*_lines(report, document), *(["", *_sites(report, document)] if verbose else [])]
    for line in lines:  # a line stays one where a program reads it
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)


def _totals(report: Report, document: Document) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column()
    before, after = ("before", "after") if report.kind == "rewrite" else ("reference", "candidate")
    table.add_column(before, justify="right")
    table.add_column(after, justify="right")
    for row in digest.forms(document):
        table.add_row(*row)
    old_totals, new_totals = report.before, report.after
    table.add_row("nodes", f"{old_totals.nodes:,}", f"{new_totals.nodes:,}")
    table.add_row("parameters", f"{old_totals.parameters:,}", f"{new_totals.parameters:,}")
    table.add_row("size", format_bytes(old_totals.bytes), format_bytes(new_totals.bytes))
    if report.macs(False) is not None:
        table.add_row("MACs of these sites", count(report.macs(False)), count(report.macs(True)))
    worst = report.verification and report.verification.worst
    found = worst[1] if worst else None
    if found and found.reference and found.candidate:
        errors = (found.reference.largest, found.candidate.largest)
        table.add_row("largest error", *(f"{error:.2g}" for error in errors))
        table.add_row("  allowed", "", f"{found.tolerance:.2g}")
    return table


def _lines(report: Report, document: Document) -> Iterator[str]:
    if not report.changed and report.kind == "rewrite" and report.runtime is None:
        yield "[bold]Nothing to do[/]: no convolution was changed."
    if report.verification is not None:
        yield from _verdict(report.verification)
    elif report.changed:
        yield "[yellow]Not checked[/]: the models were not compared."
    yield from map(_ascii, _speed(report, document))
    left = "Left alone" if report.kind == "rewrite" else "Not rewritten"
    reasons = Counter(_reason(site) for site in report.sites if site.reason is not None)
    for reason, times in reasons.most_common():
        yield f"{left}: {times} x {escape(reason)}"
    for note in report.notes:
        yield escape(note)
    if report.kind == "verify":
        return
    if report.output is not None:
        yield f"Written: [bold]{escape(report.output)}[/]"
    else:
        yield "Not written: dry run."


_COLOURS = {"equivalent": "green", "not equivalent": "red", "not checked": "yellow"}


def _verdict(check: Verification) -> Iterator[str]:
    colour, verdict = _COLOURS[check.verdict], check.verdict.capitalize()
    yield f"[bold {colour}]{verdict}.[/]" + ("" if check.verdict == "equivalent" else " Nothing "
                                             "is promised of this model.")  # fmt: skip
    for failure in check.failures[:SHOWN]:
        yield f"[red]Failed:[/] {escape(failure)}."
    if len(check.failures) > SHOWN:
        yield f"[red]Failed:[/] {len(check.failures) - SHOWN} more; the report has them all."
    if check.culprits is not None:
        yield escape(_blame(check.culprits))
    yield from _proof(check)
    yield from _observed(check)
    for note in check.notes:
        yield f"Note: {escape(note)}."


def _blame(culprits: Culprits) -> str:
    how = f" (models tried: {culprits.tried})" if culprits.tried else ""
    file = f"; the reference with only these changes: {culprits.model}" if culprits.model else ""
    return f"To blame: {', '.join(culprits.sites)}{how}{file}."


def _proof(check: Verification) -> Iterator[str]:
    """What is known without running the models."""
    proof = check.proof
    if proof is None:
        yield "Proved: nothing; the candidate bears no mark of this tool, so all is observed."
        return
    proved = sum(lemma.status == "proved" for lemma in proof.lemmas)
    rewritten = (
        f"{proved} of {len(proof.lemmas)} rewritten convolutions hold the reference's weights"
    )
    same = f"{proof.identical} other operators are identical"
    yield f"Proved: {rewritten if proof.lemmas else 'no convolution differs'}; {same}."
    for lemma in proof.lemmas:
        if lemma.status == "unproved":
            yield escape(f"Not proved: {lemma.site}: {lemma.detail}.")
    for difference in proof.differences:
        yield escape(f"Different: {difference}.")


def _observed(check: Verification) -> Iterator[str]:
    engines = sorted({case.engine for case in check.cases})
    versions = ", ".join(f"{name} {version}" for name, version in check.versions.items())
    inputs = list(dict.fromkeys(case.name for case in check.cases))
    yield (
        f"Observed: inputs {', '.join(map(escape, inputs))}; in {' and '.join(engines)}; "
        f"{versions}; {check.seconds:.1f} s; {check.warnings} onnxruntime warnings not shown."
    )
    if check.worst is not None and check.worst[1].candidate is not None:
        case, worst = check.worst
        yield (
            f"Nearest to its tolerance: output {escape(repr(worst.output))} of up to "
            f"{worst.scale:.2g}, input {escape(case.name)}, {case.engine}: a tolerance of "
            f"{worst.measured:.2g} would have passed, {worst.tolerance:.2g} was allowed."
        )
    for ratio in check.ratios:
        allowed = (
            "too few inputs to judge" if ratio.allowed is None else f"allowed {ratio.allowed:g}"
        )
        yield (
            f"Output {escape(repr(ratio.output))}: over {ratio.inputs} inputs its error is "
            f"{ratio.value:.3g} times the reference's own ({allowed})."
        )
    yield _rounding(check)
    yield from _by_site(check)
    for case in check.cases:
        if case.skipped:
            yield f"Not compared: input {escape(case.name)}, {case.engine}: {escape(case.skipped)}."


def _rounding(check: Verification) -> str:
    """What the tolerance follows from."""
    rounding = check.rounding
    longest = f" (at a site of up to {check.longest[1]} products)" if check.longest else ""
    tf32, winograd = ("on" if on else "off" for on in (rounding.multiply > 0, rounding.winograd))
    return (
        f"Tolerance: 2 x (the reference's error + how far rounding moves the output); results "
        f"round by {rounding.store:.2g}, sums{longest} by {rounding.accumulate:.2g} for each term; "
        f"TF32 {tf32}, Winograd {winograd}."
    )


def _speed(report: Report, document: Document) -> Iterator[str]:
    """What is known about it; why it is not faster, or not known, is in the notes."""
    status = speed.status(document)
    if status == "faster":
        yield f"[bold green]{escape(speed.statement(document))}[/]"
    elif status in ("slower", "alike") or (report.changed and not report.options.get("restore")):
        yield escape(speed.statement(document))
    for line in speed.measured(document):
        yield escape(f"Speed: {line}.")
    if trials := speed.trials(document):
        yield escape(f"Tried: {'; '.join(trials)}.")
    if settings := speed.helpful(document):
        yield escape(f"Without any rewrite: {'; '.join(settings)}.")


def _ascii(line: str) -> str:
    """Without the signs that an old terminal does not have."""
    return line.replace(TIMES, "x").replace(NONE, "-")


def _by_site(check: Verification) -> Iterator[str]:
    """The sites by themselves: drift and probes."""
    ratios = [
        (tap.candidate.largest / tap.reference.largest, tap)
        for tap in check.taps
        if tap.reference.largest > 0
    ]
    if ratios:
        ratio, tap = max(ratios, key=lambda pair: pair[0])
        yield (
            f"Sites: {len(check.taps)} compared one by one; the largest error relative to the "
            f"reference's own is {ratio:.3g} times, at {escape(tap.site)}."
        )
    if check.probes:
        alone = sum(probe.probed for probe in check.probes)
        channels = sum(probe.channels for probe in check.probes)
        leaks = sum(probe.leaking for probe in check.probes)
        spread = max((r.candidate for probe in check.probes for r in probe.reach), default=0)
        before = max((r.reference for probe in check.probes for r in probe.reach), default=0)
        yield (
            f"Channels: {alone} of {channels} stood alone once, {leaks} leaks. An Inf or NaN in "
            f"one channel reaches {before} in the reference and up to {spread} in the candidate: "
            f"activations have to be finite."
        )


def _reason(site: SiteReport) -> str:
    assert site.reason is not None
    return f"{site.op}: {site.reason.reason}"


def _sites(report: Report, document: Document) -> Iterator[str]:
    for site, found in zip(report.sites, document["sites"], strict=True):
        yield _site(site)
        if found["choices"]:
            yield _ascii(f"  on {choices.sizes(found['choices'], found['spec'])}, in ms:")
        yield from (f"  {_forms(choice)}" for choice in found["choices"])


def _forms(choice: Document) -> str:
    """Every form of a site in one direction, the one that was chosen first."""
    modelled = ", expected" if choices.is_modelled(choice) else ""
    times = [_time(option) for option in choices.ordered(choice)]
    times[:1] = [f"[bold]{time}[/]" for time in times[:1]]
    times += filter(None, [choices.folded(choice)])
    return f"{choice['direction']}{modelled}: {', '.join(times)}"


def _time(option: Document) -> str:
    milliseconds = choices.cost(option)
    time = "not timed" if milliseconds is None else digits(milliseconds)
    return escape(f"{form_name(option['form'])} {time}")


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
