"""What a report knows about the times of both models: how fast, beside what, after which trials."""

from __future__ import annotations

from dwr_rewrite.document import choices, wording
from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import Status, digits, factor, interval, milliseconds, plural
from dwr_rewrite.document.wording import speedup as with_interval


def status(document: Document) -> Status:
    """What is known about speed."""
    runtime, kept = document["runtime"], is_kept(document)
    if runtime and runtime["measurements"]:
        return "kept" if kept else _compared(runtime)
    found = list(choices.all_of(document))
    if any(option["time"] for choice in found for option in choice["options"]):
        return "kept" if kept else "alone"
    return "modelled" if any(map(choices.is_modelled, found)) else "unknown"


def is_kept(document: Document) -> bool:
    """Whether the candidate is the reference, because no convolution was changed."""
    return document["kind"] == "rewrite" and not document["summary"]["rewritten"]


def _compared(runtime: Document) -> Status:
    """By the interval of the speedup."""
    found = runtime["measurements"][0]["speedup"]
    return "faster" if found["low"] > 1 else "slower" if found["high"] < 1 else "alike"


def statement(document: Document) -> str:
    """What is known about speed, as a sentence."""
    return wording.SPEED[status(document)].format(**_figures(document))


def heading(document: Document) -> str:
    """The same in a few words."""
    return wording.SPEED_HEADINGS[status(document)].format(**_figures(document))


def _figures(document: Document) -> dict[str, str]:
    runtime = document["runtime"]
    if runtime is None:
        return {"factor": "", "interval": "", "device": "the device", "against": ""}
    rows = runtime["measurements"]
    found = rows[0]["speedup"] if rows else None
    return {
        "factor": factor(found["median"]) if found else "",
        "interval": f" {interval(found)}" if found else "",
        "device": runtime["device"],
        "against": f", against {against(document)}" if runtime["setting"] else "",
    }


def against(document: Document) -> str:
    """What the candidate is held against."""
    model = {"rewrite": "the original", "verify": "the reference"}[document["kind"]]
    setting = document["runtime"]["setting"]
    return f"{model} with {setting}" if setting else f"{model} as it was given"


def basis(document: Document) -> list[str]:
    """What the heading rests on, one line each; empty where nothing was timed."""
    runtime = document["runtime"]
    if runtime is None:
        return []
    held = f"against {against(document)}"
    if is_kept(document):
        tried = sorted(runtime["trials"], key=lambda t: -t["speedup"]["median"])
        best = [f"best of {plural(len(tried), 'trial')}: {trial(t)}" for t in tried[:1]]
        return [f"nothing was faster on {runtime['device']}", *best, held]
    lines = [f"on {runtime['device']}"]
    for row in runtime["measurements"][:1]:
        lines += [f"95 % interval {interval(row['speedup'])}", held]
        lines.append("{}: {} → {} ms".format(row["name"], *_medians(row)))
    return lines


def _medians(row: Document) -> tuple[str, str]:
    return digits(row["reference"]["median"]), digits(row["candidate"]["median"])


def measured(document: Document) -> list[str]:
    """One line for each thing that was timed: ``inference: 4.00 ms [...] became 2.99 ms [...]``."""
    word = ", tried" if is_kept(document) else " became"
    return [
        f"{row['name']}: {milliseconds(row['reference'])}{word} {milliseconds(row['candidate'])}"
        for row in (document["runtime"] or {"measurements": []})["measurements"]
    ]


def trial(found: Document) -> str:
    """One trial: ``12 sites: 0.98x [0.97, 0.99]``."""
    taken = ", taken" if found["accepted"] else ""
    return f"{plural(found['sites'], 'site')}: {with_interval(found['speedup'])}{taken}"


def trials(document: Document) -> list[str]:
    """All of them; none where there is one and the heading has told it."""
    found = (document["runtime"] or {"trials": []})["trials"]
    return [trial(t) for t in found] if len(found) > 1 or is_kept(document) else []


def energy(found: Document) -> str:
    """Joules of one run of both models."""
    before, after = found["reference"], found["candidate"]
    return f"{digits(before)} J by the reference, {digits(after)} J by the candidate"


def settings(document: Document) -> list[Document]:
    """The free settings: the most helpful first, then those that did not run."""
    found = (document["runtime"] or {"settings": []})["settings"]
    return sorted(found, key=lambda s: -s["speedup"]["median"] if s["speedup"] else 0)


def helpful(document: Document) -> list[str]:
    """The free settings that make the original faster beyond doubt, the best first."""
    return [
        f"{found['name']}: {with_interval(found['speedup'])}{marks(document, found)}, "
        f"by {found['how']}"
        for found in settings(document)
        if found["speedup"] and found["speedup"]["low"] > 1
    ]


def marks(document: Document, setting: Document) -> str:
    """What has to be known about a free setting, in parentheses."""
    found = ["changes rounding"] * (not setting["rounds_alike"])
    found += ["used for both"] * (setting["name"] == document["runtime"]["setting"])
    return f" ({', '.join(found)})" if found else ""
