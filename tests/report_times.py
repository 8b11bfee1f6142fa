"""Builds times for synthetic reports. All come from a made-up formula; none was measured."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import KEEP, candidates
from dwr_rewrite.planner import Choice, Option
from dwr_rewrite.planner.choice import by_model
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.timing import (
    Energy,
    FreeSetting,
    Measurement,
    Runtime,
    Speedup,
    Time,
    TrialResult,
)
from dwr_rewrite.tuning import Question
from dwr_rewrite.workload import DIRECTIONS, Direction, Workload

DEVICE = "NVIDIA H200 (CUDAExecutionProvider)"
SLOWNESS = {"forward": 1.0, "grad_input": 1.3, "grad_weight": 2.1}
FAILURES = {"dense": "it takes 12.4 GiB of memory, past the 8.0 GiB that are free",
            "blocks:8": "cudnn has no kernel for it (CUDNN_STATUS_NOT_SUPPORTED)"}  # fmt: skip


def time(median: float, spread: float = 0.02) -> Time:
    return Time(median, median * (1 - spread), median * (1 + 1.5 * spread), 2 * spread)


def speedup(median: float, spread: float = 0.02) -> Speedup:
    return Speedup(median, median - spread, median + 1.5 * spread)


def workload(spec: ConvSpec, direction: Direction) -> Workload:
    known = replace(spec, spatial=tuple(n or 56 for n in spec.spatial))
    return Workload(known, 8, direction, "channels_last", tf32=True, stored=direction == "forward")


def milliseconds(found: Workload, form: str) -> float:
    """Made up: moving the data, arithmetic that grows with the width, and more."""
    spec = found.spec
    width = {KEEP: 28, "dense": spec.channels}.get(form) or int(form.partition(":")[2])
    work = width * spec.multiplier * prod(found.output_shape) / 4e9
    launch = 0.004 * (form == KEEP)
    wave = 0.02 * (found.direction == "grad_weight") * (width < 20)
    return SLOWNESS[found.direction] * (2e-9 * found.elements + work + launch + wave)


def choice(found: Workload, *, failing: bool = False, expected: bool = False) -> Choice:
    """The fastest form by the formula; some forms fail, if wanted."""
    options = tuple(
        Option(
            form,
            None if failing and form in FAILURES else time(milliseconds(found, form)),
            1.2 * milliseconds(found, form) if expected else None,
            FAILURES.get(form, "") if failing else "",
        )
        for form in candidates(found.spec)
    )
    times = {option.form: option.time for option in options if option.time}
    best = min(times, key=lambda form: times[form].median)
    if times[best].high >= times[KEEP].low:
        return Choice(found, options)
    return Choice(found, options, best, 1e-3 * (times[KEEP].median - times[best].median))


def taken(site: SiteReport, choices: tuple[Choice, ...]) -> SiteReport:
    """The site with these choices, rewritten to the form of the first of them."""
    if all(choice.form == KEEP for choice in choices):
        site = site.kept(Rejection("not-faster", "no other form is faster (measured)"))
    else:
        site = replace(site, form=choices[0].form)
    return replace(site, choices=choices)


def measured(site: SiteReport, directions: tuple[Direction, ...] = DIRECTIONS) -> SiteReport:
    """The site with a choice for each direction; some have forms that failed."""
    assert site.spec is not None
    found = (workload(site.spec, direction) for direction in directions)
    failing, expected = site.spec.channels % 5 == 0, site.spec.channels % 64 == 0
    chosen = tuple(choice(one, failing=failing, expected=expected) for one in found)
    return taken(site, chosen)


def modelled(site: SiteReport) -> SiteReport:
    """The site with what a model expects of it."""
    assert site.spec is not None
    asked = Question(workload(site.spec, "forward"), tuple(candidates(site.spec)))
    chosen = by_model(asked, lambda found, form: 1e-3 * milliseconds(found, form), 1.1)
    return taken(site, (chosen,))


SETTINGS = (
    FreeSetting("prefer_nhwc=1", "--provider-option prefer_nhwc=1", True, speedup(1.21)),
    FreeSetting("use_tf32=1", "--provider-option use_tf32=1", False, speedup(1.52)),
    FreeSetting("cudnn_conv_algo_search=HEURISTIC",
                "--provider-option cudnn_conv_algo_search=HEURISTIC", True, speedup(0.97)),
    FreeSetting("enable_cuda_graph=1", "--provider-option enable_cuda_graph=1", True, None,
                "the model has a Loop, which no graph can capture"),
)  # fmt: skip

FACTS = {
    "driver": "570.86.15", "cudnn": "9.10.2", "onnxruntime": "1.31.1", "cuda": "12.8",
    "use_tf32": "0", "clock, graphics": "1980 MHz of 1980 MHz", "power limit": "700 W",
}  # fmt: skip

ENERGY = Energy(0.4512, 0.3071, "the GPU's energy counter (NVML), over 10 s of runs of each model")

STEP = tuple(
    Measurement(name, time(before), time(after), speedup(before / after))
    for name, before, after in (
        ("inference, batch 8", 4.012, 2.994),
        ("training step, batch 8, compiled", 15.3, 13.1),
    )
)

FASTER = Runtime(
    DEVICE, STEP, "prefer_nhwc=1", SETTINGS,
    (TrialResult(12, speedup(0.98), False), TrialResult(6, speedup(1.34), True)), ENERGY, FACTS,
)  # fmt: skip
"""Everything that a runtime can hold."""

KEPT = replace(
    FASTER,
    measurements=(Measurement("inference, batch 8", time(4.012), time(4.094), speedup(0.98)),),
    trials=(TrialResult(12, speedup(0.93), False), TrialResult(6, speedup(0.98), False)),
)  # fmt: skip
"""Of an original that was kept."""

SLOWER = Runtime("AMD EPYC (CPUExecutionProvider), not the target",
                 (Measurement("inference, x 1x3x224x224", time(41.2), time(1234.0),
                              speedup(41.2 / 1234)),))  # fmt: skip
"""Of two models that were given."""
