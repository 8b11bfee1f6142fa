"""The table of the layer study: which form wins where, and by how much."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks import _results
from benchmarks._layers_summary import FORMS, Row, rows
from benchmarks._records import Results

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
    """Writes layers.json and layers.md; their folder and the table."""
    shown = table(results)
    return _results.write(results, shown, folder), shown


def table(results: Results) -> str:
    """Markdown."""
    head = ["dtype", "layout", "batch", "direction", "layers", "free", *FORMS, "per layer"]
    title = _results.heading(results, "Depthwise layers")
    body = _results.markdown(head, [_cells(row) for row in rows(results)])
    return f"{title}\n{body}\n\n{EXPLANATION}\n{_refused(results)}\n"


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
