"""The merged results on disk: layers.json with every sample, and layers.md with the winners."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from benchmarks import _measure
from benchmarks._layers_device import slug
from benchmarks._layers_records import SCHEMA, DamagedError, Record, Results
from benchmarks._layers_summary import FORMS, Row, median, rows

RESULTS = _measure.ROOT / "benchmarks" / "results"

EXPLANATION = """\
Each row is one dtype, layout, batch and direction over all layers that were measured. *free* is
the setting without a rewrite that is best by geometric mean, and its gain over torch's default. A
form's column is its geometric mean against the best free setting **of each layer**, and in brackets
on how many layers it is the fastest of all by more than the 95 % interval. *per layer* takes a form
only where it wins. tf32 is float32 with TF32 on, torch's default for convolutions; fp32 has it off.
`stored`: the packed weight is stored, as for inference; otherwise every call packs it. `either`:
every way in its better layout, held against the default in NCHW.
"""


def write(results: Results, folder: Path | None = None) -> tuple[Path, str]:
    """Writes both files into ``folder`` (by default that of the device); the path and the table."""
    device = results.runs[0]["device"]
    target = folder or RESULTS / slug(device)
    target.mkdir(parents=True, exist_ok=True)
    shown = table(results)
    (target / "layers.json").write_text(as_json(results))
    (target / "layers.md").write_text(shown)
    return target, shown


def as_json(results: Results) -> str:
    """One line for each group, each timed way with its median, interval and variation."""
    groups = [
        json.dumps(_summarised(group), separators=(",", ":")) for group in results.groups.values()
    ]
    label = results.runs[0]["device"]["label"]
    head = {"study": "layers", "schema": SCHEMA, "label": label, "runs": results.runs}
    return f'{json.dumps(head)[:-1]}, "groups": [\n' + ",\n".join(groups) + "\n]}\n"


def _summarised(group: Record) -> Record:
    entries = [
        {**entry, **median(entry["us"])} if entry["status"] == "timed" else entry
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
            f"{path} is no merged result ({error!r}); `benchmarks.layers --merge` writes one"
        ) from None
    results = Results()
    for number, record in enumerate(found, 1):
        results.take(record, f"{path}, record {number}")
    return results


def table(results: Results) -> str:
    """Markdown."""
    device = results.runs[0]["device"]
    versions = ", ".join(f"{n} {device[n]}" for n in ("torch", "cudnn", "cuda") if device[n])
    label = f" ({device['label']})" if device["label"] else ""
    head = ["dtype", "layout", "batch", "direction", "layers", "free", *FORMS, "per layer"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(_cells(row)) for row in rows(results)]
    body = "\n".join(f"| {line} |" for line in lines)
    title = f"# Depthwise layers on {device['name']}{label}"
    return f"{title}\n\n{versions}\n\n{body}\n\n{EXPLANATION}\n{_refused(results)}\n"


def _cells(row: Row) -> list[str]:
    setting, gain = row.best_setting
    direction = row.direction + (" stored" if row.precomputed else "")
    cells = [row.dtype, row.layout, str(row.batch), direction, str(len(row.cases))]
    cells.append(f"{setting.replace(' keep', '')} {gain:.2f}")
    for form in FORMS:
        mean, count = row.against_free(form)
        missing = "" if count == len(row.cases) else f" of {count}"
        cells.append("" if mean is None else f"{mean:.2f} ({row.wins(form)}{missing})")
    return [*cells, f"{row.per_layer:.2f}"]


def _refused(results: Results) -> str:
    statuses = Counter(
        entry["status"] for group in results.groups.values() for entry in group["entries"]
    )
    refused = [f"{name} {n}" for name, n in statuses.most_common() if name not in ("timed", "same")]
    none = ", ".join(refused) or "none"
    return f"Groups: {len(results.groups)}. Timed ways: {statuses['timed']}. No time: {none}."
