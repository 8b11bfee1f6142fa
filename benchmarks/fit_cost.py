"""Fits the cost model to measured layers, and tells how far it is from them.

`python -m benchmarks.fit_cost` reads every benchmarks/results/<device>/layers.json (or the files
that are named) and prints, for each device, the errors of the bare roofline and of the fitted
model, the latter on layers that it was not fitted to (each layer is left out in turn). `--write`
keeps the factors of devices that are known targets in dwr_rewrite/cost/efficiency.json, from where
`--target NAME` takes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import _results
from benchmarks._layers_rates import CPU_CACHE
from benchmarks._layers_shapes import Layer
from benchmarks._layers_work import LAYOUTS, Layout
from benchmarks._records import DamagedError, Record, Results
from dwr_rewrite.cost import Model, Target, find_target
from dwr_rewrite.cost.efficiency import FILE, Efficiency, as_json, shipped
from dwr_rewrite.cost.errors import Case, errors
from dwr_rewrite.cost.fit import fit
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.lowerings import is_kernel, kernel
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Workload

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "dwr_rewrite" / "cost" / FILE
ELEMENTS = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
MULTIPLIED = {"tf32": "tf32", "fp16": "float16", "bf16": "bfloat16"}
"""Names of the study's types: of the elements, and of what matrix units multiply."""

Source = dict[str, str]

NOTHING = (
    "there is no benchmarks/results/<device>/layers.json yet, so there is nothing to fit: run "
    "`make gpu-bench` on a GPU first"
)


def cases(results: Results) -> list[Case]:
    """Every layer in both layouts, with the packed weight stored and made in every call."""
    groups = [group for group in results.groups.values() if not group["compiled"]]
    return [case for group in groups for layout in LAYOUTS for case in _cases(group, layout)]


def _cases(group: Record, layout: Layout) -> Iterator[Case]:
    layer, direction = Layer.of(group["layer"]), group["direction"]
    spec = replace(layer.spec, dtype=ELEMENTS[group["dtype"]])
    timed = [e for e in group["entries"] if e["status"] == "timed" and e["layout"] == layout]
    kept = [entry for entry in timed if _is_free(entry)]
    for stored in (True, False) if direction == "forward" else (False,):
        forms = [e for e in timed if e["form"] != "keep" and e["precomputed"] == stored]
        if kept:
            workload = Workload(
                spec, group["batch"], direction, layout, group["dtype"] == "tf32", stored
            )
            times: dict[Recipe, float] = {}
            for entry in (*kept, *forms):
                recipe, seconds = _recipe(spec, entry), _results.timing(entry).median
                times[recipe] = min(seconds, times.get(recipe, seconds))
            yield Case(layer.key, workload, times)


def _recipe(spec: ConvSpec, entry: Record) -> Recipe:
    """What was measured; all tiles of our kernels are one form, whose time is that of the best."""
    if not is_kernel(entry["form"]):
        return diagonal(spec, entry["width"])
    found = kernel.lower(spec)
    assert not isinstance(found, Rejection)  # it ran
    return found


def _is_free(entry: Record) -> bool:
    """Whether a setting gives it without a rewrite; the fastest is what a form has to beat."""
    return entry["form"] == "keep" and entry.get("how") != "operator"


def target_of(results: Results) -> Target:
    """The known target of these results; for any other device the one that its rates make."""
    run = results.runs[0]
    device, rates = run["device"], run["rates"]
    try:
        return find_target(device["name"])
    except DwrError:
        return Target(
            device["name"], device["name"], rates["copy"], device.get("l2_bytes", CPU_CACHE),
            device.get("multiprocessors") or device["cores"], {"float32": rates["fp32"]},
            {MULTIPLIED[name]: rates[name] for name in MULTIPLIED if name in rates},
            calibrated=True,
        )  # fmt: skip


def source_of(path: Path, results: Results) -> Source:
    """Where factors come from: file, date and versions."""
    device = results.runs[0]["device"]
    told = {name: str(device[name]) for name in ("driver", "torch", "cudnn") if device.get(name)}
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(path.name)
    return {"file": shown.as_posix(), "date": results.runs[-1]["date"], **told}


def table(target: Target, bare: Mapping[str, float], fitted: Mapping[str, float]) -> str:
    """Markdown: the errors of the bare roofline and of the fitted model."""
    lines = [["", "bare roofline", "fitted, on layers left out"]]
    lines += [
        [label, *(shown.format(each[name]) for each in (bare, fitted))]
        for name, (label, shown) in ERRORS.items()
    ]
    counts = "{observations} times of {layers} layers; {cases} choices of a form".format(**bare)
    title = f"# Cost model of {target.title}"
    return f"{title}\n\n{counts}\n\n{_results.markdown(lines[0], lines[1:])}\n"


ERRORS = {
    "median": ("error, median", "{:.2f} times"),
    "p90": ("error, 90 % within", "{:.2f} times"),
    "plain_best": ("expected to be fastest: is measured best", "{:.0%}"),
    "plain_regret_median": ("expected to be fastest: time over the best's, median", "{:.3f}"),
    "plain_regret_p90": ("expected to be fastest: time over the best's, 90 % within", "{:.3f}"),
    "margin": ("margin", "{:.2f}"),
    "careful_best": ("taken with the margin: is measured best", "{:.0%}"),
    "careful_regret_median": ("taken with the margin: time over the best's, median", "{:.3f}"),
    "careful_regret_p90": ("taken with the margin: time over the best's, 90 % within", "{:.3f}"),
    "careful_rewritten": ("taken with the margin: other than the depthwise form", "{:.0%}"),
    "careful_slower": ("of these slower than the depthwise form", "{:.0%}"),
}


def study(paths: Iterable[Path]) -> tuple[str, dict[str, Efficiency]]:
    """What is printed, and the efficiency of every device that is a known target.

    Raises:
        DamagedError: a file is not a merged result of the layer study.
    """
    told: list[str] = []
    found: dict[str, Efficiency] = {}
    for target, measured, sources in _by_target(paths):
        try:
            efficiency = fit(target, measured, sources)
            bare = errors(measured, partial(_expected, Model(target)))
        except DwrError as error:
            told.append(f"{target.title}: {error}.")
            continue
        told.append(table(target, bare.to_dict(), efficiency.errors))
        if target.calibrated:
            told.append(f"{target.title} is not in targets.toml: its factors are not kept.")
        else:
            found[target.name] = efficiency
    return "\n".join(told), found


def _expected(model: Model, case: Case, recipe: Recipe) -> float:
    return model.seconds(case.workload, recipe)


def _by_target(paths: Iterable[Path]) -> list[tuple[Target, list[Case], tuple[Source, ...]]]:
    """The results of each device together."""
    found: dict[str, tuple[Target, list[Case], list[Source]]] = {}
    for path in paths:
        results = _results.load(path)
        target = target_of(results)
        _, measured, sources = found.setdefault(target.name, (target, [], []))
        measured += cases(results)
        sources.append(source_of(path, results))
    return [(target, measured, tuple(sources)) for target, measured, sources in found.values()]


def keep(found: Mapping[str, Efficiency], path: Path = SHIPPED) -> str:
    """Replaces the factors of these devices in the file that is shipped; what was done."""
    if not found:
        return "nothing was fitted for a known target; nothing is written"
    path.write_text(as_json({**shipped(), **found}))
    return f"written: {path}"


def main() -> None:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.fit_cost", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("results", nargs="*", type=Path, help="layers.json files (all there are)")
    made.add_argument("--write", action="store_true", help="keep the factors of known targets")
    options = made.parse_args()
    paths = options.results or sorted(_results.RESULTS.glob("*/layers.json"))
    try:
        told, found = study(paths)
    except DamagedError as error:
        made.error(str(error))
    print(told or NOTHING)
    if options.write:
        print(keep(found))


if __name__ == "__main__":
    main()
