"""Instances that are paused and killed by remote control, as the page does it: only with their key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bank.errors import BankError, Rejected
from bank.settings import Settings
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Lab, Plan
from bankrun.runs.progress import Silence
from bankrun.runs.session import open_lab, open_servers
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from tests.waiting import wait_until
from workers.control.interruption import PAUSE_SECONDS_MAX, Interruptions

KEY = "a key of this test"


@pytest.fixture(scope="module")
def lab(stack: tuple[Keeper, Endpoints], state_dir: Path) -> Iterator[Lab]:
    """Two instances that may be interrupted by whoever has the key, and are started again when they end."""
    _, endpoints = stack
    settings = Settings(
        database_url=SecretStr(endpoints.database_url),
        broker_url=SecretStr(endpoints.broker_url),
        state_dir=state_dir / "interrupted",
        control_key=SecretStr(KEY),
    )
    with open_servers(settings) as servers, open_lab(servers, instances=2, threads=4, revive=True) as opened:
        yield opened


def answering(lab: Lab) -> set[str]:
    return {info.instance for info in lab.fleet.discover(timeout_seconds=0.3)}


class KillOne(Silence):
    """Kills an instance as soon as the run has begun, and lets it take part again when it is back."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.killed = False

    def transfers(self, done: int, total: int) -> None:
        """Kill once; then do what the page does."""
        if done and not self.killed:
            self.killed = True
            self.lab.fleet.kill(self.lab.instances[1].node, KEY)
        if self.killed:
            self.lab.join_again(0.2)


def test_a_paused_instance_is_silent_for_a_while_and_goes_on_by_itself(lab: Lab) -> None:
    lab.fleet.pause(lab.instances[0].node, KEY, 1.0)
    assert wait_until(lambda: lab.instances[0].instance not in answering(lab), 5)
    assert wait_until(lambda: lab.instances[0].instance in answering(lab), 10)


def test_a_killed_instance_is_started_again_and_the_run_ends_well(lab: Lab) -> None:
    plan = Plan(("row-lock",), (Topology(2, 4),), Workload(transfers=300, think_ms=5), seed=1, warmup=0)
    progress = KillOne(lab)
    run = lab.run("row-lock", Topology(2, 4), plan, progress)
    assert progress.killed
    assert (run.applied, run.pending, run.lost_postings, run.held) == (300, 0, 0, True)
    lab.look_after()  # should the run have ended before it was noticed
    assert wait_until(lambda: len(answering(lab)) == 2, 30)


@pytest.mark.parametrize("key", ["", "another key", None, 7])
def test_without_its_key_an_instance_is_not_interrupted(lab: Lab, key: object) -> None:
    with pytest.raises(BankError, match="takes the key"):
        lab.fleet.kill(lab.instances[0].node, key)


@pytest.mark.parametrize("seconds", [0, -1, PAUSE_SECONDS_MAX + 1, "3", None, True, float("nan")])
def test_a_pause_has_bounds(seconds: object) -> None:
    with pytest.raises(Rejected, match="a pause lasts"):
        Interruptions(SecretStr(KEY)).pause(KEY, seconds)


def test_an_instance_that_was_started_without_a_key_refuses_every_key() -> None:
    with pytest.raises(Rejected, match="without a key"):
        Interruptions(None).kill("")
