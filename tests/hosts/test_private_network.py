"""What tools/private-network promises: nobody outside sees what is made in it, and nothing of it stays."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts.network import ROOT
from tests.waiting import wait_until

PROGRAM = str(ROOT / "tools" / "private-network")
END_SECONDS = 30


def command_lines() -> list[str]:
    """Return the command line of every process that can be seen from here."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return lines


def links() -> str:
    return subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(os.environ.get("PRIVATE_NETWORK") != "yes", reason="there is none here: make test-hosts says why")
@pytest.mark.parametrize(
    ("kill", "end"),
    [
        (os.kill, signal.SIGKILL),
        (os.kill, signal.SIGTERM),
        (os.kill, signal.SIGHUP),
        (os.killpg, signal.SIGTERM),
        (os.killpg, signal.SIGINT),  # Ctrl-C
    ],
)
def test_nothing_is_left_however_it_ends(kill: Callable[[int, int], None], end: signal.Signals, tmp_path: Path) -> None:
    marker = f"86400.{secrets.randbelow(10**9)}"
    before, ready = links(), tmp_path / "ready"
    make = "ip netns add inner && ip link add name inner type bridge && mkdir /run/left-behind"
    inside = f"{make} && {{ sleep {marker} & setsid sleep {marker} & touch {ready}; wait; }}"
    running = subprocess.Popen([PROGRAM, "sh", "-c", inside], start_new_session=True)
    try:
        assert wait_until(lambda: ready.exists() and sum(marker in line for line in command_lines()) > 2, 60)
        assert not Path("/run/left-behind").exists()
        assert links() == before
        kill(running.pid, end)
        running.wait(END_SECONDS)
        assert wait_until(lambda: not any(marker in line for line in command_lines()), END_SECONDS)
    finally:
        running.kill()
    assert links() == before
    assert "inner" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def test_without_leave_it_says_why() -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        # Read from here: the checkout may be closed to nobody.
        shell = [*as_nobody, "sh", "-s", "--", *words]
        return subprocess.run(shell, input=Path(PROGRAM).read_text(), capture_output=True, text=True, check=False)

    refused = run("true")
    assert (refused.returncode, refused.stderr.count("network namespaces take root")) == (1, 1)
    went_on = run("--if-allowed", "sh", "-c", 'echo "$NO_PRIVATE_NETWORK"; exit 7')
    assert (went_on.returncode, went_on.stdout) == (7, "network namespaces take root\n")
