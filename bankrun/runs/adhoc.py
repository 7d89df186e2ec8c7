"""Transfers for whoever is there: accept them, publish them to the queue that every instance consumes, and watch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from psycopg.errors import UniqueViolation

from bank import outside
from bank.errors import BankError, CannotStart
from bank.outside import user_strategy
from bank.postgres.schema import open_bank
from bank.strategies import STRATEGIES
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Lab
from workers.app import QUEUE
from workers.submission import Submission, accept, publish

POLL_SECONDS = 0.1
STALLED_SECONDS = 120.0


def accounts_in(lab: Lab) -> int:
    """Return how many accounts the bank has; they are numbered from 1."""
    with lab.database.transaction() as transaction:
        row = transaction.execute("SELECT count(*) FROM accounts").fetchone()
    return int(row[0]) if row is not None else 0


def open_fresh_bank(lab: Lab, workload: Workload) -> None:
    """Empty the bank and open its accounts anew; jobs that still wait for a worker are forgotten with it."""
    with lab.app.connection_for_write() as connection:
        connection.default_channel.queue_purge(QUEUE)
    open_bank(lab.database, accounts=workload.accounts, opening=workload.opening, constraint=workload.constraint)


def trigger(lab: Lab, workload: Workload, strategy: str, *, seed: int) -> None:
    """Accept a workload's transfers, and tell the workers. Returns when all messages are sent, not when they are done.

    Raises CannotStart for a strategy that does not exist, must not use this queue or cannot be used by a worker, and
    for transfers that were accepted before.
    """
    wanted = user_strategy(strategy)
    name = wanted.name
    if name not in STRATEGIES:
        outside.install(wanted, lab.database)
        lab.fleet.check_strategy(name, lab.instances)
    run = f"trigger-{secrets.token_hex(4)}"
    submission = Submission(run, name, QUEUE, workload.chunk, workload.think_ms)
    orders = list(workload.orders(seed))
    try:
        accept(lab.database, orders, submission)
    except UniqueViolation as error:
        raise CannotStart(f"seed {seed}: these transfers are in the bank already; use another seed") from error
    publish(lab.app, orders, submission)


def watch(lab: Lab) -> Iterator[int]:
    """Yield how many transfers are pending, every now and then, until none is.

    A worker that is killed takes the jobs it was at with it, and Redis may lose others: the workers' reconcilers
    publish again what stays pending. Raises BankError when nothing has moved for two minutes.
    """
    before, moved_at = -1, time.monotonic()
    while True:
        pending = _pending(lab)
        yield pending
        if not pending:
            return
        if pending != before:
            before, moved_at = pending, time.monotonic()
        idle = time.monotonic() - moved_at
        if idle > STALLED_SECONDS:
            raise BankError(f"{pending} transfers are pending, and nothing has moved for {idle:.0f} s: is a worker up?")
        time.sleep(POLL_SECONDS)


def _pending(lab: Lab) -> int:
    with lab.database.transaction() as transaction:
        row = transaction.execute("SELECT count(*) FROM transfers WHERE status = 'pending'").fetchone()
    return int(row[0]) if row is not None else 0


def failures(lab: Lab) -> dict[str, int]:
    """Return why transfers of the bank have failed, and how many for each reason."""
    with lab.database.transaction() as transaction:
        rows = transaction.execute(
            "SELECT coalesce(reason, ''), count(*) FROM transfers WHERE status = 'failed' GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
    return {str(reason): int(count) for reason, count in rows}


def decided_by(lab: Lab) -> dict[str, int]:
    """Return how many of the bank's transfers each instance decided, by its name."""
    with lab.database.transaction() as transaction:
        rows = transaction.execute(
            "SELECT instance, count(*) FROM transfers WHERE instance IS NOT NULL GROUP BY instance ORDER BY instance"
        ).fetchall()
    return {str(instance): int(count) for instance, count in rows}
