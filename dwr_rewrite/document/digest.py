"""The figures of a report that a reader looks for first, drawn from its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import (
    NONE,
    VERDICTS,
    count,
    number,
    percent,
    plural,
    short,
    span,
    times,
)
from dwr_rewrite.document.wording import form as form_name
from dwr_rewrite.planner import format_bytes

DOUBLE = "float64"
"""Engine of the cases in which both models are evaluated in float64."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One key figure.

    Attributes:
        label: what it is.
        value: in a few characters.
        note: what it is to be read against.
    """

    label: str
    value: str
    note: str


def compared(document: Document) -> list[tuple[Document, Document]]:
    """Every comparison with its case."""
    check = document["verification"] or {"cases": []}
    return [(case, found) for case in check["cases"] for found in case["comparisons"]]


def used(found: Document) -> float:
    """Part of its tolerance that a comparison needed; inf where it failed."""
    if not found["passed"]:
        return float("inf")
    tolerance = float(found["tolerance"])
    return float(found["measured"]) / tolerance if tolerance else 0.0


def worst(document: Document) -> tuple[Document, Document] | None:
    """The comparison that used most of its tolerance, with its case."""
    return max(compared(document), key=lambda pair: used(pair[1]), default=None)


def own(found: Document) -> float | None:
    """The candidate's largest error over the reference's; None where one cannot be told."""
    if found["reference"] is None or found["candidate"] is None:
        return None
    before, after = (float(found[model]["largest"]) for model in ("reference", "candidate"))
    return after / before if before else None


def is_unchanged(document: Document) -> bool:
    """Whether the candidate is the reference, bit for bit: there was nothing to compare."""
    before, after = document["reference"]["sha256"], document["candidate"]["sha256"]
    return document["verification"] is None and bool(before) and before == after


def heading(document: Document) -> str:
    """The verdict in a few words."""
    return "Unchanged" if is_unchanged(document) else VERDICTS[document["verdict"]]


def statement(document: Document) -> str:
    """The verdict as a sentence, without the models' names."""
    if is_unchanged(document):
        return "The candidate is the reference, bit for bit: no convolution was changed."
    return {
        "equivalent": "Within the derived tolerance, the candidate computes the same function as "
        "the reference on every input that was compared.",
        "not equivalent": "The candidate does not compute the same function as the reference.",
        "not checked": "It was not shown that the candidate computes the same function as the "
        "reference. This is not a pass.",
    }[document["verdict"]]


def reasons(document: Document) -> list[str]:
    """Why the verdict is what it is, one sentence each; empty for a pass."""
    if document["verdict"] != "not checked" or is_unchanged(document):
        return document["failures"]
    if document["verification"] is None:
        return ["the models were not compared"]
    pairs = compared(document)
    told = {found["output"] for _, found in pairs if _telling(found)}
    names = (*document["verification"]["outputs"], *(found["output"] for _, found in pairs))
    untold = [name for name in dict.fromkeys(names) if pairs and name not in told]
    return [
        *([] if pairs else ["no input could be compared"]),
        *(f"input {c['name']!r}, {c['engine']}: {c['skipped']}" for c in skipped(document)),
        *(f"output {name!r}: it has no finite element, or every tolerance was as large as its "
          f"values, so that a wrong result would have passed too; or it was never compared"
          for name in untold),
    ]  # fmt: skip


def _telling(found: Document) -> bool:
    if found["worst"] is None:
        return False
    return found["difference"]["largest"] == 0 or float(found["tolerance"]) < float(found["scale"])


def skipped(document: Document) -> list[Document]:
    """The cases that could not be compared."""
    check = document["verification"] or {"cases": []}
    return [case for case in check["cases"] if case["skipped"]]


def measured(document: Document) -> list[tuple[Document, Document]]:
    """The comparisons that have errors, with their cases."""
    models = ("reference", "candidate", "difference")
    return [pair for pair in compared(document) if all(pair[1][model] for model in models)]


def by_site(items: Iterable[Document]) -> dict[str, Document]:
    """Things of sites by the site's name."""
    return {item["site"]: item for item in items}


def figures(document: Document) -> list[Figure]:
    """The key figures; empty where nothing was compared."""
    pair = worst(document)
    return [*(_error(*pair) if pair else ()), *_evidence(document)]


def _error(case: Document, found: Document) -> Iterator[Figure]:
    names = (short(name) for name in (found["output"], case["name"], case["engine"]))
    where = "output {!r}, input {!r}, {}".format(*names)
    if found["reason"]:
        yield Figure("Largest error", NONE, f"{found['reason']}; {where}")
        return
    measured, scale = float(found["measured"]), float(found["scale"])
    tolerance, passed = float(found["tolerance"]), found["passed"]
    relative = f"{number(measured / scale)} of the largest value; " if scale else ""
    name, rule = {
        "error": ("Largest error", "2 (reference's own error + movement)"),
        "difference": ("Largest difference", "4 movements of rounding"),
    }[found["by"]]
    part = percent(used(found)) if passed else times(measured / (tolerance or 1))
    yield Figure(name, number(measured), f"{relative}{where}")
    yield Figure("Tolerance", number(tolerance), f"{rule}, on this input")
    yield Figure(
        "Tolerance used", part,
        f"{number(measured)} would have been {'enough' if passed else 'needed'}",
    )  # fmt: skip


def _evidence(document: Document) -> Iterator[Figure]:
    check = document["verification"]
    if check is None:
        return
    ratio = max(check["ratios"], key=lambda r: float(r["value"]), default=None)
    if ratio:
        allowed = ratio["allowed"]
        note = "too few to decide" if allowed is None else f"allowed {times(allowed)}"
        inputs = plural(ratio["inputs"], "input")
        yield Figure("Error against the reference's own", times(ratio["value"]),
                     f"over {inputs}, {note}; output {short(ratio['output'])!r}")  # fmt: skip
    yield _proved(check["proof"])
    pairs = compared(document)
    passed, engines = sum(found["passed"] for _, found in pairs), {c["engine"] for c, _ in pairs}
    inputs = plural(len({case["name"] for case, _ in pairs}), "input")
    note = f"comparisons within tolerance; {inputs}; {' and '.join(map(short, sorted(engines)))}"
    yield Figure("Observed", f"{passed} of {len(pairs)}", note if pairs else "nothing was compared")


def _proved(proof: Document | None) -> Figure:
    if proof is None:
        return Figure("Proved", NONE, "no structural proof was tried")
    lemmas, others = proof["lemmas"], len(proof["differences"])
    if not lemmas and not others:
        return Figure("Proved", "identical", f"all {plural(proof['identical'], 'operator')}")
    done = sum(lemma["status"] == "proved" for lemma in lemmas)
    rest = f"{plural(proof['identical'], 'other operator')} identical"
    more = f", {plural(others, 'further difference')}" if others else ""
    return Figure("Proved", f"{done} of {len(lemmas)}", f"rewritten sites; {rest}{more}")


def totals(document: Document) -> list[tuple[str, str, str]]:
    """Rows (what, reference, candidate) of the two models as a whole."""
    pair = [document["reference"], document["candidate"]]
    rows = [("nodes", *(f"{model['nodes']:,}" for model in pair)),
            ("parameters", *(f"{model['parameters']:,}" for model in pair)),
            ("size", *(format_bytes(model["bytes"]) for model in pair)),
            ("sha256", *(model["sha256"][:12] or NONE for model in pair))]  # fmt: skip
    macs = document["summary"]["macs"]
    if macs != [None, None]:
        rows.append(("MACs of these sites", *map(count, macs)))
    return [*rows, *forms(document)]  # pyright: ignore[reportReturnType]  three strings each


def forms(document: Document) -> list[tuple[str, str, str]]:
    """Rows (form, sites in the reference, sites in the candidate)."""
    before = Counter(
        site["undone"] or "keep" for site in document["sites"] if site["spec"] or site["changed"]
    )
    after = Counter(document["summary"]["forms"])
    return [
        (f"sites: {form_name(form)}", str(before[form]), str(after[form]))
        for form in sorted({*before, *after}, key=_form_order)
    ]


def _form_order(form: str) -> tuple[str, int, str]:
    name, _, rest = form.partition(":")
    place = {"keep": "0", "blocks": "1", "dense": "2", "kernel": "3"}.get(name, name)
    return place, int(rest) if rest.isdecimal() else 0, rest


def left_alone(document: Document) -> dict[str, list[str]]:
    """Names of the convolutions that were kept, by operator and reason; the most frequent first."""
    found: dict[str, list[str]] = {}
    for site in document["sites"]:
        if site["reason"] is not None:
            found.setdefault(f"{site['op']}: {site['reason']['reason']}", []).append(site["name"])
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def reach(document: Document) -> list[dict[str, Any]]:
    """How far Inf and NaN in one channel spread, for each form and value."""
    groups: dict[tuple[str, str], list[tuple[Document, Document]]] = {}
    for probe in (document["verification"] or {"probes": []})["probes"]:
        for found in probe["reach"]:
            groups.setdefault((probe["form"], found["value"]), []).append((probe, found))
    return [
        {
            "form": form,
            "value": value,
            "sites": len({probe["site"] for probe, _ in members}),
            "reference": span(found["reference"] for _, found in members),
            "candidate": span(found["candidate"] for _, found in members),
        }
        for (form, value), members in sorted(groups.items(), key=lambda g: _form_order(g[0][0]))
    ]
