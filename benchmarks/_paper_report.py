"""The tables of the paper's experiment, from its records alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks import _bars, _paper, _results
from benchmarks._layers_work import DTYPES
from benchmarks._records import DamagedError, Record, Results
from benchmarks._results import timing, timings_of
from dwr_rewrite.timing import Paired, Speedup, Timing
from dwr_rewrite.workload import DIRECTIONS, LAYOUTS

PUBLISHED = 5.4
"""Speed-up of training MobileNetV1 in PyTorch, over its own implementation of the day (abstract of
arXiv:1803.09926; which GPU and versions it was is not told there)."""

NAMES = {
    "keep": "depthwise",
    _paper.FORM: "the authors' masked parameter",
    "blocks:32": "blocks:32, linked",
    "plan": "fx_rewrite's plan",
}
"""What the forms are called in tables."""

EXPLANATION = """\
Medians; a speed-up is the time of `depthwise` with torch's defaults in NCHW over that of the row,
with its 95 % interval, from samples of the same rounds. *layers* are the 13 depthwise layers alone,
one after the other: on a GPU in one CUDA graph, the bias and everything else left out, operands and
weight in the dtype. *sum* adds the three directions. *step* is the whole training step: forward,
cross entropy, backward, SGD. *peak* is parameters, buffers and momentum, and what a step allocates
beside them. tf32 is float32 with TF32 on in convolutions, torch's default; fp32 has it off; bf16
and fp16 are autocast, the latter with a GradScaler. *setting* benchmark: with
`torch.backends.cudnn.benchmark`.
"""


def write(results: Results, folder: Path | None) -> str:
    """Writes JSON, table and, where matplotlib is, the plot; the table and where it lies."""
    shown = table(results)
    target = _results.write(results, shown, folder)
    found = {
        f"{dtype}, {layout}": {
            NAMES[form]: gain
            for form, gain in training(group, layout).items()
        }
        for dtype, group in _parts(results, "step")
        for layout in LAYOUTS
    }  # fmt: skip
    drawn = _bars.write(found, "training step, speed-up over torch's defaults in NCHW",
                        _title(results), target / "paper_table.png")  # fmt: skip
    return f"{shown}\nwritten: {target}{drawn}"


def table(results: Results) -> str:
    """Markdown."""
    if results.runs[0]["study"] != "paper_table":
        raise DamagedError(f"these are results of {results.runs[0]['study']}, not of paper_table")
    sizes = sorted({(group["batch"], group["size"]) for group in results.groups.values()})
    shape = ", ".join(f"batch {batch} of 3x{size}x{size}" for batch, size in sizes)
    parts = [
        _results.heading(results, "MobileNetV1 as in the paper"), f"Training, {shape}.\n",
        _beside(results),
    ]  # fmt: skip
    for dtype in DTYPES:
        rows = _rows(results, dtype)
        if rows:
            head = ["layout", "form", "setting", *(f"{d} ms" for d in DIRECTIONS), "sum ms",
                    "sum: speed-up", "step ms", "step: speed-up", "peak MiB"]  # fmt: skip
            parts.append(f"## {dtype}\n\n{_results.markdown(head, rows)}\n")
    return "\n".join([*parts, EXPLANATION])


def _title(results: Results) -> str:
    device = results.runs[0]["device"]
    return f"MobileNetV1, {device['name']}" + (f" ({device['label']})" if device["label"] else "")


def _parts(results: Results, part: str) -> Iterable[tuple[str, Record]]:
    for dtype in DTYPES:
        group = results.groups.get(f"{part} {dtype}")
        if group is not None:
            yield dtype, group


def _beside(results: Results) -> str:
    """The published figure and today's, in one table."""
    rows = [["arXiv:1803.09926, PyTorch of its day", "", "", f"{PUBLISHED}"]]
    for dtype, group in _parts(results, "step"):
        for layout in LAYOUTS:
            rows += [
                [NAMES[form], dtype, layout, told(gain)]
                for form, gain in training(group, layout).items()
            ]
    return _results.markdown(["training step", "dtype", "layout", "speed-up"], rows) + "\n"


def training(group: Record, layout: str) -> dict[str, Speedup]:
    """Speed-up of the step with each form over torch's defaults in NCHW."""
    times = timings_of(group)
    base = times.get("nchw keep default")
    if base is None:
        return {}
    entries = [e for e in group["entries"] if e["layout"] == layout and e["way"] in times]
    return {
        entry["form"]: Speedup.of(Paired(base, times[entry["way"]]))
        for entry in entries
        if entry["setting"] == "benchmark"
    }


def told(gain: Speedup) -> str:
    return f"{gain.median:.2f} [{gain.low:.2f}, {gain.high:.2f}]"


def _rows(results: Results, dtype: str) -> list[list[str]]:
    layers = results.groups.get(f"layers {dtype}", {"entries": []})
    step = results.groups.get(f"step {dtype}", {"entries": []})
    alone, whole = _sums(timings_of(layers)), timings_of(step)
    by_way = {entry["way"]: entry for entry in step["entries"]}
    first = {e["way"].rpartition(" ")[0]: e for e in layers["entries"]} | by_way
    return [
        [
            entry["layout"], NAMES[entry["form"]], entry["setting"],
            *_milliseconds(layers, way, alone), _gain(alone, way),
            f"{1e3 * whole[way].median:.2f}" if way in whole else _why(by_way.get(way)),
            _gain(whole, way), _mib(by_way.get(way, {})),
        ]
        for way, entry in first.items()
    ]  # fmt: skip


def _sums(times: Mapping[str, Timing]) -> dict[str, Timing]:
    """Of the three directions of each way, sample by sample: they were taken in the same rounds."""
    ways = dict.fromkeys(name.rpartition(" ")[0] for name in times)
    parts = {way: [times.get(f"{way} {direction}") for direction in DIRECTIONS] for way in ways}
    return {
        way: Timing(tuple(map(sum, zip(*(t.samples for t in found if t), strict=True))))
        for way, found in parts.items()
        if all(found)
    }


def _milliseconds(layers: Record, way: str, sums: Mapping[str, Timing]) -> list[str]:
    entries = {entry["way"]: entry for entry in layers["entries"]}
    found = [entries.get(f"{way} {direction}") for direction in DIRECTIONS]
    cells = [
        f"{1e3 * timing(e).median:.3f}" if e and e["status"] == "timed" else _why(e) for e in found
    ]
    return [*cells, f"{1e3 * sums[way].median:.3f}" if way in sums else ""]


def _gain(times: Mapping[str, Timing], way: str) -> str:
    base = times.get("nchw keep default")
    return told(Speedup.of(Paired(base, times[way]))) if base and way in times else ""


def _why(entry: Record | None) -> str:
    return entry["status"] if entry else ""


def _mib(entry: Record) -> str:
    peak = entry.get("peak_bytes")
    return "" if peak is None else f"{peak / 2**20:,.0f}"
