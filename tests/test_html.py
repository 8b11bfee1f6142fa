"""The page in a real browser: nothing fails, nothing is fetched, nothing sticks out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dwr_rewrite.document import choices, speed
from dwr_rewrite.document.wording import TIMES, digits, form
from dwr_rewrite.html import render
from dwr_rewrite.plots import times
from tests.browser import Visit, contrast, launched
from tests.reports import HOSTILE, REPORTS, VERDICTS, document, many

PHONE, DESKTOP, PAPER = 390, 1440, 703  # CSS pixels; A4 with the page's margins
HEADINGS = {
    "equivalent": "Equivalent",
    "not equivalent": "NOT equivalent",
    "not checked": "NOT CHECKED",
}


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@cache
def page(name: str, *, timed: bool = False) -> str:
    return render(document(name, timed=timed))


@pytest.fixture
def visit(browser, tmp_path) -> Iterator[Visit]:
    """`visit(html)` opens a page from a file."""
    visits: list[Visit] = []

    def open_page(html: str) -> Visit:
        path = Path(tmp_path) / "page.html"
        path.write_text(html, encoding="utf-8")
        visits.append(Visit(browser, path))
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.page.close()


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_is_sound_on_a_phone_on_a_desk_and_on_paper(visit, name):
    opened = visit(page(name, timed=name in ("equivalent", "hostile")))
    for width in (PHONE, DESKTOP):
        opened.show(width)
        assert opened.problems() == [], width
    opened.show(PAPER, paper=True)
    assert opened.problems() == [], "on paper"
    opened.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    for width in (PHONE, DESKTOP):
        opened.show(width, "dark")
        assert opened.problems() == [], f"{width}, all open"


@pytest.mark.parametrize("name", REPORTS)
def test_the_verdict_comes_first_and_every_plot_is_there(visit, name):
    found = document(name)
    opened = visit(page(name))
    main = opened.page.locator("main")
    heading = "Unchanged" if name == "kept" else HEADINGS[VERDICTS[name]]
    assert main.inner_text().strip().startswith(heading)
    assert opened.page.locator("h1").inner_text() == heading
    assert heading in opened.page.title()
    check = found["verification"] or dict.fromkeys(("taps", "picture", "training"))
    drawn = {
        "depth": check["taps"],
        "histogram": check["picture"],
        "scatter": check["picture"],
        "runtime": found["runtime"],
        "loss": check["training"],
        "gradients": check["training"],
    }
    for plot, data in drawn.items():
        assert opened.page.locator(f"svg#plot-{plot}:visible").count() == bool(data), plot
    figures = opened.page.locator("figure:has(h3):has(figcaption):visible").count()
    forms = min(times.SHOWN, len(choices.weighed(found)))
    assert figures == 3 + 2 * bool(check["training"]) + bool(found["runtime"]) + forms


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["refuted", "untold", "trained", "faster", "kept", "slower"])
def test_all_text_stands_out_from_what_is_behind_it(visit, name, scheme):
    opened = visit(page(name, timed=True))
    opened.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    opened.show(DESKTOP, scheme)
    assert opened.pale() == []
    opened.show(PAPER, scheme, paper=True)
    assert opened.pale() == []


def test_the_plots_follow_the_colour_scheme(visit):
    opened = visit(page("equivalent"))
    colours = []
    for scheme in ("light", "dark"):
        opened.show(DESKTOP, scheme)
        script = "() => getComputedStyle(document.querySelector('#plot-depth text')).fill"
        behind = "() => getComputedStyle(document.body).backgroundColor"
        colours.append((opened.evaluate(script), opened.evaluate(behind)))
    assert all(contrast(*pair) > 4.5 for pair in colours)
    assert len(set(colours)) == 2


def test_the_verdicts_differ_in_colour_border_and_icon(visit):
    script = """() => {
      const verdict = document.querySelector("#verdict"), look = getComputedStyle(verdict);
      return [look.backgroundColor, look.borderLeftColor, verdict.querySelector("svg").innerHTML];
    }"""
    looks = [visit(page(name)).evaluate(script) for name in ("equivalent", "refuted", "untold")]
    for column in zip(*looks, strict=True):
        assert len(set(column)) == 3


def test_what_is_folded_is_printed(visit):
    opened = visit(page("large"))
    folded = "() => [...document.querySelectorAll('details:not([open]) table')]"
    seen = f"{folded}.map(table => table.checkVisibility())"
    opened.show(DESKTOP)
    assert set(opened.evaluate(seen)) == {False}
    opened.show(PAPER, paper=True)
    assert set(opened.evaluate(seen)) == {True}
    assert len(opened.evaluate(seen)) > 3


def test_hostile_names_are_shown_as_they_are(visit):
    opened = visit(page("hostile", timed=True))
    text = opened.page.locator("main").inner_text()
    for name in HOSTILE[:3]:
        assert name in text
    assert "\\u202e" in text
    assert "\u202e" not in text
    assert opened.page.title().startswith("NOT equivalent: module/very_long")


def test_a_report_and_its_file_give_the_same_page():
    for name in ("hostile", "trained"):
        assert page(name) == render(REPORTS[name]().to_dict())


def test_a_name_that_no_file_can_hold_is_shown():
    found = document("unchecked") | {"command": "dwr-rewrite \udcff.onnx"}
    assert "dwr-rewrite \\udcff.onnx" in render(found).encode("utf-8").decode()


def test_a_report_without_anything_says_so(visit):
    text = visit(page("unchecked")).page.locator("main").inner_text()
    sentences = (
        "the models were not compared",
        "This is not a pass.",
        "not written",
        "No structural proof was tried.",
        "Nothing was observed",
        "Speed: not measured",
        "No site was probed by itself.",
    )
    for sentence in sentences:
        assert sentence in text


def test_the_page_has_the_figures_of_its_sections(visit):
    opened = visit(page("refuted"))
    sections = {
        "verdict": ("channel 3 leaks into output channel 4", "To blame: 1 site",
                    "features.6.conv.depthwise", "mobilenet_v2.fast.minimal.onnx"),
        "changes": ("3,504,872", "4,836,595", "3f3f3f3f3f3f", "to blame", "blocks:32"),
        "proved": ("Refuted.", "16 of 17", "node 'add' has another input", "0.5 became 0.25"),
        "observed": ("one-hot", "float64", "FAILED", "its activations overflow float32"),
        "tolerance": ("Movement", "Factor 8", "Winograd", "TF32", "Higham and Mary"),
        "channels": ("Precondition: finite activations.", "Leak", "NaN"),
        "environment": ("1.31.1", "Linux x86_64", "NonMaxSuppression"),
        "runtime": ("Speed: not measured.",),
        "reproduce": ("dwr-rewrite mobilenet_v2.onnx -o mobilenet_v2.fast.onnx", "3f" * 32),
    }  # fmt: skip
    for section, sentences in sections.items():
        text = opened.page.locator(f"#{section}").inner_text()
        assert [sentence for sentence in sentences if sentence not in text] == [], section


TIMED = ("faster", "kept", "expected", "recorded", "slower", "unchecked")


@pytest.mark.parametrize("name", TIMED)
def test_speed_stands_beside_equivalence(visit, name):
    """To its right on a desk, below it on a phone; green only beside a pass."""
    opened = visit(page(name))
    assert opened.page.locator("#speed h2").inner_text() == speed.heading(document(name))
    for width in (PHONE, DESKTOP):
        opened.show(width)
        boxes = [opened.page.locator(part).bounding_box() for part in ("#verdict", "#speed")]
        (x, y), (left, top) = ((box["x"], box["y"]) for box in boxes if box)
        assert (left > x and top == y) if width == DESKTOP else (left == x and top > y)
    good = opened.page.locator("#speed.good").count()
    assert good == (name == "faster")


def test_speed_is_not_praised_beside_a_failure(visit):
    opened = visit(page("hostile", timed=True))
    assert "faster" in opened.page.locator("#speed h2").inner_text()
    assert opened.page.locator("#speed.good").count() == 0


@pytest.mark.parametrize("name", ["faster", "kept", "expected", "recorded"])
def test_the_page_lists_every_form_of_every_size(visit, name):
    opened = visit(page(name))
    opened.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    rows = opened.page.locator("#runtime tr:has(ul.forms)")
    expected = [choice for group in choices.weighed(document(name)) for choice in group.choices]
    texts = rows.evaluate_all("rows => rows.map(row => row.innerText)")
    for choice, text in zip(expected, texts, strict=True):
        assert choice["direction"] in text
        for option in choice["options"]:
            time, predicted = option["time"], option["predicted"]
            shown = (
                f"{digits(time['median'])} [{digits(time['low'])}, {digits(time['high'])}]" if time
                else f"not timed: {option['failure']}" if option["failure"]
                else f"{digits(predicted)} expected"
            )  # fmt: skip
            assert f"{form(option['form'])} {shown}" in text


def test_what_was_taken_back_says_so(visit):
    text = visit(page("kept")).page.locator("#runtime").inner_text()
    assert "candidate, tried" in text
    assert "taken back" in text
    assert "with it the whole model was not faster" in text


def test_a_setting_is_selected_by_a_click(visit):
    opened = visit(page("faster"))
    opened.page.locator("code.copy").first.click()
    assert opened.evaluate("() => getSelection().toString()") == "--provider-option use_tf32=1"


def test_a_page_of_many_sites_stays_small():
    found = many().to_dict()
    assert len(choices.weighed(found)) == 300
    assert len(render(found).encode()) < 3e6


def test_the_runtime_section_has_its_figures(visit):
    opened = visit(page("faster"))
    opened.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    text = opened.page.locator("#runtime").inner_text()
    sentences = (
        speed.statement(document("faster")), f"1.34{TIMES} faster [1.32, 1.37] on NVIDIA H200",
        "against the original with prefer_nhwc=1.", "4.01 [3.93, 4.13]", "2.99 [2.93, 3.08]",
        "0.451 J by the reference, 0.307 J by the candidate", "NVML", f"1.52{TIMES} [1.50, 1.55]",
        "changes", "used for both", f"0.97{TIMES} [0.95, 1.00]", "did not run: the model has a",
        "taken back", "✓ taken", "570.86.15", "1980 MHz",
    )  # fmt: skip
    assert [sentence for sentence in sentences if sentence not in text] == []


PAGE = """<!DOCTYPE html><html lang="en"><head><title>t</title>{head}</head>
<body style="margin: 0"><h1>One</h1>{body}</body></html>"""


def svg(content: str) -> str:
    return (
        f"<figure style='margin: 0'><svg width=100 height=50 viewBox='0 0 100 50' role=img "
        f"aria-label=x>{content}</svg></figure>"
    )


WRONG = {
    "console: ": ("<script>console.error('wrong')</script>", ""),
    "script: ": ("<script>throw new Error('wrong')</script>", ""),
    "dialog": ("", "<script>alert(1)</script>"),
    "request: ": ("", "<img src='other.png' alt=''>"),
    "request: file:": ("<style>@import 'other.css'</style>", ""),
    "the page is": ("", "<p style='width: 2000px'>wide</p>"),
    "overflows": ("<style>html { overflow-x: clip }</style>", "<p style='width: 2000px'>wide</p>"),
    "overflows: ": ("", "<div style='margin-left: -9px'>left</div>"),
    "is 6 px high": ("", svg("<text y=20 font-size=6>small</text>")),
    "is cut off": ("", svg("<text x=90 y=20>long</text>")),
    "no label": ("", "<figure><svg width=9 viewBox='0 0 9 9'></svg></figure>"),
    "not one first heading": ("", "<h1>Two</h1>"),
    "skips a level": ("", "<h3>Three</h3>"),
    "an id twice": ("", "<p id=a>a</p><p id=a>b</p>"),
    "leads nowhere": ("", "<a href='#x'>x</a>"),
    "<img> in the page": ("", "<img src='data:,' alt=''>"),
}  # fmt: skip


@pytest.mark.parametrize("problem", WRONG)
def test_a_wrong_page_is_noticed(visit, problem):
    """The twin: each check finds what it is for."""
    head, body = WRONG[problem]
    opened = visit(PAGE.format(head=head, body=body))
    opened.show(PHONE)
    assert any(problem in found for found in opened.problems())


def test_a_page_that_scrolls_inside_is_sound(visit):
    body = "<div style='overflow-x: auto'><p style='width: 2000px'>wide</p></div>"
    opened = visit(PAGE.format(head="", body=body))
    opened.show(PHONE)
    assert opened.problems() == []


def test_pale_text_is_noticed(visit):
    opened = visit(PAGE.format(head="", body="<p style='color: #999'>grey</p>"))
    assert opened.pale() == ["'grey': rgb(153, 153, 153) on rgb(255, 255, 255)"]
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
