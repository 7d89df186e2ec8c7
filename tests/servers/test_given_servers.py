"""The headline, the proof and the rest on given Postgres servers, and what differs from our own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

import pytest

from bank.postgres.database import Database
from bank.postgres.versions import OLDEST
from bank.strategies import STRATEGIES
from bank.strategies.base import Strategy
from bankrun.bench.pgbench import SCRIPTS, pgbench_rate
from bankrun.errors import CannotStart
from bankrun.proof.cases import ALL_CASES, CASES, INSTANCES, Case, applies
from bankrun.proof.prover import Prover
from bankrun.results.workload import Workload
from bankrun.schedule import Budget, Execution, explore
from tests.acceptance.conftest import Bankrun

WHOLE = bool(os.environ.get("TEST_SERVERS_WHOLE"))
MEET = [name for name, one in STRATEGIES.items() if not one.routed_to_one]
SEARCHED = ("same-pair", "drain")
BUDGET = Budget(executions=20_000, seconds=600.0)


def test_the_headline_is_the_same(bankrun: Bankrun, server_url: str, broker_url: str) -> None:
    given = {"BANKRUN_DATABASE_URL": server_url, "BANKRUN_BROKER_URL": broker_url}
    done = bankrun("compare", "--transfers", "800", "--seed", "7", "--export-json", "-", **given)
    assert done.returncode == 0, done.stderr
    verdicts = {(cell["strategy"], cell["topology"]): cell["verdict"] for cell in json.loads(done.stdout)["cells"]}
    assert verdicts == {
        ("none", "1x8"): "broken",
        ("none", "3x8"): "broken",
        ("thread-lock", "1x8"): "safe",
        ("thread-lock", "3x8"): "broken",
        ("row-lock", "1x8"): "safe",
        ("row-lock", "3x8"): "safe",
    }
    for command in ("audit", "doctor"):
        assert bankrun(command, **given).returncode in (0, 1), command


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MEET)
def test_the_proof_of_a_strategy_is_that_of_our_own_server(name: str, given_prover: Prover, prover: Prover) -> None:
    strategy = STRATEGIES[name]
    for case in (CASES[one] for one in SEARCHED):
        there = given_prover.prove(strategy, "two", case, budget=BUDGET)
        here = prover.prove(strategy, "two", case, budget=BUDGET)
        assert (there.verdict, there.outcomes, there.serial_broken, there.kinds) == (
            *(here.verdict, here.outcomes, here.serial_broken, here.kinds),
        ), case.name


@pytest.mark.skipif(not WHOLE, reason="TEST_SERVERS_WHOLE is not set")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", INSTANCES)
@pytest.mark.parametrize("name", MEET)
def test_every_interleaving_ends_as_on_our_own_server(
    name: str, where: str, given_prover: Prover, prover: Prover
) -> None:
    strategy = STRATEGIES[name]
    for case in ALL_CASES.values():
        if applies(strategy, case):
            here = explore_all(prover, strategy, where, case)
            assert replay_all(given_prover, strategy, where, case, here) == here, case.name


Ended = dict[tuple[tuple[str, ...], str], str]
"""The outcome of each interleaving, by the order in which the transfers were started and the choices."""


def explore_all(prover: Prover, strategy: type[Strategy], where: str, case: Case) -> Ended:
    """Run every interleaving of a case."""
    courtroom = prover.open(strategy, where)
    courtroom.hear(case)
    ended: Ended = {}

    def judge(execution: Execution) -> None:
        ended[tuple(courtroom.engine.start_order), execution.schedule] = courtroom.judge(execution).outcome

    found = explore(courtroom.engine, judge, budget=BUDGET)
    assert found.complete, found.reason
    return ended


def replay_all(prover: Prover, strategy: type[Strategy], where: str, case: Case, these: Iterable[Any]) -> Ended:
    """Run these interleavings, and no other."""
    courtroom = prover.open(strategy, where)
    courtroom.hear(case)
    ended: Ended = {}
    usual = courtroom.engine.start_order
    for order, schedule in these:
        courtroom.engine.start_order = order
        try:
            ended[order, schedule] = courtroom.replay(schedule).outcome
        except CannotStart as error:
            ended[order, schedule] = str(error)
    courtroom.engine.start_order = usual
    return ended


@pytest.mark.parametrize("script", SCRIPTS)
def test_pgbench_runs_the_same_transfers(script: str, database: Database) -> None:
    workload = Workload(accounts=8, transfers=40)
    assert pgbench_rate(database, script, workload, clients=2, seed=7) > 0


def test_a_server_that_is_given_is_one_of_those_that_will_do(database: Database) -> None:
    with database.transaction() as transaction:
        row = transaction.execute("SHOW server_version_num").fetchone()
    assert row is not None
    assert int(row[0]) >= OLDEST
