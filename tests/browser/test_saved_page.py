"""A saved trial and a saved proof, stepped through in a browser; the server was started with them."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.contrast import CONTRAST
from tests.browser.page_server import Server, visiting

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("browser")]  # they share the page's server


def at(page: Page) -> int:
    """Return how many steps are taken, as the address says."""
    found = re.search(r"step=(\d+)", page.url)
    assert found is not None
    return int(found[1])


def test_a_saved_trial_is_stepped_forth_and_back_and_survives_a_reload(browser: Browser, server: Server) -> None:
    with visiting(browser, server, "/saved/1") as page:
        # It begins with the shortest that breaks, at its end: what no serial order has is marked.
        expect(page.get_by_text("in two processes: broken:")).to_be_visible()
        wrong = page.locator("#tables .differs")
        expect(wrong).to_have_text("90 ✗")
        assert page.locator("#serial").inner_text().count("\t80") == 1  # both orders end alike, and are told once
        expect(page.locator("#tables .ended")).to_contain_text("either serial order gives 80")
        length = at(page)
        expect(page.get_by_role("button", name="Step", exact=True)).to_be_disabled()
        for _ in range(length):
            page.get_by_role("button", name="Back").click()
        expect(page.get_by_role("status")).to_have_text(f"Before the first of {length} steps.")
        expect(page.get_by_role("button", name="Back")).to_be_disabled()
        expect(page.locator("#tables tbody tr").first).to_have_text(re.compile("1\\s*John\\s*100"))
        page.get_by_role("button", name="Step", exact=True).click()
        expect(page.get_by_role("row").and_(page.locator("[aria-current=step]"))).to_contain_text("SELECT")
        expect(page.locator(".code .now .text")).to_contain_text("from_user = session.exec(")
        page.reload()
        assert at(page) == 1
        expect(page.locator("[aria-current=step]")).to_contain_text("SELECT")
        page.get_by_role("button", name="go to step 3").click()
        assert at(page) == 3
        page.get_by_role("button", name="The shortest that breaks").click()
        assert at(page) == length
        expect(wrong).to_be_visible()


def test_a_wait_is_seen_until_it_ends_and_what_came_of_it(browser: Browser, server: Server) -> None:
    with visiting(browser, server, "/saved/3") as page:
        expect(page.get_by_text("in two processes: error: the data is right; 23505 reaches the caller")).to_be_visible()
        assert page.locator("#tables .differs").count() == 0  # an id that is drawn is no difference
        rows = page.locator(".grid tbody tr")
        expect(rows.nth(3).locator("td.waits")).to_contain_text("waits for A")
        expect(rows.nth(4)).to_contain_text(re.compile("goes on.*duplicate key value", re.DOTALL))
        page.get_by_role("button", name="Back").click()
        expect(page.get_by_role("status")).to_contain_text("B waits for A.")


def test_the_keys_step_through_a_proof(browser: Browser, server: Server) -> None:
    with visiting(browser, server, "/saved/2?schedule=thread-lock/two/same-pair&step=0") as page:
        expect(page.get_by_role("status")).to_contain_text("Before the first")
        for wanted in (1, 2, 3):
            page.keyboard.press("ArrowRight")
            assert at(page) == wanted
        page.keyboard.press("ArrowLeft")
        assert at(page) == 2
        page.keyboard.press("End")
        expect(page.locator("#tables .ended").filter(has_text="lineage, lost posting").first).to_be_visible()
        expect(page.locator("#sources")).to_contain_text("class ThreadLock(Strategy):")
        page.keyboard.press("Home")
        assert at(page) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_has_contrast_and_no_motion(browser: Browser, server: Server, scheme: str) -> None:
    options = {"color_scheme": scheme, "viewport": {"width": 390, "height": 844}, "reduced_motion": "reduce"}
    with visiting(browser, server, "/saved/1?step=2", **options) as page:
        expect(page.locator("[aria-current=step]")).to_be_visible()
        for size in ("normal type", "large type", "type for a projector"):
            page.get_by_role("button", name=size).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, size
        assert page.evaluate(CONTRAST, "main :is(h1, h2, p, td, th, caption, figcaption, .text, .number)") >= 4.5
        assert page.evaluate("document.getAnimations().length") == 0
        expect(page.get_by_role("button", name="Step", exact=True)).to_be_in_viewport()


def test_nothing_but_what_the_server_was_started_with_can_be_named(browser: Browser, server: Server) -> None:
    for path in ("/saved/0", "/saved/4", "/saved/4/result"):
        assert server.status({}, path) == 404, path
    for path in ("/saved/trial.json", "/saved/..%2Fmine.py", "/saved/1/../../mine.py"):
        assert server.status({}, path) in (404, 422), path
    with visiting(browser, server, "/saved/1?schedule=../../etc/passwd&step=-9", java_script_enabled=False) as page:
        expect(page.get_by_role("cell", name=re.compile("UPDATE account")).first).to_be_visible()
