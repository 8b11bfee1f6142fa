"""What the samples say of our kernels: how fast they are, beside what, and which target is met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from benchmarks import _results
from benchmarks._kernels_cases import Case, cases
from benchmarks._kernels_network import Network, networks
from benchmarks._layers_summary import geometric_mean
from benchmarks._records import Results
from benchmarks._roofline_points import rates
from dwr_rewrite.workload import DIRECTIONS, Direction

OF_COPY: dict[Direction, float] = {"forward": 0.85, "grad_input": 0.85, "grad_weight": 0.70}
"""The targets: fraction of the copy bandwidth, for layers larger than the L2 whose kernel has up to
7 taps along an axis."""

TRAINING = 5.4
"""The target for the depthwise layers of MobileNetV1: the paper's own speed-up of training it."""

SLOWER = 0.99
"""Below this fraction of the best free setting's speed a kernel counts as slower."""

WORST = 5

EXPLANATION = f"""\
Times are medians. *free* is the fastest setting without a rewrite, in either layout, torch.compile
with max-autotune among them. *own*: the kernel in the tile that it takes by itself, as in a first
call; *best*: in the fastest of the tiles that tuning tries; both in their better layout. *of copy*
is the bytes that must move, each once, over the time, against the copy bandwidth that was measured
in the same run. *slower* counts layers at less than {SLOWER:g} times the speed of the best free
setting. *bound* is the longer of two times: the bytes at the copy bandwidth, the flops at the rate
that fp32 matrix products were measured at. *first call*: seconds with compilation, where this run
had not compiled the same kernel before. fp32 has TF32 off.
"""


@dataclass(frozen=True)
class Report:
    """All cases of some results, and the networks that they make up."""

    results: Results

    @cached_property
    def cases(self) -> list[Case]:
        return cases(self.results, rates(self.results))

    @cached_property
    def networks(self) -> list[Network]:
        return networks(self.results)

    @property
    def targeted(self) -> list[Case]:
        """Cases of which the bandwidth is asked."""
        return [case for case in self.cases if case.large and max(case.layer.kernel) <= 7]


def tables(results: Results) -> tuple[str, str]:
    """Markdown: a summary, and the same with a table of all layers."""
    report = Report(results)
    title = _results.heading(results, "Our kernels")
    by = ", ".join(sorted({run["kernels"] for run in results.runs}))
    how = f"The kernels are run by {by}."
    parts = [title, how, targets(report), by_direction(report), worst(report), EXPLANATION]
    summary = "\n\n".join(parts)
    return summary, f"{summary}\n## Layers\n\n{by_layer(report)}\n"


def targets(report: Report) -> str:
    """The targets and what was reached; the best tile counts."""
    lines: list[list[str]] = []
    for direction, required in OF_COPY.items():
        found = [c.of_copy for c in report.targeted if c.direction == direction]
        name = f"{direction}, larger than the L2, kernels up to 7"
        lines.append([name, f"{required:.0%} of copy", _reached(found, required)])
    lines += [[each.name, f"{TRAINING} x default", each.told] for each in report.networks]
    speeds = [c.over_free for c in report.cases if c.over_free is not None]
    told = f"{_slower(speeds)} of {len(speeds)}" if speeds else "not measured"
    lines.append(["slower than the best free setting", "none", told])
    return _results.markdown(["target", "required", "reached"], lines)


def _reached(found: Sequence[float], required: float) -> str:
    if not found:
        return "not measured"
    count = sum(value >= required for value in found)
    return f"{count} of {len(found)}; median {median(found):.0%}, worst {min(found):.0%}"


def _slower(speeds: Iterable[float]) -> int:
    return sum(speed < SLOWER for speed in speeds)


def by_direction(report: Report) -> str:
    """A row for each dtype, batch and direction."""
    groups: dict[tuple[str, int, str], list[Case]] = {}
    for case in report.cases:
        groups.setdefault((case.dtype, case.batch, case.direction), []).append(case)
    head = ["dtype", "batch", "direction", "layers", "own x default", "best x default",
            "own x free", "best x free", "slower", "large", "own of copy",
            "best of copy"]  # fmt: skip
    return _results.markdown(head, [
        [dtype, str(batch), direction, str(len(found)), *_speeds(found)]
        for (dtype, batch, direction), found in groups.items()
    ])  # fmt: skip


def _speeds(found: Sequence[Case]) -> list[str]:
    large = [case for case in found if case.large]
    over_free = [case.over_free for case in found if case.over_free is not None]
    return [
        _mean(case.own_over_default for case in found), _mean(case.over_default for case in found),
        _mean(case.own_over_free for case in found), _mean(over_free),
        str(_slower(over_free)), str(len(large)),
        _middle([case.own_of_copy for case in large if case.own_of_copy is not None]),
        _middle([case.of_copy for case in large]),
    ]  # fmt: skip


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{geometric_mean(known):.2f}" if known else ""


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.0%}" if values else ""


def worst(report: Report) -> str:
    """The cases of each direction that are farthest from their bandwidth, and what bounds them."""
    head = ["direction", "layer", "dtype", "batch", "MB", "Mflop", "bound", "us at the bound",
            "us", "of copy", "tile", "free"]  # fmt: skip
    lines: list[list[str]] = []
    for direction in DIRECTIONS:
        found = [c for c in report.targeted or report.cases if c.direction == direction]
        lines += map(_bound, sorted(found, key=lambda each: each.of_copy)[:WORST])
    kind = "larger than the L2, kernels up to 7" if report.targeted else "no large layer measured"
    return f"The worst {WORST} of each direction ({kind}):\n\n{_results.markdown(head, lines)}"


def _bound(case: Case) -> list[str]:
    return [
        case.direction, case.layer.key, case.dtype, str(case.batch), f"{case.bytes / 1e6:.3g}",
        f"{case.flops / 1e6:.3g}", case.bound[0], f"{case.bound[1]:.3g}", f"{case.best.us:.4g}",
        f"{case.of_copy:.0%}", f"{case.best.layout} {case.best.tile}", _free(case),
    ]  # fmt: skip


def _free(case: Case) -> str:
    return "" if case.free is None else f"{case.free[0].replace(' keep', '')} {case.free[1]:.4g}"


def by_layer(report: Report) -> str:
    head = ["layer", "dtype", "batch", "direction", "default us", "free us", "own us", "best us",
            "best tile", "of copy", "x default", "x free", "first call s"]  # fmt: skip
    return _results.markdown(head, [
        [case.layer.key, case.dtype, str(case.batch), case.direction, _number(case.default_us),
         _free(case), "" if case.own is None else f"{case.own.us:.4g}", f"{case.best.us:.4g}",
         f"{case.best.layout} {case.best.tile}", f"{case.of_copy:.0%}",
         _ratio(case.over_default), _ratio(case.over_free), f"{case.first_s:.2g}"]
        for case in report.cases
    ])  # fmt: skip


def _number(us: float | None) -> str:
    return "" if us is None else f"{us:.4g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
