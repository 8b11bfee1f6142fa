"""The merged results on disk: <study>.json with every sample, and <study>.md with the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks._device import slug
from benchmarks._records import SCHEMA, DamagedError, Record, Results
from dwr_rewrite.timing import Timing

RESULTS = Path(__file__).parent / "results"


def timing(entry: Record) -> Timing:
    """Of an entry with samples."""
    return Timing(tuple(us / 1e6 for us in entry["us"]))


def timings_of(group: Record) -> dict[str, Timing]:
    """By the name of the way; a way that is the same as another has that one's."""
    found = {each["way"]: timing(each) for each in group["entries"] if each["status"] == "timed"}
    for each in group["entries"]:
        if each["status"] == "same" and each["same_as"] in found:
            found[each["way"]] = found[each["same_as"]]
    return found


def summary(timing: Timing) -> dict[str, Any]:
    """Median, its bootstrap 95 % interval, and the coefficient of variation of the samples."""
    return {
        "median_us": short(1e6 * timing.median),
        "interval_us": [short(1e6 * end) for end in timing.interval],
        "cv": short(timing.variation),
    }


def short(value: float) -> float:
    return float(f"{value:.4g}")


def write(results: Results, shown: str, folder: Path | None) -> Path:
    """Writes both files into ``folder`` (by default that of the device); the folder."""
    target = folder or RESULTS / slug(results.runs[0]["device"])
    target.mkdir(parents=True, exist_ok=True)
    study = results.runs[0]["study"]
    (target / f"{study}.json").write_text(as_json(results))
    (target / f"{study}.md").write_text(shown)
    return target


def as_json(results: Results) -> str:
    """One line for each group, each timed way with its median, interval and variation."""
    groups = [
        json.dumps(_summarised(group), separators=(",", ":")) for group in results.groups.values()
    ]
    run = results.runs[0]
    head = {"study": run["study"], "schema": SCHEMA, "label": run["device"]["label"],
            "runs": results.runs}  # fmt: skip
    return f'{json.dumps(head)[:-1]}, "groups": [\n' + ",\n".join(groups) + "\n]}\n"


def _summarised(group: Record) -> Record:
    entries = [
        {**entry, **summary(timing(entry))} if entry["status"] == "timed" else entry
        for entry in group["entries"]
    ]
    return {**group, "entries": entries}


def load(path: Path) -> Results:
    """A merged file.

    Raises:
        DamagedError: it is not there, or not one.
    """
    try:
        data = json.loads(path.read_text())
        found = [*data["runs"], *data["groups"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{path} is no merged result ({error!r}); `--merge` of its study writes one"
        ) from None
    results = Results()
    for number, record in enumerate(found, 1):
        results.take(record, f"{path}, record {number}")
    return results


def heading(results: Results, title: str) -> str:
    """The title of a table with the device, and its versions below."""
    device = results.runs[0]["device"]
    names = ("driver", "torch", "cudnn", "cuda", "onnxruntime-gpu", "onnxruntime")
    versions = ", ".join(f"{n} {device[n]}" for n in names if device.get(n))
    label = f" ({device['label']})" if device["label"] else ""
    return f"# {title} on {device['name']}{label}\n\n{versions}\n"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
