"""Opens pages in a headless browser and tells what is wrong with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

Scheme = Literal["light", "dark"]

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

OVERFLOW = """() => {
  const scrolls = e => e && (
    ["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth)
    found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const e of document.body.querySelectorAll("*:not(svg *)")) {
    const box = e.getBoundingClientRect();
    if ((box.right > innerWidth + 0.5 || box.left < -0.5) && !scrolls(e.parentElement))
      found.push(`<${e.tagName.toLowerCase()} class="${e.className}"> overflows: ${box.right}`);
  }
  return found;
}"""
"""What sticks out of the window, except inside of what scrolls by itself."""

PLOT_TEXT = """() => [...document.querySelectorAll("figure svg text")].flatMap(text => {
  const svg = text.ownerSVGElement, page = svg.getBoundingClientRect();
  const box = text.getBoundingClientRect();
  const size = parseFloat(getComputedStyle(text).fontSize) * page.width / svg.viewBox.baseVal.width;
  return [
    ...(size < 9 ? [`${svg.id}: '${text.textContent}' is ${size} px high`] : []),
    ...(box.left < page.left - 1 || box.right > page.right + 1 || box.bottom > page.bottom + 1
      ? [`${svg.id}: '${text.textContent}' is cut off`] : []),
  ];
})"""
"""Text of plots that is too small to be read, or cut off."""

STRUCTURE = """() => {
  const found = [], all = selector => [...document.querySelectorAll(selector)];
  const levels = all("h1, h2, h3, h4").map(heading => +heading.tagName[1]);
  if (document.documentElement.lang !== "en") found.push("no language");
  if (!document.title) found.push("no title");
  if (levels[0] !== 1 || levels.lastIndexOf(1) !== 0) found.push("not one first heading");
  if (levels.some((level, i) => i && level > levels[i - 1] + 1)) found.push("skips a level");
  const ids = all("[id]").map(e => e.id);
  if (new Set(ids).size !== ids.length) found.push("an id twice");
  if (all("figure svg:not([role=img][aria-label])").length) found.push("no label");
  for (const link of all("a[href^='#']"))
    if (!all(link.getAttribute("href")).length) found.push(`${link.href} leads nowhere`);
  for (const e of all("script, img, iframe, object, embed, form, base"))
    found.push(`<${e.tagName.toLowerCase()}> in the page`);
  return found;
}"""
"""What makes a page hard to use without seeing it, or unsafe to open."""

COLOURS = """() => {
  const behind = e => { for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(colour)) return colour;
  } return "rgb(255, 255, 255)" };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const shown = [...document.querySelectorAll("body *")].filter(e => own(e) && e.checkVisibility());
  return shown.map(e => [
    e.textContent.trim().slice(0, 30),
    e.closest("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color, behind(e)]);
}"""
"""Text, its colour and the colour behind it, of everything that is shown."""


@contextmanager
def launched() -> Iterator[BrowserContext]:
    """The installed chromium; skips the test where there is none."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium is installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser.new_context()
        browser.close()


class Visit:
    """A page that is open, with what it did while it was.

    Args:
        browser: opens it.
        path: its file.
    """

    def __init__(self, browser: BrowserContext, path: Path) -> None:
        self.page: Page = browser.new_page()
        self.events: list[str] = []
        url = path.as_uri()

        def tell(what: str, detail: object = "") -> None:
            self.events.append(f"{what}: {detail}")

        self.page.on("console", lambda m: m.type == "error" and tell("console", m.text))
        self.page.on("pageerror", lambda error: tell("script", error))
        self.page.on("dialog", lambda dialog: (tell("dialog"), dialog.dismiss()))
        self.page.on("request", lambda r: r.url != url and tell("request", r.url))
        self.page.goto(url, wait_until="load")

    def show(self, width: int, scheme: Scheme = "light", *, paper: bool = False) -> None:
        """Shows it in a window of this width, or as it is printed on paper of this width."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(media="print" if paper else "screen", color_scheme=scheme)

    def problems(self) -> list[str]:
        """What is wrong with it as it is shown now."""
        checks = (OVERFLOW, PLOT_TEXT, STRUCTURE)
        return [*self.events, *(found for check in checks for found in self.evaluate(check))]

    def pale(self) -> list[str]:
        """Text whose contrast is below 4.5 (WCAG 2.1, success criterion 1.4.3)."""
        return [
            f"{text!r}: {colour} on {ground}"
            for text, colour, ground in self.evaluate(COLOURS)
            if contrast(colour, ground) < 4.5
        ]

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours ``rgb(r, g, b)``: WCAG 2.1."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour: WCAG 2.1."""
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
