"""Deliveries after the first: counted, so that a transfer which kills its worker is not delivered for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from bank import ledger
from bank.errors import BankError, NotAcquired, OutcomeUnknown, Rejected, Transient
from bank.postgres.database import Database

logger = logging.getLogger("bankrun")


class Redeliveries:
    """Counts, for each transfer, the repeated deliveries that never came to an end; past ``maximum`` it has failed.

    A delivery is counted before it begins, in a transaction of its own, since no thread is left to count it after the
    instance has died. One that ends undecided is forgiven, unless it ended with a fault: a conflict, a lock, a lost
    connection or an outage, however long, is nothing that the transfer did. An instance delivers one such transfer at a
    time, so that those that are innocent do not die with the one that is not. Thread-safe.
    """

    def __init__(self, database: Database, *, instance: str, maximum: int, wait_seconds_max: float) -> None:
        self._database = database
        self._instance = instance
        self._maximum = maximum
        self._wait_seconds_max = wait_seconds_max
        self._one_at_a_time = threading.Lock()
        self._owed: list[UUID] = []  # to be forgiven, once Postgres is back

    @contextmanager
    def count(self, transfer: UUID) -> Iterator[None]:
        """Count the delivery of one transfer, which is the block. Past the maximum the transfer has failed before it.

        Raises NotAcquired if the turn does not come, and Transient if the delivery cannot be counted.
        """
        if not self._one_at_a_time.acquire(timeout=self._wait_seconds_max):
            raise NotAcquired(f"transfer {transfer} waits for other repeated deliveries")
        try:
            while self._owed:
                self._execute(ledger.FORGIVE, id=self._owed[-1])
                self._owed.pop()
            try:
                self._begin(transfer)
            except OutcomeUnknown:
                self._owed.append(transfer)  # it may have been counted, and nothing was delivered
                raise
            try:
                yield
            except (Transient, Rejected):
                # A message that disagrees with what was accepted says nothing about the transfer.
                self._forgive(transfer)
                raise
        finally:
            self._one_at_a_time.release()

    def note(self, transfer: UUID, reason: str) -> None:
        """Remember why a delivery did not come to an end: the reason, if the transfer fails."""
        self._execute(ledger.NOTE, id=transfer, reason=reason)

    def fail(self, transfer: UUID, reason: str, *, strategy: str | None = None) -> None:
        """Decide that a pending transfer has failed; with ``strategy``, only one that was accepted for it."""
        values = {"instance": self._instance, "thread": threading.current_thread().name, "strategy": strategy}
        self._execute(ledger.FAIL, id=transfer, reason=reason, **values)

    def _begin(self, transfer: UUID) -> None:
        with self._database.transaction() as transaction:
            row = transaction.execute(ledger.COUNT, {"id": transfer}).fetchone()
        if row is not None and row[0] > self._maximum:
            why = row[1] or "its instance ended each time"
            logger.warning("transfer %s has failed: %s", transfer, why)
            self.fail(transfer, f"delivered again {self._maximum} times, and never came to an end: {why}")

    def _forgive(self, transfer: UUID) -> None:
        try:
            self._execute(ledger.FORGIVE, id=transfer)
        except BankError:
            self._owed.append(transfer)

    def _execute(self, statement: ledger.Statement, **values: object) -> None:
        with self._database.transaction() as transaction:
            transaction.execute(statement, values)
