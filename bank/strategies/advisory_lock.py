"""Locks that Postgres keeps and does not understand."""

from __future__ import annotations

from typing import ClassVar

from bank.orders import Snapshot
from bank.postgres.database import Transaction
from bank.strategies.base import Attempt, Claim, Strategy


class AdvisoryLock(Strategy):
    """``pg_advisory_xact_lock`` on both accounts' numbers, in id order, before the read; COMMIT frees them.

    Claims everywhere, among transactions that ask: Postgres keeps the lock and attaches no meaning to it (manual,
    section 13.3.5), so one UPDATE that does not ask walks past it. The lock needs a statement of its own before the
    read: under READ COMMITTED a statement sees what was committed when *it* began (section 13.2.1), and one that waited
    for the lock inside would read what was there before the wait. Two numbers, since a lock with one is the lab's.
    """

    name = "advisory-lock"
    summary = "pg_advisory_xact_lock, in id order"
    claim = Claim.EVERYWHERE

    LOCK: ClassVar[str] = "SELECT pg_advisory_xact_lock(1, %(account)s)"

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        """Lock both numbers, then read."""
        for account in attempt.order.accounts:
            transaction.execute(self.LOCK, {"account": account})
        return super().read(transaction, attempt)
