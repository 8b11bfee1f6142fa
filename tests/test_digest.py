"""What is read from a report: figures, words, the derivation of the tolerance, Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from markdown_it import MarkdownIt

from dwr_rewrite import html
from dwr_rewrite.document import digest, wording
from dwr_rewrite.document.derivation import derivation
from dwr_rewrite.document.reading import Document
from dwr_rewrite.errors import Rejection
from dwr_rewrite.markdown import render
from dwr_rewrite.report import Totals
from tests.reports import HOSTILE, REPORTS, VERDICTS, document

NONE, GAMMA = "\N{EN DASH}", "\N{GREEK SMALL LETTER GAMMA}"


@pytest.mark.parametrize("name", REPORTS)
def test_the_digest_says_what_the_objects_say(name):
    """The JSON alone gives what the package computed from its own objects."""
    report, found = REPORTS[name](), document(name)
    check = report.verification
    compared = [] if check is None else check.compared
    assert [digest.used(c) for _, c in digest.compared(found)] == [c.used for _, c in compared]
    worst = digest.worst(found)
    expected = check.worst if check else None
    assert (worst and worst[1]["measured"]) == (
        expected and expected[1].measured if expected is None or expected[1].measured < float("inf")
        else "inf"
    )  # fmt: skip
    rows = {row[0]: row[1:] for row in digest.totals(found)}
    assert rows["nodes"] == (f"{report.before.nodes:,}", f"{report.after.nodes:,}")
    for form, count in report.forms.items():
        assert rows[f"sites: {wording.form(form)}"][1] == str(count)
    assert sum(int(rows[row][0]) for row in rows if row.startswith("sites: ")) == sum(
        report.forms.values()
    )
    assert sum(map(len, digest.left_alone(found).values())) == len(report.sites) - len(
        report.changed
    )


@pytest.mark.parametrize("name", REPORTS)
def test_a_verdict_other_than_equivalent_has_reasons(name):
    reasons = digest.reasons(document(name))
    assert bool(reasons) == (VERDICTS[name] != "equivalent" and name != "kept")


def test_the_reason_for_not_checking_names_the_output():
    reason = digest.reasons(document("untold"))[-1]
    assert reason.startswith("output 'logits': it has no finite element, or every tolerance")


def test_the_reach_of_inf_is_shown_by_form():
    rows = digest.reach(document("equivalent"))
    assert [(row["form"], row["value"], row["sites"], row["reference"]) for row in rows] == [
        ("blocks:32", "Inf", 13, f"1{NONE}2"), ("blocks:32", "NaN", 13, f"1{NONE}2"),
        ("dense", "Inf", 4, "1"), ("dense", "NaN", 4, "1"),
    ]  # fmt: skip
    assert {row["candidate"] for row in rows} == {f"32{NONE}64", f"32{NONE}384"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1, "1"), (0.0123456, "0.0123"), (3.9123e-7, "3.91e-07"), (999.4, "999"),
        (-2.5e-12, "-2.50e-12"), (999.6, "1,000"), (12345.6, "12,346"), (1e38, "1.00e+38"),
        ("inf", "Inf"), ("-inf", "-Inf"), ("nan", "NaN"), (None, NONE),
    ],
)  # fmt: skip
def test_numbers_are_short_and_never_rounded_to_nothing(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0 %"), (1, "100 %"), (0.99999, "> 99.9 %"), (1e-9, "< 0.1 %"), (0.5, "50.0 %")],
)  # fmt: skip
def test_nearly_all_is_not_all(fraction, text):
    assert wording.percent(fraction) == text


def test_the_derivation_has_the_figures_of_the_report():
    steps = dict(derivation(document("trained")))
    assert "4.88e-04 (2⁻¹¹, float16)" in steps["Stored results"]
    assert "5.96e-08 (2⁻²⁴, float32)" in steps["Sums of products"]
    assert steps["TF32"].startswith("On: every factor is first rounded by up to 2⁻¹¹")
    assert "5.61 times" in steps["Winograd"]
    assert "within 8 times" in steps["Factor 8"]
    steps = dict(derivation(document("equivalent")))
    assert steps["TF32"].startswith("Off")
    assert steps["Winograd"].startswith("Off")
    assert f"n = 960 (features.16.conv.depthwise): {GAMMA} = 3.69e-06" in steps["Sums of products"]
    assert "none of 5 comparisons" in steps["Doubt"]


def test_the_example_of_the_tolerance_adds_up():
    """2 (a + b) = c with the figures that are printed, to the digits that are printed."""
    text = dict(derivation(document("equivalent")))["Tolerance"]
    a, b, c = (
        float(word.strip("(). ")) for word in text.split(": 2 ")[1].replace("=", "+").split("+ ")
    )
    assert 2 * (a + b) == pytest.approx(c, rel=0.01)


def as_html(text: str) -> str:
    """What a Markdown reader that lets HTML through makes of it."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.mark.parametrize("name", REPORTS)
def test_the_markdown_says_the_verdict_first(name):
    text = render(document(name))
    alert, words = {
        "equivalent": ("TIP", "Equivalent"),
        "not equivalent": ("CAUTION", "NOT equivalent"),
        "not checked": ("NOTE", "Unchanged") if name == "kept" else ("WARNING", "NOT CHECKED"),
    }[VERDICTS[name]]
    assert text.startswith(f"> [!{alert}]\n> **{words}.** ")
    assert ("**Equivalent" in text) == (VERDICTS[name] == "equivalent")
    assert len(text.splitlines()) < 90


def test_the_markdown_of_a_failure_names_the_culprit():
    text = render(document("refuted"))
    assert "**To blame:** `features.6.conv.depthwise` (9 models tried)." in text
    assert "Smallest failing model: `mobilenet_v2.fast.minimal.onnx`." in text
    assert "channel 3 leaks into output channel 4" in text
    assert "Speed: not measured." in text
    assert "dwr-rewrite mobilenet_v2.onnx -o mobilenet_v2.fast.onnx" in text


def test_the_markdown_shows_times_where_there_are_some():
    text = render(document("equivalent", timed=True))
    assert "not measured" not in text
    row = r"| batch 1 | 4.00 ms \[3.92, 4.12\] | 2.50 ms \[2.45, 2.58\] | 1.60"
    assert f"{row}{wording.TIMES} " in text


@pytest.mark.parametrize("name", REPORTS)
def test_names_do_not_break_out_of_the_markdown(name):
    page = as_html(render(document(name, timed=True)))
    assert not [tag for tag in ("<script", "<img", "<a ", "<em>", "<h1", "<h2") if tag in page]
    rows = page.split("<tr>")[1:]
    assert rows
    widths = {row.count("<td>") + row.count("<th>") for row in rows}
    assert widths <= {3, 4, 5, 8}


def test_a_name_that_breaks_out_is_noticed():
    """The twin: the same names without escaping."""
    page = as_html(f"| a | {HOSTILE[0]} |\n|---|---|\n| {HOSTILE[1]} | *d* |\n")
    assert "<script" in page
    assert "<img" in page
    assert "<em>" in page


def unchanged(**changes: Any) -> Document:
    """Of an original that was written again, with some fields changed."""
    report = REPORTS["equivalent"]()
    sites = tuple(site.kept(Rejection("not-faster", "no other form")) for site in report.sites)
    fields = {"sites": sites, "verification": None, "after": report.before, **changes}
    return replace(report, **fields).to_dict()


def test_an_original_that_was_kept_is_not_called_unchecked():
    found = unchanged()
    assert (digest.heading(found), digest.reasons(found)) == ("Unchanged", [])
    assert render(found).startswith("> [!NOTE]\n> **Unchanged.** The candidate is the reference")
    page = html.render(found)
    assert "NOT CHECKED" not in page
    assert 'class="verdict same"' in page


@pytest.mark.parametrize("sha256", ["", "0" * 64])
def test_another_file_that_was_not_compared_is_called_so(sha256):
    report = REPORTS["equivalent"]()
    found = unchanged(after=replace(report.before, sha256=sha256))
    assert digest.heading(found) == "NOT CHECKED"
    assert digest.reasons(found) == ["the models were not compared"]
    assert digest.heading(unchanged(before=Totals(1, 1, 1), after=Totals(1, 1, 1))) == "NOT CHECKED"


def test_any_form_has_a_place():
    """Of torch sites too, which have a kernel's tile or a form for each direction."""
    forms = ["forward=dense,grad_input=blocks:2,grad_weight=keep", "kernel:fma.c1.p128",
             "kernel", "dense", "blocks:16", "blocks:8", "keep"]  # fmt: skip
    found = document("equivalent")
    found["summary"]["forms"] = dict.fromkeys(forms, 1)
    rows = [row[0].removeprefix("sites: ") for row in digest.forms(found)]
    names = [wording.form(form) for form in reversed(forms)]
    assert [row for row in rows if row in names] == names
