"""Transfers for all instances that are there: accepted, published to the queue that each consumes, and watched."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from psycopg.errors import UniqueViolation

from bank import outside
from bank.errors import CannotStart
from bank.outside import user_strategy
from bank.postgres import versions
from bank.postgres.schema import open_bank
from bank.strategies import STRATEGIES
from bankrun.results.workload import Workload
from bankrun.runs.boundary import name_lost_server
from bankrun.runs.comparison import Lab
from bankrun.runs.delivery import Delivery, Patience, count_pending, follow
from workers.app import QUEUE
from workers.submission import Submission

STALLED_SECONDS = 120.0


def accounts_in(lab: Lab) -> int:
    """Return how many accounts the bank has; they are numbered from 1."""
    with lab.database.transaction() as transaction:
        row = transaction.execute("SELECT count(*) FROM accounts").fetchone()
    return int(row[0]) if row is not None else 0


@name_lost_server()
def open_fresh_bank(lab: Lab, workload: Workload) -> None:
    """Empty the bank and open its accounts anew; jobs that still wait for a worker are forgotten with it.

    Raises BankError if a server is away.
    """
    with lab.app.connection_for_write() as connection:
        connection.default_channel.queue_purge(QUEUE)
    open_bank(lab.database, accounts=workload.accounts, opening=workload.opening, constraint=workload.constraint)


@name_lost_server()
def trigger(lab: Lab, workload: Workload, strategy: str, *, seed: int) -> None:
    """Accept a workload's transfers, and tell the workers. Returns when all messages are sent, not when they are done.

    Raises CannotStart for a strategy that does not exist, must not use this queue or cannot be used by a worker, and
    for transfers that were accepted before; BankError if a server is away, which for the broker means for two minutes:
    what was accepted stays in the bank, and the workers are told of it again.
    """
    wanted = user_strategy(strategy)
    name = wanted.name
    lab.check_ours(name)
    if name not in STRATEGIES:
        with lab.database.transaction() as transaction:
            outside.leave_out_too_new([name], versions.version_of(transaction.raw))
        outside.install(wanted, lab.database)
        lab.fleet.check_strategy(name, lab.instances)
    run = f"trigger-{secrets.token_hex(4)}"
    submission = Submission(run, name, QUEUE, workload.chunk, workload.think_ms)
    delivery = Delivery(lab, submission, insist_seconds=STALLED_SECONDS)
    orders = list(workload.orders(seed))
    try:
        delivery.accept(orders)
    except UniqueViolation as error:
        raise CannotStart(f"seed {seed}: these transfers are in the bank already; use another seed") from error
    delivery.publish(orders)


def watch(lab: Lab) -> Iterator[int]:
    """Yield how many transfers are pending, every now and then, until none is.

    A worker that is killed takes the jobs it was at with it, and Redis may lose others: the workers' reconcilers
    publish again what stays pending. Raises BankError when nothing has moved for two minutes, or Postgres was away for
    as long.
    """
    patience = Patience(stalled_seconds=STALLED_SECONDS, outage_seconds=STALLED_SECONDS)
    with name_lost_server():
        yield from follow(lambda: count_pending(lab.database), patience)


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
