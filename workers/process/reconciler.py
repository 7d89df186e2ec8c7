"""Publishes again what was forgotten: a broker may lose messages, and a submitter may die before it has sent them."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import LiteralString

from celery import Celery

from bank.orders import Order
from bank.postgres.database import Database, Transaction
from workers.app import broker_of
from workers.errors import LOST_SERVER
from workers.submission import Submission, publish

LOCK_KEY = 0x7265636F  # "reco": one reconciler at a time per database
LOOK_SECONDS = 1.0
BACKOFF_MAX = 32
REPUBLISH_MAX = 10_000

TRY_LOCK: LiteralString = "SELECT pg_try_advisory_xact_lock(%(key)s)"
DUE: LiteralString = """
    SELECT id, pending, idle_looks, name, strategy, queue, chunk, think_ms, threads FROM runs
    WHERE NOT closed AND look_at <= clock_timestamp() ORDER BY id FOR UPDATE SKIP LOCKED
"""
# Locked, since what is noted may close a run: whoever accepts more for it meanwhile comes before, or opens it again.
PENDING: LiteralString = "SELECT count(*) FROM transfers WHERE run = %(run)s AND status = 'pending'"
FORGOTTEN: LiteralString = """
    SELECT id, debit, credit, amount FROM transfers
    WHERE run = %(run)s AND status = 'pending' ORDER BY id LIMIT %(limit)s
"""
NOTE: LiteralString = """
    UPDATE runs SET pending = %(pending)s, idle_looks = %(idle_looks)s, closed = %(closed)s,
           republished = republished + %(republished)s,
           look_at = clock_timestamp() + make_interval(secs => %(wait_seconds)s)
    WHERE id = %(run)s
"""

logger = logging.getLogger("bankrun")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Transfers of one run that are to be published again; ``again`` if they were before, in vain."""

    submission: Submission
    orders: list[Order]
    again: bool


class Reconciler:
    """A thread in every instance; an advisory lock lets one at a time look.

    A run whose queue is empty, and of whose transfers as many are pending as at the last look, was forgotten: what is
    pending is published again, each time after twice as long. That is safe without knowing where the messages are,
    since a transfer takes effect once however often it is delivered. What it knows is in Postgres, by Postgres' clock:
    so an instance that goes on where another one died knows as much, and one whose clock is wrong does no harm.
    """

    def __init__(self, database: Database, app: Celery, *, wait_seconds: float) -> None:
        self._database = database
        self._app = app
        self._wait_seconds = wait_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin to look, every now and then."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a look that is being taken is finished, or abandoned with this process."""
        self._stopped.set()
        self._thread.join(timeout=2 * LOOK_SECONDS)
        self._database.close()

    def _run(self) -> None:
        while not self._stopped.wait(min(LOOK_SECONDS, self._wait_seconds)):
            try:
                self.look()
            except LOST_SERVER as error:
                logger.warning("the reconciler will look again: %s", error)

    def look(self, *, alone: bool = True) -> int:
        """Look once at every run that is due; return how many transfers were published again.

        ``alone`` takes the lock, and does nothing where another holds it.
        """
        with self._database.transaction() as transaction:
            if alone and transaction.execute(TRY_LOCK, {"key": LOCK_KEY}).fetchone() != (True,):
                return 0
            due = transaction.execute(DUE).fetchall()
            found = [forgotten for row in due if (forgotten := self._look_at(transaction, *row)) is not None]
        # Noted first, and published when the transaction has ended: ten thousand messages may take longer than it may.
        # Whoever dies in between leaves them to the next look.
        for forgotten in found:
            publish(self._app, forgotten.orders, forgotten.submission, again=forgotten.again)
        return sum(len(forgotten.orders) for forgotten in found)

    def _look_at(
        self, transaction: Transaction, run: int, seen: int | None, idle_looks: int, *submitted: object
    ) -> Forgotten | None:
        submission = Submission(*submitted)  # type: ignore[arg-type]
        if self._queue_length(submission.queue):
            self._note(transaction, run, pending=None, idle_looks=0)
            return None
        row = transaction.execute(PENDING, {"run": run}).fetchone()
        pending = 0 if row is None else int(row[0])
        if pending != seen or not pending:
            self._note(transaction, run, pending=pending, idle_looks=0)
            return None
        rows = transaction.execute(FORGOTTEN, {"run": run, "limit": REPUBLISH_MAX}).fetchall()
        logger.warning("%s: %d transfers were forgotten; they are published again", submission.run, len(rows))
        self._note(transaction, run, pending=pending, idle_looks=idle_looks + 1, republished=len(rows))
        # Published before, and still all pending: one of them may be what keeps them from being applied.
        return Forgotten(submission, [Order(*row) for row in rows], again=idle_looks > 0)

    def _note(
        self, transaction: Transaction, run: int, *, pending: int | None, idle_looks: int, republished: int = 0
    ) -> None:
        values = {
            "run": run,
            "pending": pending,
            "idle_looks": idle_looks,
            "closed": pending == 0,
            "republished": republished,
            "wait_seconds": self._wait_seconds * min(BACKOFF_MAX, 2**idle_looks),
        }
        transaction.execute(NOTE, values)

    def _queue_length(self, queue: str) -> int:
        return broker_of(self._app).queue_length(self._app, queue)
