"""The report as Markdown to paste into a pull request: short, and made from the JSON alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from dwr_rewrite.document import choices, digest, speed
from dwr_rewrite.document.reading import Document, printable
from dwr_rewrite.document.wording import (
    NONE,
    digits,
    milliseconds,
    number,
    percent,
    plural,
    short,
    speedup,
    times,
)
from dwr_rewrite.document.wording import form as form_name

ALERTS = {"equivalent": "TIP", "not equivalent": "CAUTION", "not checked": "WARNING"}
"""Kind of GitHub's alert, which gives each verdict a colour; elsewhere it reads as a quotation."""

MODELS = ("reference", "candidate")

SHOWN = 8
"""Sentences, sites and comparisons that are listed; the others are counted."""


LONG = 600
"""Characters of a sentence that is made of several names."""


def render(document: Document) -> str:
    """A report as GitHub-flavoured Markdown; the same text for the same document.

    Args:
        document: what :func:`dwr_rewrite.document.reading.read` or
            :meth:`dwr_rewrite.report.Report.to_dict` gives. Whatever text it holds is escaped.
    """
    return "\n".join(_lines(printable(document))) + "\n"


def _lines(document: Document) -> Iterator[str]:
    models = [document[model]["name"] or "not written" for model in ("reference", "candidate")]
    unchanged = digest.is_unchanged(document)
    yield f"> [!{'NOTE' if unchanged else ALERTS[document['verdict']]}]"
    yield f"> **{digest.heading(document)}.** {digest.statement(document)}"
    yield ">"
    yield f"> Reference {code(models[0])}, candidate {code(models[1])}."
    yield ">"
    yield f"> {text(speed.statement(document), LONG)}"
    yield from _list(digest.reasons(document))
    yield from _culprits(document)
    if figures := digest.figures(document):
        yield from _table(
            ("", "", ""), [(f.label, f"**{f.value}**", text(f.note)) for f in figures]
        )
    yield from _table(("", "reference", "candidate"), digest.totals(document))
    yield from _comparisons(document)
    yield from _speed(document)
    yield from _settings(document)
    yield from _forms(document)
    yield from _reproduce(document)


def _list(items: Sequence[str]) -> Iterator[str]:
    if items:
        yield ""
        yield from (f"- {text(item)}" for item in items[:SHOWN])
    if len(items) > SHOWN:
        yield f"- and {len(items) - SHOWN} more"


def _culprits(document: Document) -> Iterator[str]:
    found = (document["verification"] or {}).get("culprits")
    if found is None:
        return
    names = ", ".join(map(code, found["sites"][:SHOWN]))
    more = f" and {len(found['sites']) - SHOWN} more" if len(found["sites"]) > SHOWN else ""
    tried = f" ({plural(found['tried'], 'model')} tried)" if found["tried"] else ""
    yield f"\n**To blame:** {names}{more}{tried}."
    if found["model"]:
        yield f"Smallest failing model: {code(found['model'])}."


def _comparisons(document: Document) -> Iterator[str]:
    pairs = sorted(digest.compared(document), key=lambda pair: -digest.used(pair[1]))
    head = ("input", "engine", "output", "reference", "candidate", "ratio", "tolerance", "used")
    rows = [
        (text(case["name"]), text(case["engine"]), text(found["output"]),
         *(number(found[m] and found[m]["largest"]) for m in ("reference", "candidate")),
         times(digest.own(found)), number(found["tolerance"]) if not found["reason"] else NONE,
         percent(digest.used(found)) if found["passed"] else "**failed**")
        for case, found in pairs[:SHOWN]
    ]  # fmt: skip
    if rows:
        left = len(pairs) - len(rows)
        yield "\nLargest errors, and how much of the tolerance they used:"
        yield from _table(head, rows)
        yield from [f"\n{plural(left, 'comparison')} nearer to the truth left out."] if left else []


def _speed(document: Document) -> Iterator[str]:
    yield from _list(document["notes"])
    runtime = document["runtime"]
    if runtime is None:
        return
    if rows := runtime["measurements"]:
        after = "candidate, tried" if speed.is_kept(document) else "candidate"
        yield from _table(
            ("", "reference", after, "times faster"),
            [
                (text(row["name"]), *(text(milliseconds(row[m])) for m in MODELS),
                 text(speedup(row["speedup"])))
                for row in rows
            ],
        )  # fmt: skip
    if trials := speed.trials(document):
        yield f"\nTried: {text('; '.join(trials), LONG)}."
    if runtime["energy"]:
        yield f"\nEnergy of one run: {speed.energy(runtime['energy'])}."


def _settings(document: Document) -> Iterator[str]:
    """The free settings: what the reference gains without any rewrite."""
    found = speed.settings(document)
    rows = [
        (cell(setting["name"]) + text(speed.marks(document, setting)),
         text(speedup(setting["speedup"])) if setting["speedup"]
         else f"did not run: {text(setting['failure'])}",
         cell(setting["how"]) if setting["how"] else NONE)
        for setting in found[:SHOWN]
    ]  # fmt: skip
    if rows:
        yield "\nFree settings, each without any rewrite:"
        yield from _table(("setting", "times faster", "how to have it"), rows)
        left = len(found) - len(rows)
        yield from [f"\n{plural(left, 'setting')} left out."] if left else []


def _forms(document: Document) -> Iterator[str]:
    """What was chosen where most time goes, with the times of all forms."""
    found = [(g, choice) for g in choices.weighed(document) for choice in g.choices]
    rows = [
        (cell(group.sites[0]) + (f" and {len(group.sites) - 1} more" if group.sites[1:] else ""),
         choice["direction"], form_name(choice["form"]), *_times(choice))
        for group, choice in found[:SHOWN]
    ]  # fmt: skip
    if rows:
        yield f"\nForms of the convolutions that take most time, in ms. {choices.rule(document)}"
        yield from _table(("site", "direction", "chosen", "its time", "others"), rows)
        left = len(found) - len(rows)
        yield from [f"\n{plural(left, 'further row')} left out."] if left else []


def _times(choice: Document) -> tuple[str, str]:
    """Of the form that was chosen, and of the others."""
    taken = choices.find(choice, choice["form"])
    others = [option for option in choices.ordered(choice) if option is not taken]
    texts = [f"{form_name(o['form'])} {_time(o)}" for o in others]
    texts += filter(None, [choices.folded(choice)])
    return _time(taken) if taken else NONE, ", ".join(texts) or NONE


def _time(option: Document) -> str:
    time = choices.cost(option)
    if time is None:
        return "not timed"
    return digits(time) if option["time"] else f"{digits(time)} expected"


def _reproduce(document: Document) -> Iterator[str]:
    if document["command"]:
        fence = "`" * max(3, 1 + _longest_run(document["command"]))
        yield f"\n{fence}\n{document['command']}\n{fence}"
    check = document["verification"] or {"versions": {}}
    facts = [
        f"dwr-rewrite {document['version']}",
        *(f"{k} {v}" for k, v in check["versions"].items()),
    ]
    yield f"\n<sub>{text(', '.join(facts))}</sub>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def text(words: str, limit: int = 200) -> str:
    """Words that Markdown and HTML take for nothing else."""
    return re.sub(r"([\\`*\[\]<>|~$&])", r"\\\1", short(words, limit))


def code(name: str) -> str:
    """A name as it is, in a fixed width."""
    name = short(name, 80)
    fence = "`" * (1 + _longest_run(name))
    return f"{fence} {name} {fence}" if "`" in name else f"{fence}{name}{fence}"


def cell(name: str) -> str:
    """The same in a table, where a bar would end the cell even there."""
    return code(name).replace("|", r"\|")


def _longest_run(name: str) -> int:
    return max((len(run) for run in re.findall("`+", name)), default=0)
