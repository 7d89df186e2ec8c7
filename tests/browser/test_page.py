"""The live page, in a browser: a comparison started by clicking, watched, disturbed, and read off the page."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.places import make_place

SECONDS_MAX = 60
MILLISECONDS_MAX = SECONDS_MAX * 1000
expect.set_options(timeout=MILLISECONDS_MAX)

pytestmark = pytest.mark.timeout(300)  # a browser, servers and workers, all at once on however few cores


class Server:
    """A page's server: a process of its own, with a state directory of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # NiceGUI serves otherwise where it finds itself in a test.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BANKRUN_", "PYTEST_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bankrun", "page", "--port", str(self.port)],
            env={**clean, "BANKRUN_STATE_DIR": str(self.state_dir), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + SECONDS_MAX
        while self.status({}) != 200:
            assert time.monotonic() < deadline, "the page does not answer"
            assert self.process.poll() is None, "the page's server has ended"
            time.sleep(0.1)

    def end(self, signum: int = signal.SIGTERM) -> int:
        """End it, and return how it ended."""
        self.process.send_signal(signum)
        return self.process.wait(SECONDS_MAX)

    def status(self, headers: dict[str, str], path: str = "/") -> int:
        """Return how it answers a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Start the page's server once."""
    state_dir = make_place("page")
    server = Server(state_dir)
    yield server
    server.end()
    shutil.rmtree(state_dir, ignore_errors=True)


@contextmanager
def visiting(browser: Browser, server: Server, path: str = "/", *, scheme: str = "light") -> Iterator[Page]:
    """Visit the page; nothing is asked of anybody else, and no script fails."""
    context = browser.new_context(viewport={"width": 1100, "height": 1000}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS_MAX)
    foreign: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if server.address not in request.url else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(server.address + path)
    page.wait_for_function("window.did_handshake === undefined || window.did_handshake")
    yield page
    context.close()
    assert [url for url in foreign if not url.startswith(("data:", "blob:", f"ws://127.0.0.1:{server.port}"))] == []
    assert failed == []


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


@pytest.mark.parametrize(("path", "more", "granted"), [("/", {}, 200), (SOCKET, UPGRADE, 101)])
def test_only_its_own_pages_may_talk_to_it(server: Server, path: str, more: dict[str, str], granted: int) -> None:
    own = f"127.0.0.1:{server.port}"
    assert server.status({"Host": own, **more}, path) == granted
    assert server.status({"Host": f"localhost:{server.port}", **more}, path) == granted
    assert server.status({"Host": own, "Origin": f"http://{own}", **more}, path) == granted
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"127.0.0.1.evil.example:{server.port}"},
        {"Host": own, "Origin": "http://evil.example"},
        {"Host": own, "Origin": "null"},
        {"Host": own, "Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ):
        assert server.status({**headers, **more}, path) == 403, headers


def fill(page: Page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).fill(value)


def verdicts(page: Page) -> dict[str, str]:
    """Read the verdicts off the page."""
    rows = page.locator(".verdicts tbody tr")
    cells = [rows.nth(number).locator("td").all_inner_texts() for number in range(rows.count())]
    return {f"{cell[0]} {cell[1]}": cell[2] for cell in cells}


def test_a_comparison_is_started_by_a_click_watched_by_two_and_disturbed(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    with visiting(browser, server) as page, visiting(browser, server, scheme="dark") as other:
        expect(page.get_by_role("status")).to_have_text("Nothing runs.")
        fill(page, "topologies", "2x4")
        fill(page, "transfers", "200")
        fill(page, "accounts", "4")
        fill(page, "think ms", "10")
        page.get_by_role("button", name="Start").click()
        expect(other.get_by_role("status")).to_contain_text("none on 2x4")
        expect(other.get_by_role("button", name="Start")).to_be_disabled()
        # A posting that is written over appears while it happens; a click shows how.
        written_over = other.get_by_role("button", name=re.compile("account .* made"))
        written_over.first.click()
        told = other.get_by_role("dialog").locator("svg.picture text").filter(has_text="written over").first
        expect(told).to_be_visible()
        other.screenshot(path=tmp_path / "watching.png")
        page.reload()
        expect(page.get_by_role("status")).to_contain_text("row-lock on 2x4")
        expect(told).to_be_visible()  # many postings were written over since then
        other.get_by_role("button", name="Close").click()
        expect(told).not_to_be_visible()
        page.get_by_role("button", name="kill w2").click()
        expect(page.get_by_text("w2 is killed")).to_be_visible()
        for one in (page, other):
            expect(one.get_by_role("status")).to_have_text("The comparison is finished.")
        expect(page.get_by_role("link", name="The whole report")).to_be_visible()
        assert verdicts(page) == {"none 2x4": "broken", "thread-lock 2x4": "broken", "row-lock 2x4": "safe"}
        page.screenshot(path=tmp_path / "finished.png", full_page=True)
    # It survives its server: what was found is on the disk.
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server.start()
    with visiting(browser, server) as page:
        expect(page.get_by_role("status")).to_have_text("Nothing runs.")
        expect(page.locator(".verdicts")).to_be_visible()
        assert verdicts(page)["thread-lock 2x4"] == "broken"
    assert server.status({}, "/report") == 200


def test_a_wrong_load_is_refused_in_a_sentence_and_nothing_starts(browser: Browser, server: Server) -> None:
    with visiting(browser, server) as page:
        fill(page, "topologies", "3by8")
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_text("'3by8' is not a topology")).to_be_visible()
        expect(page.get_by_role("button", name="Start")).to_be_enabled()


def test_an_interleaving_is_stepped_through_by_hand_and_survives_a_reload(browser: Browser, server: Server) -> None:
    with visiting(browser, server, "/step?at=none/two/same-pair/AAABAB") as page:
        expect(page.get_by_text("bankrun replay none/two/same-pair/AAABAB", exact=True)).to_be_visible()
        page.get_by_role("button", name="B goes on").click()
        expect(page.get_by_text("bankrun replay none/two/same-pair/AAABABB", exact=True)).to_be_visible()
        page.reload()
        expect(page.get_by_role("button", name="B goes on")).to_be_disabled()  # it waits for A
        taken = "AAABABB"
        for name in "AABBB":
            page.get_by_role("button", name=f"{name} goes on").click()
            taken += name
            expect(page.get_by_text(f"bankrun replay none/two/same-pair/{taken}", exact=True)).to_be_visible()
        expect(page.get_by_text("lineage, lost posting").first).to_be_visible()
        expect(page.get_by_role("button", name="A goes on")).to_be_disabled()
        page.get_by_role("button", name="Back").click()
        expect(page.get_by_role("button", name="B goes on")).to_be_enabled()
