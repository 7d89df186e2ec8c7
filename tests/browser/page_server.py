"""The live page's server, started as a user starts it, and a visit to it."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

SECONDS_MAX = 60
MILLISECONDS_MAX = SECONDS_MAX * 1000
expect.set_options(timeout=MILLISECONDS_MAX)
EXAMPLES = Path(__file__).parents[2] / "examples" / "trials"
MINE = """
import threading

from bankrun import Claim, Strategy, ThreadGuard


class Mine(Strategy):
    summary = "a lock of my own in each instance"
    claim = Claim.PROCESS

    def __init__(self):
        self._guard = ThreadGuard(threading.Lock())

    def guard(self, order):
        return self._guard
"""
TRY = ("try", "--setup", "schema.sql", "--instances", "two")
COMMANDS = {
    (
        *TRY,
        "transfer.py:transfer_money(1, 2, 10)",
        "transfer.py:transfer_with_lock(1, 3, 10)",
        *("--export-json", "trial.json"),
    ): 3,
    (
        "prove",
        "--strategy",
        "thread-lock",
        "--case",
        "same-pair",
        "--instances",
        "two",
        "--export-json",
        "proof.json",
    ): 0,
    (*TRY, "get_or_create.py:get_or_create_unique('red')", "--export-json", "waits.json"): 3,
}
"""What saves the results that the server is started with, and how it ends."""


def start_bankrun(state_dir: Path, folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a command in a folder."""
    # NiceGUI serves otherwise where it finds itself in a test.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BANKRUN_", "PYTEST_"))}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bankrun", *words],
        env={**clean, "BANKRUN_STATE_DIR": str(state_dir), "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.DEVNULL,
        cwd=folder,
    )


def save_results(state_dir: Path, folder: Path) -> None:
    """Save two trials and a proof, all at once, and write a strategy of one's own."""
    folder.mkdir()
    for name in ("transfer.py", "get_or_create.py", "schema.sql"):
        shutil.copy(EXAMPLES / name, folder)
    (folder / "mine.py").write_text(MINE)
    running = [(start_bankrun(state_dir, folder, *words), code) for words, code in COMMANDS.items()]
    assert [process.wait(2 * SECONDS_MAX) for process, _ in running] == [code for _, code in running]


class Server:
    """A page's server: a process of its own, with a state directory of its own, started in a folder with ``words``."""

    def __init__(self, state_dir: Path, folder: Path, words: Sequence[str] = ()) -> None:
        self.state_dir = state_dir
        self.folder = folder
        self.words = words
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = start_bankrun(self.state_dir, self.folder, "page", *self.words, "--port", str(self.port))
        deadline = time.monotonic() + SECONDS_MAX
        while self.status({}) != 200:
            assert time.monotonic() < deadline, "the page does not answer"
            assert self.process.poll() is None, "the page's server has ended"
            time.sleep(0.1)

    def end(self, signum: int = signal.SIGTERM) -> int:
        """End it, and return how it ended."""
        self.process.send_signal(signum)
        return self.process.wait(SECONDS_MAX)

    def status(self, headers: dict[str, str], path: str = "/", *, method: str = "GET", body: bytes = b"") -> int:
        """Return how it answers a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body or None, headers=headers)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()


@contextmanager
def visiting(
    browser: Browser, server: Server, path: str = "/", *, going: bool = False, **options: Any
) -> Iterator[Page]:
    """Visit the page; nothing is asked of anybody else, no script fails, and nothing is complained about.

    ``going``: the server goes away meanwhile, which a browser complains about.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS_MAX)
    foreign: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if server.address not in request.url else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" and not going else None)
    page.goto(server.address + path)
    if path.startswith("/step"):
        page.wait_for_function("window.did_handshake === undefined || window.did_handshake")
    yield page
    context.close()
    assert [url for url in foreign if not url.startswith(("data:", "blob:", f"ws://127.0.0.1:{server.port}"))] == []
    assert failed == []
