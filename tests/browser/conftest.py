"""A real browser: Debian's chromium, or whichever is installed. Where there is none, these tests are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.page_server import Server, save_results
from tests.places import make_place

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")  # while it lives, an event loop runs: tests that run one of their own come after it
def browser() -> Iterator[Browser]:
    """Start the browser. As root it runs without its sandbox, which it refuses to set up then."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)} (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [], timeout=60_000
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Start the page's server once, with a trial, a proof and a strategy of one's own."""
    state_dir = make_place("page")
    folder = state_dir / "work"
    try:
        save_results(state_dir, folder)
        server = Server(state_dir, folder, ["trial.json", "proof.json", "waits.json", "--strategy", "mine:Mine"])
        yield server
        server.end()
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)
