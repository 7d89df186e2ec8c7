"""Other ways to run the same transfer: task queues that one might take instead, and the talk's pool of threads.

Each applies one transfer per message with our teller and one of our strategies, so that only the queue differs. They
are not needed for anything else: `requirements-peers.lock` brings them, and one that is missing is not run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from bank.errors import BankError
from bank.postgres.schema import open_bank
from bankrun.bench.rules import PATIENCE, check_kept
from bankrun.results.models.bench import QUEUE_ROWS, QUEUES
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Lab
from bankrun.runs.delivery import Delivery, any_pending, wait
from bankrun.runs.session import Servers, cores_of, worker_environment
from workers.fleet import instance_environment
from workers.submission import Submission

PEERS = {name: None if name == "threads" else name for name in QUEUES}
"""Each peer's package; the pool of threads needs none."""
STOP_SECONDS = 3.0
SCHEMA = "bankrun_procrastinate"
MARKER = "the messages of bankrun bench"


def missing(servers: Servers) -> dict[str, str]:
    """Return which peers cannot be run, and why, each in one sentence."""
    reasons = {}
    for name, package in PEERS.items():
        if servers.keeper is None:
            reasons[name] = f"{name} was not run: it would leave its tables and keys on servers that are not ours"
        elif package is not None and find_spec(package) is None:
            reasons[name] = (
                f"{name} was not run: it is not installed (.venv/bin/pip install -r requirements-peers.lock)"
            )
    return reasons


def rate(servers: Servers, lab: Lab, name: str, topology: Topology, workload: Workload, seed: int) -> float:
    """Return the rate of a row of QUEUE_ROWS: transfers a second, first claim to last commit, by Postgres' clock.

    Its processes are started, all its messages sent, and then all begin. Raises BankError if one ends too early.
    """
    assert servers.keeper is not None
    peer, strategy = QUEUE_ROWS[name]
    open_bank(lab.database, accounts=workload.accounts, opening=workload.opening)
    orders = list(workload.orders(seed))
    Delivery(lab, Submission(name, strategy)).accept(orders, forgettable=True)
    environment = worker_environment(servers)
    if peer == "procrastinate":  # it keeps its messages in Postgres too, in tables that a worker's role cannot make
        environment["BANKRUN_DATABASE_URL"] = servers.endpoints.database_url
    names = [f"{peer}-{os.getpid()}-{number}" for number in range(topology.instances)]
    cores = cores_of(servers, names)

    def check() -> None:
        lab.look_after()
        _check(servers, names)

    with tempfile.TemporaryDirectory() as place:
        for number, process in enumerate(names):
            arguments = [place, peer, strategy, str(number), str(topology.instances), str(topology.threads)]
            servers.keeper.spawn(
                process,
                [sys.executable, "-P", "-m", "bankrun.bench.peers.process", *arguments],
                env={**environment, **instance_environment(process, cores)},
                cwd=servers.state_dir,
                log=servers.state_dir / "logs" / f"{peer}.log",
            )
        try:
            wait(
                lambda: len(names) - len(list(Path(place).glob("ready-*"))),
                PATIENCE,
                check=check,
                what=f"processes of {name} are not ready",
            )
            (Path(place) / "go").touch()
            wait(lambda: any_pending(lab.database), PATIENCE, check=check)
        finally:
            servers.keeper.stop(names, grace_seconds=STOP_SECONDS)
            with lab.database.transaction() as transaction:
                drop_schema(transaction.raw)
    check_kept(lab.database, name)
    return len(orders) / lab.seconds()


def drop_schema(connection: psycopg.Connection[Any]) -> None:
    """Drop the schema of procrastinate's messages, if there is one and it has our marker."""
    with connection.transaction():
        marked = "SELECT FROM pg_catalog.pg_namespace WHERE nspname = %s AND obj_description(oid, 'pg_namespace') = %s"
        if connection.execute(marked, [SCHEMA, MARKER]).rowcount:
            connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())


def _check(servers: Servers, names: list[str]) -> None:
    assert servers.keeper is not None
    for name in names:
        code = servers.keeper.returncode(name)
        if code is not None:
            raise BankError(f"{name} ended with code {code}; see {servers.state_dir / 'logs'}")
