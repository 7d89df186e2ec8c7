"""Faults while messages come from a RabbitMQ."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydantic import SecretStr

from bank.settings import Settings
from bankrun.chaos.cells import CHAOS_LOAD, ChaosPlan, run_cell
from bankrun.chaos.faults import FAULTS
from bankrun.chaos.targets import Targets, open_targets
from bankrun.results.models.chaos import ChaosCell
from bankrun.results.topology import Topology
from tests.places import make_place
from tests.rabbitmq.server import Server

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def targets(rabbitmq: Server) -> Iterator[Targets]:
    """Two instances with four threads each, whose messages come from a RabbitMQ that may be broken."""
    path = make_place("chaos")
    settings = Settings(state_dir=path, broker_url=SecretStr(rabbitmq.url()))
    with open_targets(settings, instances=2, threads=4, restart_broker=rabbitmq.restart_command("kill")) as opened:
        yield opened
    shutil.rmtree(path, ignore_errors=True)


def strike(targets: Targets, rabbitmq: Server, fault: str, transfers: int = 240) -> ChaosCell:
    """Run one cell."""
    load = replace(CHAOS_LOAD, transfers=transfers, accounts=8)
    plan = ChaosPlan(
        *((fault,), ("row-lock",), Topology(2, 4), load, 21),
        broker_url=rabbitmq.url(),
        restart_broker=tuple(rabbitmq.restart_command("kill")),
    )
    assert not plan.missing()
    return run_cell(targets, plan, FAULTS[fault], "row-lock")


@pytest.mark.parametrize(
    "fault",
    [
        *("rabbitmq-restart", "rabbitmq-cut", "rabbitmq-silent"),
        *("kill", "kill-while-receiving", "kill-while-waiting", "kill-after-commit", "pause-holder", "cut"),
        "killer-transfer",
        *("messages-lost", "messages-repeated", "messages-poisoned", "two-reconcilers", "submitter-dies"),
    ],
)
def test_a_row_lock_keeps_its_promise(targets: Targets, rabbitmq: Server, fault: str) -> None:
    cell = strike(targets, rabbitmq, fault)
    assert (cell.verdict, cell.reason) == ("safe", "")
    assert (cell.pending, cell.duplicates, cell.lost_postings) == (0, 0, 0)


def test_faults_that_need_redis_say_so_and_a_restart_needs_its_command(rabbitmq: Server) -> None:
    faults = ("redis-restart", "redis-emptied", "rabbitmq-restart", "rabbitmq-cut", "kill")
    plan = ChaosPlan(faults, ("row-lock",), Topology(2, 4), CHAOS_LOAD, 1, broker_url=rabbitmq.url())
    assert plan.missing() == {
        "redis-restart": "needs Redis",
        "redis-emptied": "needs Redis",
        "rabbitmq-restart": "needs --restart-broker, the command that restarts your RabbitMQ",
    }
    assert (
        replace(plan, broker_url="amqps://host").missing()["rabbitmq-cut"].startswith("needs an address with amqp://")
    )
    assert replace(plan, broker_url="").missing()["rabbitmq-cut"] == "needs RabbitMQ"
