"""Times in reports: what is said of them, in which words, and that nothing is said that is not."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dwr_rewrite import html, markdown
from dwr_rewrite.console import show
from dwr_rewrite.document import choices, speed, wording
from dwr_rewrite.document.reading import parse
from dwr_rewrite.document.wording import TIMES, Status
from dwr_rewrite.lowerings import candidates
from dwr_rewrite.planner import Choice, Option
from dwr_rewrite.report import Report
from dwr_rewrite.timing import (
    Energy,
    FreeSetting,
    Measurement,
    Runtime,
    Speedup,
    Time,
    TrialResult,
)
from dwr_rewrite.workload import Workload
from tests.report_builder import Builder
from tests.report_times import DEVICE, FASTER, time, workload
from tests.reports import REPORTS, document, names

STATUS: dict[str, tuple[Status, str, str]] = {
    "faster": ("faster", "1.34x faster", ("1.34x faster [1.32, 1.37] on NVIDIA H200 (CUDAExecution"
               "Provider), against the original with prefer_nhwc=1.")),
    "kept": ("kept", "Original kept", ("The original was kept: nothing was faster beyond doubt on "
             "NVIDIA H200 (CUDAExecutionProvider).")),
    "expected": ("modelled", "Not measured",
                 "Speed: not measured; the forms were chosen by a cost model."),
    "recorded": ("alone", "Not measured", ("Speed: the convolutions were measured one by one; the "
                 "two models were not.")),
    "slower": ("slower", "Slower: 0.0334x", ("Slower: 0.0334x [0.0134, 0.0634] on AMD EPYC "
               "(CPUExecutionProvider), not the target.")),
    "equivalent": ("unknown", "Not measured", ("Speed: not measured. Time both models on the "
                   "device that will run them.")),
}  # fmt: skip


@pytest.mark.parametrize("name", STATUS)
def test_what_is_known_about_speed_is_said(name):
    found = document(name)
    told = speed.status(found), speed.heading(found), speed.statement(found)
    assert (told[0], *(text.replace(TIMES, "x") for text in told[1:])) == STATUS[name]


def judged(before: Time, after: Time, found: Speedup) -> tuple[Status, str]:
    """Of two models whose times are these."""
    runtime = Runtime(DEVICE, (Measurement("x", before, after, found),))
    found = replace(REPORTS["equivalent"](), runtime=runtime).to_dict()
    return speed.status(found), speed.heading(found).replace(TIMES, "x")


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [(1.001, 1.2, "faster"), (1.0, 1.2, "alike"), (0.9, 1.1, "alike"), (0.9, 0.999, "slower")],
)
def test_the_interval_of_the_ratio_decides(low, high, status):
    """Not those of the two times, which overlap here, and not the median."""
    found = judged(Time(2.0, 1.0, 3.0, 0.1), Time(2.0, 1.0, 3.0, 0.1), Speedup(1.05, low, high))
    assert found[0] == status
    assert "1.05x" in found[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.0, "4.00"), (0.02014, "0.0201"), (123.4, "123"), (999.4, "999"), (999.6, "1,000"),
        (99_999.0, "99,999"), (1e5, "1.00e+05"), (1e-4, "0.000100"), (9e-5, "9.00e-05"),
        (9.996, "10.0"), (0.09996, "0.100"),
    ],
)  # fmt: skip
def test_times_have_three_digits(value, text):
    assert wording.digits(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.344, "1.34"), (0.999, "1.00"), (12.3, "12.30"), (0.0333, "0.0333"), (1234.5, "1,234")],
)
def test_factors_have_two_decimals(value, text):
    assert wording.factor(value) == f"{text}{TIMES}"


# ----------------------------------------------------------------------- what the JSON of one holds


def test_the_json_of_a_choice_and_its_site_give_the_workload_back():
    """Nothing is lost by leaving out the geometry, which the site has."""
    report = REPORTS["faster"]()
    for site, found in zip(report.sites, report.to_dict()["sites"], strict=True):
        assert len(found["choices"]) == len(site.choices)
        for choice, row in zip(site.choices, found["choices"], strict=True):
            assert site.spec is not None
            spec = replace(site.spec, spatial=tuple(row["spatial"]), dtype=row["dtype"])
            keys = ("batch", "direction", "layout", "tf32", "stored")
            assert Workload(spec, **{key: row[key] for key in keys}) == choice.workload
            assert "spec" not in row
            assert row["gain_ms"] == pytest.approx(1e3 * choice.gain)


def test_sites_of_one_size_are_shown_together():
    found = document("faster")
    groups = choices.weighed(found)
    sites = [name for group in groups for name in group.sites]
    assert sorted(sites) == sorted(s["name"] for s in found["sites"] if s["choices"])
    assert [g.sites for g in groups if len(g.sites) > 1] == [
        ["features.2.conv.depthwise", "features.16.conv.depthwise"],
        ["features.1.conv.depthwise", "features.15.conv.depthwise"],
    ]
    totals = [group.total for group in groups]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > totals[-1]


def test_a_form_that_was_taken_back_is_told_from_one_that_was_not():
    assert {group.kept for group in choices.weighed(document("faster"))} == {""}
    reasons = [group.kept for group in choices.weighed(document("kept"))]
    assert set(reasons) == {"with it the whole model was not faster"}


def test_what_the_model_expects_of_a_form_that_did_not_run_is_not_its_time():
    option = {"form": "dense", "time": None, "predicted": 0.25, "failure": "no memory"}
    keep = {"form": "keep", "time": None, "predicted": 0.5, "failure": "no memory"}
    choice = {"form": "keep", "options": [keep, option]}
    assert choices.cost(option) is None
    assert not choices.is_modelled(choice)
    assert choices.is_modelled({**choice, "options": [{**keep, "failure": ""}, option]})


# ------------------------------------------------------------------------------------- the terminal


def terminal(report: Report, *, verbose: bool = False, width: int = 80) -> str:
    written = StringIO()
    show(report, Console(file=written, width=width, force_terminal=True, color_system=None),
         verbose)  # fmt: skip
    return written.getvalue()


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("name", ["faster", "kept", "expected", "recorded", "slower"])
def test_the_terminal_has_plain_letters_and_80_columns(name):
    text = terminal(REPORTS[name](), verbose=True)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_says_how_fast_it_is():
    text = flat(terminal(REPORTS["faster"]()))
    sentences = (
        "Equivalent. ",
        "1.34x faster [1.32, 1.37] on NVIDIA H200 (CUDAExecutionProvider), against the original",
        "with prefer_nhwc=1. Speed: inference, batch 8: 4.01 ms [3.93, 4.13] became 2.99 ms [2.93",
        "Tried: 12 sites: 0.98x [0.96, 1.01]; 6 sites: 1.34x [1.32, 1.37], taken.",
        ("Without any rewrite: use_tf32=1: 1.52x [1.50, 1.55] (changes rounding), by --provider-"
         "option use_tf32=1; prefer_nhwc=1: 1.21x [1.19, 1.24] (used for both), by --provider-"
         "option prefer_nhwc=1."),
    )  # fmt: skip
    places = [text.find(sentence) for sentence in sentences]
    assert -1 not in places
    assert places == sorted(places)
    assert "HEURISTIC" not in text  # it did not help
    assert "not measured" not in text


def test_the_terminal_says_once_why_the_original_was_kept():
    text = flat(terminal(REPORTS["kept"]()))
    assert text.lower().count("kept") == 1
    assert "Kept the original: no faster form on NVIDIA H200 (CUDAExecutionProvider)." in text
    assert "Tried: 12 sites: 0.93x [0.91, 0.96]; 6 sites: 0.98x [0.96, 1.01]." in text
    assert "4.01 ms [3.93, 4.13], tried 4.09 ms" in text
    assert "x faster" not in text


def test_one_trial_that_was_taken_is_not_told_twice():
    runtime = replace(FASTER, trials=FASTER.trials[1:])
    assert "Tried" not in terminal(replace(REPORTS["faster"](), runtime=runtime))


def test_the_terminal_lists_the_forms_of_every_site_where_asked():
    text = terminal(REPORTS["faster"](), verbose=True, width=400)
    assert "  on 8x960x56x56 TF32 channels_last, in ms:\n" in text
    line = "forward: blocks:16 0.193, depthwise 0.269, blocks:32 0.289, blocks:64 0.482, "
    assert f"  {line}blocks:120 0.819, blocks:8 not timed, dense not timed" in text
    assert "grad_weight: " in text
    assert "grad_weight: " not in terminal(REPORTS["faster"](), width=400)
    text = terminal(REPORTS["expected"](), verbose=True, width=400)
    assert "  forward, expected: blocks:8 " in text
    assert "  forward: " not in text


# --------------------------------------------------------------------------------------- Markdown


def test_the_markdown_has_the_same_in_tables():
    text = markdown.render(document("faster")).replace(TIMES, "x")
    lines = (
        (r"> 1.34x faster \[1.32, 1.37\] on NVIDIA H200 (CUDAExecutionProvider), against the "
        "original with prefer_nhwc=1."),
        (r"| inference, batch 8 | 4.01 ms \[3.93, 4.13\] | 2.99 ms \[2.93, 3.08\] | "
         r"1.34x \[1.32, 1.37\] |"),
        r"Tried: 12 sites: 0.98x \[0.96, 1.01\]; 6 sites: 1.34x \[1.32, 1.37\], taken.",
        "Energy of one run: 0.451 J by the reference, 0.307 J by the candidate.",
        (r"| `use_tf32=1` (changes rounding) | 1.52x \[1.50, 1.55\] | `--provider-option "
        "use_tf32=1` |"),
        ("| `enable_cuda_graph=1` | did not run: the model has a Loop, which no graph can capture "
         "| `--provider-option enable_cuda_graph=1` |"),
        ("| `features.6.conv.depthwise` | forward | blocks:16 | 0.193 | depthwise 0.269, blocks:32 "
        "0.289, blocks:64 0.482, blocks:120 0.819, blocks:8 not timed, dense not timed |"),
        "37 further rows left out.",
    )  # fmt: skip
    assert [line for line in lines if f"\n{line}\n" not in text] == []


def test_what_was_expected_is_never_called_measured():
    text = markdown.render(document("expected"))
    assert text.count("measured") == text.count("not measured")
    (table,) = re.findall(r"\| its time \| others \|\n.*\n((?:\|.*\n)+)", text)
    times = re.findall(r"\d\.\d+( expected)?", table)
    assert len(times) > 30
    assert set(times) == {" expected"}
    assert "expected |" not in markdown.render(document("recorded"))


# ------------------------------------------------------------------------------- many tiles


def option(form: str, milliseconds: float | None, failure: str = "") -> Option:
    return Option(form, None if milliseconds is None else time(milliseconds), None, failure)


TILES = [f"kernel:fma.c{2**i}.p64.d1.r4.v2.w4.s1" for i in range(4)]


@pytest.mark.parametrize(
    ("chosen", "times", "shown", "folded"),
    [
        ("keep", [], ["keep", "dense"], ""),
        ("keep", [3.0], ["keep", "dense", TILES[0]], ""),
        (TILES[0], [0.3, 0.4], [TILES[0], "keep", "dense"], "1 further tile 0.400"),
        ("keep", [3.0, 2.5, 4.0], ["keep", "dense", TILES[1]], "2 further tiles 3.00 to 4.00"),
        # The one that was chosen is shown, though another's median is smaller.
        (TILES[1], [0.3, 0.4, None], [TILES[1], "keep", "dense"],
         "2 further tiles 0.300, 1 not timed"),
        ("keep", [None, None], ["keep", "dense", TILES[0]], "1 further tile not timed"),
    ],
)  # fmt: skip
def test_of_many_tiles_the_best_is_shown_and_the_others_are_counted(chosen, times, shown, folded):
    assert SPEC is not None
    tiles = [option(tile, t, "" if t else "it is slow") for tile, t in zip(TILES, times)]  # noqa: B905
    found = Choice(workload(SPEC, "forward"), (option("keep", 1.0), option("dense", 2.0), *tiles),
                   chosen)  # fmt: skip
    build = Builder(names(1))
    [site] = [replace(site, choices=(found,)) for site in build.sites]
    report = build.report(None, sites=(site,), runtime=None, notes=())
    [choice] = report.to_dict()["sites"][0]["choices"]
    assert [o["form"] for o in choices.ordered(choice)] == shown
    assert choices.folded(choice) == folded
    assert len(choice["options"]) == 2 + len(tiles)  # the JSON has them all
    page = html.render(report.to_dict())
    for view in (markdown.render(report.to_dict()), terminal(report, verbose=True, width=10_000)):
        assert folded in view
        assert all(tile in view for tile in shown if tile in TILES)
        assert not any(tile in view for tile in TILES if tile not in shown)
    assert folded in page


# ---------------------------------------------------------------------------------- any at all

number = st.floats(1e-6, 1e7)
words = st.text(st.characters(exclude_categories=()), max_size=40)
medians = st.tuples(number, number, number).map(sorted)
spans = medians.map(lambda three: Time(three[1], three[0], three[2], three[2] / three[0]))
ratios = medians.map(lambda three: Speedup(three[1], three[0], three[2]))
measurements = st.builds(Measurement, words, spans, spans, ratios)
free = st.builds(FreeSetting, words, words, st.booleans(), st.none() | ratios, words)
trials = st.builds(TrialResult, st.integers(0, 500), ratios, st.booleans())
SPEC = Builder(names(1)).sites[0].spec


@st.composite
def runtimes(draw: st.DrawFn) -> Runtime:
    tried = draw(st.lists(free, max_size=4))
    setting = draw(st.sampled_from(["", *(one.name for one in tried)]))
    return Runtime(
        draw(words), tuple(draw(st.lists(measurements, max_size=3))), setting, tuple(tried),
        tuple(draw(st.lists(trials, max_size=3))),
        draw(st.none() | st.builds(Energy, number, number, words)),
        draw(st.dictionaries(words, words, max_size=3)),
    )  # fmt: skip


@st.composite
def weighed(draw: st.DrawFn) -> Choice:
    assert SPEC is not None
    tiles = [f"kernel:fma.c{c}.p64.d1.r4.v2.w4.s1" for c in (1, 2, 4)]
    forms = draw(st.lists(st.sampled_from([*candidates(SPEC), "kernel", *tiles]), unique=True))
    options = tuple(
        Option(form, draw(st.none() | spans), draw(st.none() | number), draw(words))
        for form in forms
    )
    known = [option.form for option in options if option.time or option.predicted]
    direction = draw(st.sampled_from(["forward", "grad_input", "grad_weight"]))
    form = draw(st.sampled_from(["keep", *known]))
    return Choice(workload(SPEC, direction), options, form, draw(st.just(0.0) | number))


@st.composite
def reports(draw: st.DrawFn) -> Report:
    build = Builder(names(3))
    sites = tuple(
        replace(site, choices=tuple(draw(st.lists(weighed(), max_size=2)))) for site in build.sites
    )
    kind = draw(st.sampled_from(["rewrite", "verify"]))
    runtime = draw(st.none() | runtimes())
    return build.report(None, sites=sites, runtime=runtime, kind=kind, notes=())


def told(report: Report) -> list[str]:
    """The medians and the factors that every view of a report has to have."""
    runtime = report.runtime
    if runtime is None:
        return []
    rows = [m for row in runtime.measurements for m in (row.reference, row.candidate)]
    return [wording.digits(row.median) for row in rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reports())
def test_any_times_are_read_back_and_told(report):
    found = parse(report.to_json(), "report.json")
    text = markdown.render(found)
    shown = terminal(report, verbose=True, width=10_000)
    for figure in told(report):
        assert figure in text
        assert figure in shown
    assert speed.status(found) in wording.SPEED


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reports())
def test_any_times_have_a_page(report):
    page = html.render(report.to_dict())
    assert [figure for figure in told(report) if figure not in page] == []


def test_a_time_that_is_left_out_is_noticed():
    """The twin: a report whose times are others does not tell these."""
    report = REPORTS["faster"]()
    other = replace(report, runtime=replace(FASTER, measurements=(
        Measurement("inference", time(7.77), time(5.55), Speedup(1.4, 1.3, 1.5)),)))  # fmt: skip
    text = markdown.render(other.to_dict())
    assert not any(figure in text for figure in told(report))
    assert all(figure in text for figure in told(other))
