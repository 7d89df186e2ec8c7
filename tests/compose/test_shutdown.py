"""How the compose stack ends. Its file comes last, since nothing is left of the stack after it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.compose.conftest import Compose
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(400)


def test_ctrl_c_ends_up_within_seconds(stack: Compose) -> None:
    up = stack.start("up")
    assert wait_until(lambda: [lab for lab in stack.containers("lab") if lab.status == "running"], 60)
    time.sleep(2)
    os.killpg(up.pid, signal.SIGINT)
    began = time.monotonic()
    out, err = up.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert "Traceback" not in out + err
    running = [container.name for container in stack.containers() if "ports" not in container.name]
    assert running == []
    (lab,) = stack.containers("lab", all=True)
    assert lab.wait()["StatusCode"] in (143, 130)


def test_down_ends_what_runs_within_seconds(stack: Compose) -> None:
    assert stack("up", "--detach", seconds=120).returncode == 0
    began = time.monotonic()
    assert stack("--profile", "ports", "down").returncode == 0
    assert time.monotonic() - began < 30
    assert stack.containers(all=True) == []
