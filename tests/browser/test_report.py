"""A report, opened from the disk in a browser without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from bankrun.render.report import report
from bankrun.results.models.proof import CaseResult, ProofResult
from bankrun.results.provenance import Provenance
from tests.browser.contrast import CONTRAST
from tests.results import cell, comparison, run

PLOTS = 5
TEXT = "h1, h2, p, th, td, pre, summary"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the report of a comparison in which each verdict occurs."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    cells = [cell(run("none", lost=700)), cell(run("row-lock")), cell(run("own <b>"), verdict="inconclusive")]
    path.write_text(report(comparison(*cells)), encoding="utf-8")
    return path


@contextmanager
def opened(
    browser: Browser, file: Path, *, scheme: str = "light", width: int = 1100, script: bool = True
) -> Iterator[Page]:
    """Open a file with the network off; afterwards nothing else was asked for, and nobody complained."""
    context = browser.new_context(
        offline=True,
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 900},
        java_script_enabled=script,
    )
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert asked == [file.as_uri()]
    assert said == []


def until_drawn(page: Page) -> None:
    """Wait for the plots. Not by a JavaScript condition: waiting for one is what the report's own policy forbids."""
    expect(page.locator(".plot:visible .main-svg").first).to_be_visible(timeout=30_000)
    expect(page.locator("details[open]")).to_have_count(0)


def test_every_plot_is_drawn_without_a_request_and_without_a_complaint(browser: Browser, file: Path) -> None:
    with opened(browser, file) as page:
        until_drawn(page)
        assert page.locator(".plot:visible").count() == PLOTS
        assert page.locator("svg.picture text").filter(has_text="reads 100, writes 110 (+10)").is_visible()
        assert not page.get_by_role("table").filter(has_text="overwrites").is_visible()
        assert page.get_by_text("own <b>").first.is_visible()


def test_without_javascript_every_figure_is_a_table_or_a_picture(browser: Browser, file: Path) -> None:
    with opened(browser, file, script=False) as page:
        sections = page.locator("section")
        for number in range(sections.count()):
            section = sections.nth(number)
            assert section.locator("table:visible, svg.picture:visible").count(), section.inner_text()
        assert page.locator(".plot:visible").count() == 0


def test_it_fits_a_phone_and_has_contrast_in_both_themes(browser: Browser, file: Path) -> None:
    with opened(browser, file, scheme="dark", width=360) as page:
        until_drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate(CONTRAST, TEXT) >= 4.5
        assert page.locator("td.broken").first.bounding_box()["x"] < 300, "the verdict is seen without scrolling"
        page.emulate_media(color_scheme="light")
        assert page.evaluate(CONTRAST, TEXT) >= 4.5
        expect(page.locator(".plot:visible .xtick text").first).to_have_css("fill", "rgb(28, 35, 48)")


def test_tables_are_opened_by_keyboard_and_all_of_them_on_paper(browser: Browser, file: Path) -> None:
    with opened(browser, file, scheme="dark") as page:
        until_drawn(page)
        assert page.locator("[role=img]:not([aria-label]):not([aria-labelledby])").count() == 0
        for _ in range(60):
            page.keyboard.press("Tab")
            if "Latency, as a table" in page.evaluate("document.activeElement.innerText || ''"):
                page.keyboard.press("Enter")
                break
        assert page.get_by_role("table").filter(has_text="p50 ms").is_visible()
        assert not page.get_by_role("table").filter(has_text="overwrites").is_visible()
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate(CONTRAST, TEXT) >= 4.5
        assert page.get_by_role("table").filter(has_text="overwrites").is_visible()


def test_a_proof_carries_no_script_library(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "proof.html"
    path.write_text(
        report(ProofResult(Provenance(), [CaseResult("none", "two", "drain", 2, "nothing", "unsafe", 6, 4)]))
    )
    assert path.stat().st_size < 100_000
    with opened(browser, path) as page:
        assert page.locator("svg.picture text").filter(has_text="4/6").is_visible()
