"""Synthetic reports, one for each way a report can look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np

from dwr_rewrite.document.reading import Document, parse
from dwr_rewrite.equivalence.comparison import Comparison, compare
from dwr_rewrite.equivalence.evidence import Culprits, Tap
from dwr_rewrite.equivalence.statistics import errors, picture
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.equivalence.verification import Case, Verdict
from dwr_rewrite.errors import Rejection
from dwr_rewrite.report import Report, SiteReport, Totals
from dwr_rewrite.timing import Energy, FreeSetting, Measurement, Runtime, TrialResult
from tests.report_builder import ENGINE, Builder
from tests.report_times import FASTER, KEPT, SLOWER, measured, modelled, speedup, time

HOSTILE = (
    "<script>alert(1)</script>",
    "'\"><img src=https://example.org/x.png onerror=alert(1)>",
    "a|b `c` $x^$ *d* {{ 7 * 7 }} \\ end",
    "файл/畳み込み/🧠/é\u202eabc",
    "module/" + "very_long_name_without_a_break" * 8,
    "tab\tnewline\nnull\x00bell\x07",
)

REPORTS: dict[str, Callable[[], Report]] = {}
"""Builders of reports by name."""

VERDICTS: dict[str, Verdict] = {}
"""The verdict that each must show."""

RUNTIME = Runtime(
    HOSTILE[0],
    tuple(
        Measurement(name, time(4.0 + n), time(2.5 + n), speedup(1.6))
        for n, name in enumerate(("batch 1", "batch 32, channels_last", *HOSTILE))
    ),
    HOSTILE[2],
    tuple(FreeSetting(name, HOSTILE[4], n % 2 == 0, speedup(1.1 + n), HOSTILE[1])
          for n, name in enumerate(HOSTILE)),
    (TrialResult(1, speedup(1.6), True),),
    Energy(2.0, 1.0, HOSTILE[5]),
    dict.fromkeys(HOSTILE, HOSTILE[4]),
)  # fmt: skip
"""Times of a report that has none of its own."""


def report(verdict: Verdict) -> Callable[[Callable[[], Report]], Callable[[], Report]]:
    """Registers a builder under its name, with the verdict of what it builds."""

    def register(build: Callable[[], Report]) -> Callable[[], Report]:
        name = build.__name__
        REPORTS[name], VERDICTS[name] = cache(build), verdict
        return build

    return register


def names(count: int) -> list[str]:
    return [f"features.{n}.conv.depthwise" for n in range(count)]


@report("equivalent")
def equivalent() -> Report:
    build = Builder(names(17))
    return build.report(build.verification())


@report("not equivalent")
def refuted() -> Report:
    """A wrong weight, found by the proof, the outputs, a probe and the sites' errors."""
    build = Builder(names(17))
    culprits = Culprits((build.sites[6].name,), 9, "mobilenet_v2.fast.minimal.onnx")
    found = build.verification(
        3e4, taps=build.taps(6), probes=build.probes(6), proof=build.proof(6), culprits=culprits
    )
    return build.report(found)


@report("not equivalent")
def broken() -> Report:
    """Outputs that cannot be compared, and numbers that are not finite."""
    build = Builder(names(3))
    truth, before, after = build.outputs()
    empty = np.zeros(0, "f4")
    infinite = np.where(np.arange(1000) == 5, np.inf, after).astype("f4")
    cases = (
        Case("normal", ENGINE, (compare("logits", before, after[:1], truth, 1e-6),)),
        Case("uniform", ENGINE, (compare("logits", before, infinite, truth, 1e-6),)),
        Case("large", ENGINE, (compare("logits", before, after, truth, float("inf")),)),
        Case("sparse", ENGINE, (compare("ids", np.arange(4), np.arange(4), np.arange(4), 0.0),)),
        Case("tiny", ENGINE, (Comparison("", reason="the candidate does not run: no kernel"),)),
        Case("zero", ENGINE, (compare("", empty, empty, empty, 0.0),)),
    )  # fmt: skip
    blank = {"proof": None, "picture": None, "probes": (), "taps": (), "tapped": ""}
    return build.report(build.verification(cases=cases, longest=None, **blank))


@report("not checked")
def unchecked() -> Report:
    build = Builder(names(5))
    return build.report(None, output=None)


@report("not checked")
def untold() -> Report:
    """Every comparison passed, with a tolerance that a wrong result would meet too."""
    build = Builder(names(5))
    truth, before, after = build.outputs()
    case = Case("normal", ENGINE, (compare("logits", before, after, truth, 100.0),))
    skipped = Case("tiny", ENGINE, (), "the reference gives two results for one input")
    return build.report(build.verification(cases=(case, skipped)))


@report("equivalent")
def trained() -> Report:
    """A torch model without a file, its gradients and a training run; TF32 and Winograd."""
    build = Builder(names(17), "linked", seed=3)
    rounding = Rounding.of(["float16", "float32"]).on_gpu(tf32=True)
    found = build.verification(training=build.training(), rounding=rounding, proof=None,
                               versions={"torch": "2.13.0"}, warnings=0, longest=None)  # fmt: skip
    return build.report(
        found, source="MobileNetV2", output="MobileNetV2 (rewritten)", kind="verify", command="",
        before=Totals(158, 3_504_872, 14_019_488), after=Totals(158, 3_504_872, 14_019_488),
    )  # fmt: skip


@report("not equivalent")
def untrainable() -> Report:
    build = Builder(names(4), "linked")
    return build.report(build.verification(training=build.training(1e4)))


@report("not equivalent")
def hostile() -> Report:
    """Names that would break out of a page or a table, if anything could."""
    build = Builder(HOSTILE)
    name = HOSTILE[0]
    cases = tuple(replace(case, name=HOSTILE[n % 5], engine=HOSTILE[1])
                  for n, case in enumerate(build.cases(9e3, HOSTILE[:5])))  # fmt: skip
    found = build.verification(
        9e3, cases=cases, notes=HOSTILE, versions=dict.fromkeys(HOSTILE, HOSTILE[1]),
        tapped=HOSTILE[2], culprits=Culprits(HOSTILE, 3, HOSTILE[4] + ".onnx"),
        training=build.training(), proof=build.proof(1),
    )  # fmt: skip
    return build.report(
        found, source=HOSTILE[4], output=name, command=f"dwr-verify '{name}' {HOSTILE[4]}",
        notes=HOSTILE, environment=dict.fromkeys(HOSTILE, HOSTILE[4]), version=name,
        options={HOSTILE[1]: HOSTILE[4], "list": [name], "none": None},
    )  # fmt: skip


@report("not equivalent")
def large() -> Report:
    """200 sites, the second half of them wrong."""
    build = Builder([f"model.stages.{n // 20}.blocks.{n % 20}.dwconv" for n in range(200)])
    culprits = Culprits(tuple(s.name for s in build.sites[100:140]), 211)
    found = build.verification(5e3, taps=build.taps(100), culprits=culprits)
    return build.report(found)


@report("equivalent")
def exact() -> Report:
    """Nothing differs anywhere: logarithms of zero."""
    build = Builder(names(2))
    same = np.linspace(-1, 1, 200, dtype="f4").reshape(2, 100)
    none = errors(same, same, "float32")
    taps = tuple(
        Tap(s.name, s.output, n, same.shape, 1.0, none, none) for n, s in enumerate(build.sites)
    )
    case = Case("normal", ENGINE, (compare("y", same, same, same, 0.0),))
    found = build.verification(
        cases=(case,), taps=taps, picture=picture("y", "normal", same, same, same)
    )
    return build.report(found)


@report("not checked")
def nothing() -> Report:
    """A model without any depthwise convolution."""
    return replace(
        Builder(()).report(None), sites=(), output=None, options={}, environment={}, notes=()
    )


def weighed(build: Builder, weigh: Callable[[SiteReport], SiteReport]) -> tuple[SiteReport, ...]:
    """All sites with choices; the builder goes on with those that are still rewritten."""
    sites = tuple(map(weigh, build.sites))
    build.sites = [site for site in sites if site.changed]
    return sites


@report("equivalent")
def faster() -> Report:
    """Chosen by measurement in three directions, with everything that a runtime holds."""
    build = Builder(names(17))
    sites = weighed(build, measured)
    found = build.verification(training=build.training())
    return build.report(found, sites=sites, runtime=FASTER)


@report("not checked")
def kept() -> Report:
    """Chosen by measurement, and taken back because the whole model was not faster."""
    build = Builder(names(17))
    reason = Rejection("not-faster", "with it the whole model was not faster")
    sites = tuple(measured(site, ("forward",)).kept(reason) for site in build.sites)
    note = f"Kept the original: no faster form on {KEPT.device}."
    return build.report(
        None, sites=sites, runtime=KEPT, notes=(note,), after=build.report(None).before
    )


@report("equivalent")
def expected() -> Report:
    """Chosen by a cost model, and not measured."""
    build = Builder(names(17))
    sites = weighed(build, modelled)
    note = "modelled for NVIDIA H200: a form is taken where it is expected to be 1.1 times faster"
    return build.report(build.verification(), sites=sites, notes=(note,))


@report("equivalent")
def recorded() -> Report:
    """Chosen by times that another machine measured; some of what is chosen failed elsewhere."""
    build = Builder(names(5))
    sites = weighed(build, partial(measured, directions=("forward",)))
    note = "measured on NVIDIA H200 (cuda), elsewhere"
    return build.report(build.verification(), sites=sites, notes=(note,))


@report("equivalent")
def slower() -> Report:
    """Two models that were given, timed on a device that is not the target."""
    build = Builder(names(5))
    return build.report(build.verification(), kind="verify", runtime=SLOWER)


def many() -> Report:
    """300 sites of different sizes, each in three directions; none of the reports above."""
    build = Builder([f"model.stages.{n // 20}.blocks.{n % 20}.dwconv" for n in range(300)])
    build.sites = [
        measured(replace(site, spec=replace(site.spec, spatial=(28 + n, 28 + n))))
        for n, site in enumerate(build.sites)
    ]
    return build.report(None, runtime=FASTER)


def document(name: str, *, timed: bool = False) -> Document:
    """One of them as it is read back; with times, if wanted."""
    report = REPORTS[name]()
    timed = timed and report.runtime is None
    return parse((replace(report, runtime=RUNTIME) if timed else report).to_json(), name)
