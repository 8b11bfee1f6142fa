"""Speed-ups of whole networks over their best free setting, from the records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import _bars, _results
from benchmarks._layers_summary import geometric_mean
from benchmarks._records import DamagedError, Record, Results
from benchmarks._results import timing
from dwr_rewrite.timing import Paired, Speedup, Timing

LIMIT = 0.99
"""A rewritten network must not run at less than this share of the speed that it has for free."""

EXPLANATION = f"""\
Both sides of a speed-up were timed in the same rounds, after `fx_rewrite` or `onnx_rewrite` had
decided: the original under each setting that costs nothing and leaves the precision of every
product as it was, of which the fastest by its median counts, and the rewritten network under the
setting that the rewrite was decided with. *kept*: no form was faster, so that the network is the
original (1 by definition). Geometric mean, worst and best include those. *slower* counts networks
below {LIMIT}; there must be none.
"""

KEPT = Speedup(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One network in one mode: ``gain`` is None where it could not be measured.

    Attributes:
        group: its record.
        best: name of the fastest setting.
        free: its speed-up over the original as it is given.
        gain: of the rewritten network over that setting.
        sites: how many convolutions were rewritten.
        why: there is no gain.
    """

    group: Record
    best: str = ""
    free: float = 1.0
    gain: Speedup | None = None
    sites: int = 0
    why: str = ""

    @property
    def slower(self) -> bool:
        return self.gain is not None and self.gain.median < LIMIT


def case(group: Record) -> Case:
    entries = group["entries"]
    ours = [entry for entry in entries if entry.get("role") == "rewritten"]
    timed = [entry for entry in entries if entry["status"] == "timed"]
    originals = [entry for entry in timed if entry.get("role") == "original"]
    refused = [e for e in entries if e["status"] not in ("timed", "same")]
    if not originals or not ours or ours[0]["status"] not in ("timed", "same"):
        last = refused[-1] if refused else {"status": "failed", "reason": "nothing was timed"}
        return Case(group, why=f"{last['status']}: {last['reason']}")
    times: dict[str, Timing] = {entry["setting"]: timing(entry) for entry in originals}
    best = min(times, key=lambda setting: times[setting].median)
    given = times.get("", times[best])
    gain = KEPT
    if ours[0]["status"] == "timed":
        gain = Speedup.of(Paired(times[best], timing(ours[0])))
    sites = ours[0].get("plan", {}).get("sites", 0)
    return Case(group, best, given.median / times[best].median, gain, sites)


def write(results: Results, folder: Path | None) -> tuple[str, bool]:
    """Writes JSON, table and, where matplotlib is, the plot; whether no network is slower."""
    if results.runs[0]["study"] != "models":
        raise DamagedError(f"these are results of {results.runs[0]['study']}, not of models")
    cases = [case(group) for group in results.groups.values()]
    shown = table(results, cases)
    target = _results.write(results, shown, folder)
    bars: dict[str, dict[str, Speedup]] = {}
    for each in cases:
        if each.gain is not None:
            here = bars.setdefault(f"{each.group['network']}, batch {each.group['batch']}", {})
            here[_kind(each.group)] = each.gain
    drawn = _bars.write(bars, "speed-up of the rewritten network over its best free setting",
                        results.runs[0]["device"]["name"], target / "models.png")  # fmt: skip
    slower = [each for each in cases if each.slower]
    told = f"{shown}\nwritten: {target}{drawn}"
    for each in slower:
        told += f"\nSLOWER: {each.group['key']}"
    return told, not slower


def _kind(group: Record) -> str:
    return f"{group['engine']} {group['mode']} {group['dtype']}"


def table(results: Results, cases: Sequence[Case]) -> str:
    """Markdown."""
    head = ["engine and mode", "networks", "kept", "geometric mean", "worst", "best",
            f"slower than {LIMIT}", "not measured"]  # fmt: skip
    kinds = dict.fromkeys(_kind(each.group) for each in cases)
    sums = [_sum(kind, [c for c in cases if _kind(c.group) == kind]) for kind in kinds]
    each = ["network", "engine and mode", "batch", "best free setting", "its gain", "sites",
            "rewritten over it"]  # fmt: skip
    title = _results.heading(results, "Whole networks")
    rows = _results.markdown(each, [_row(case) for case in cases])
    return f"{title}\n{_results.markdown(head, sums)}\n\n{EXPLANATION}\n{rows}\n\n{_why(cases)}\n"


def _sum(kind: str, cases: Sequence[Case]) -> list[str]:
    gains = [each.gain.median for each in cases if each.gain is not None]
    kept = sum(each.gain is KEPT for each in cases)
    missing = len(cases) - len(gains)
    if not gains:
        return [kind, "0", "0", "", "", "", "0", str(missing)]
    middle = [f"{value:.3f}" for value in (geometric_mean(gains), min(gains), max(gains))]
    slower = sum(each.slower for each in cases)
    return [kind, str(len(gains)), str(kept), *middle, str(slower), str(missing)]


def _row(each: Case) -> list[str]:
    group = each.group
    cells = [group["network"], _kind(group), str(group["batch"])]
    if each.gain is None:
        return [*cells, "", "", "", each.why.partition(":")[0]]
    gain = each.gain
    told = f"{gain.median:.3f} [{gain.low:.3f}, {gain.high:.3f}]" if gain is not KEPT else "kept"
    return [*cells, each.best or "none", f"{each.free:.3f}", str(each.sites), told]


def _why(cases: Sequence[Case]) -> str:
    reasons: Mapping[str, int] = Counter(each.why for each in cases if each.why)
    lines = [f"- {reason} ({count})" for reason, count in reasons.items()]
    return "\n".join(["Not measured:", "", *(lines or ["- nothing"])])
