"""What the samples say: medians, ratios of paired samples, and who wins where.

Everything is expressed as the speed-up over torch's default in NCHW or in the layout of the row,
each against the default that was timed in the same rounds. A free setting is one that needs no
rewrite; a form wins a layer if it beats the best of them, not the default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log
from typing import Any

from benchmarks._layers_work import BATCHES, DTYPES, WIDTHS, Way
from benchmarks._records import Record, Results
from benchmarks._results import timings_of
from dwr_rewrite.timing import Paired, Timing
from dwr_rewrite.workload import DIRECTIONS, LAYOUTS

FORMS = (*(f"blocks:{width}" for width in WIDTHS), "dense")
EITHER = "either"
"""A row in which every way may take the better layout; it is held against the default in NCHW."""


def speedup(ours: Timing, theirs: Timing) -> float:
    """Their median over ours."""
    return theirs.median / ours.median


@dataclass(frozen=True)
class Case:
    """One layer in a row: speed-ups over the default, and whether a form surely wins.

    Attributes:
        layer: its key.
        free: of each free setting that applies.
        forms: of each form.
        winner: the form that is fastest of all, if it beats every free setting beyond the interval.
    """

    layer: str
    free: dict[str, float]
    forms: dict[str, float]
    winner: str | None

    @property
    def best_free(self) -> float:
        return max([1.0, *self.free.values()])


@dataclass(frozen=True)
class Row:
    """All layers of one dtype, layout, batch and direction."""

    dtype: str
    layout: str
    batch: int
    direction: str
    precomputed: bool
    cases: list[Case]

    @property
    def best_setting(self) -> tuple[str, float]:
        """The free setting with the largest geometric mean; where one does not apply it is 1."""
        names = dict.fromkeys(name for case in self.cases for name in case.free)
        means = {n: geometric_mean(case.free.get(n, 1.0) for case in self.cases) for n in names}
        best = max(means, key=lambda name: means[name], default="default")
        return (best, means[best]) if means.get(best, 0.0) > 1.0 else ("default", 1.0)

    def against_free(self, form: str) -> tuple[float | None, int]:
        """Geometric mean over each layer's best free setting, and how many layers have the form."""
        found = [case.forms[form] / case.best_free for case in self.cases if form in case.forms]
        return (geometric_mean(found) if found else None), len(found)

    def wins(self, form: str) -> int:
        return sum(case.winner == form for case in self.cases)

    @property
    def per_layer(self) -> float:
        """Geometric mean of taking, layer by layer, a form where it wins and nothing elsewhere."""
        return geometric_mean(
            case.forms[case.winner] / case.best_free if case.winner else 1.0 for case in self.cases
        )


def geometric_mean(values: Iterable[float]) -> float:
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def rows(results: Results) -> list[Row]:
    """A row for each dtype, layout, batch and direction of which a layer was measured."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    compiled = {_of(g): g for g in results.groups.values() if g["compiled"]}
    for group in results.groups.values():
        if not group["compiled"]:
            key = (group["dtype"], group["batch"], group["direction"])
            groups.setdefault(key, []).append(group)
    found: list[Row] = []
    for dtype, batch, direction in sorted(groups, key=_rank):
        for precomputed in (True, False) if direction == "forward" else (False,):
            for layout in (*LAYOUTS, EITHER):
                cases = [
                    _case(group, compiled.get(_of(group)), layout, precomputed)
                    for group in groups[dtype, batch, direction]
                ]
                kept = [case for case in cases if case is not None]
                if kept:
                    found.append(Row(dtype, layout, batch, direction, precomputed, kept))
    return found


def _rank(key: tuple[Any, ...]) -> tuple[int, int, int]:
    dtype, batch, direction = key
    known = BATCHES.index(batch) if batch in BATCHES else len(BATCHES) + batch
    return known, DTYPES.index(dtype), DIRECTIONS.index(direction)


def _of(group: Record) -> str:
    return group["key"].rpartition(" ")[0]


def _case(group: Record, compiled: Record | None, layout: str, precomputed: bool) -> Case | None:
    times = timings_of(group)
    base = times.get(_default(layout))
    if base is None:
        return None
    eager = {e["way"]: times[e["way"]] for e in _in(group, layout, times) if is_free(e)}
    free = {name: speedup(each, base) for name, each in eager.items()}
    free |= compiled_free(compiled, layout)
    forms: dict[str, Timing] = {}
    for entry in _in(group, layout, times):
        if entry["form"] != "keep" and entry["precomputed"] == precomputed:
            each, known = times[entry["way"]], forms.get(entry["form"])
            if known is None or each.median < known.median:
                forms[entry["form"]] = each
    speeds = {form: speedup(each, base) for form, each in forms.items()}
    return Case(group["key"], free, speeds, _winner(forms, speeds, eager, base, free))


def _default(layout: str) -> str:
    """Name of the way that a row is held against."""
    return next(Way(each).name for each in LAYOUTS if layout in (each, EITHER))


def _in(group: Record, layout: str, times: dict[str, Timing]) -> list[Record]:
    return [
        entry
        for entry in group["entries"]
        if entry["way"] in times and layout in (EITHER, entry["layout"])
    ]


def is_free(entry: Record) -> bool:
    """Whether a user gets this by a setting: not by calling cuDNN's operator by hand."""
    return entry["form"] == "keep" and entry.get("how") != "operator"


def compiled_free(group: Record | None, layout: str) -> dict[str, float]:
    """Speed-ups of what torch.compile makes of the convolution over the default."""
    if group is None:
        return {}
    times = timings_of(group)
    base = times.get(_default(layout))
    if base is None:
        return {}
    return {
        e["way"]: speedup(times[e["way"]], base)
        for e in _in(group, layout, times)
        if e["form"] == "keep" and e["setting"] != "default"
    }


def _winner(
    forms: dict[str, Timing], speeds: dict[str, float], eager: dict[str, Timing], base: Timing,
    free: dict[str, float],
) -> str | None:  # fmt: skip
    """The fastest form, if it beats the best free setting beyond doubt (`Paired.is_faster`)."""
    if not speeds:
        return None
    best = max(speeds, key=lambda form: (speeds[form], form))
    rival = min([base, *eager.values()], key=lambda each: each.median)
    sure = Paired(rival, forms[best]).is_faster()
    return best if sure and speeds[best] > max([1.0, *free.values()]) else None
