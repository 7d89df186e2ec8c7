"""Almost right: Postgres' own lock, given back before the COMMIT."""

from __future__ import annotations

from typing import ClassVar

from bank.errors import Refused
from bank.orders import Order
from bank.postgres.database import Transaction
from bank.strategies.base import Attempt, Claim, Strategy


class AdvisoryLockEarly(Strategy):
    """``pg_advisory_lock`` on both accounts, in id order, and ``pg_advisory_unlock`` after the writes.

    Claims nothing. People believe in it because the lock is in the database, where all instances meet, and the unlock
    follows the last write, as a tidy program has it. But COMMIT follows the unlock, and in between the next one gets
    the lock and reads the old balance. Locking for the session has a second trap: it does not end with the transaction
    (manual, section 13.3.5), so a transfer that fails would take its locks back into the pool. Its connection is closed
    instead. ``advisory-lock`` has neither.
    """

    name = "advisory-lock-early"
    summary = "almost right: unlocked before COMMIT"
    claim = Claim.NOTHING

    LOCK: ClassVar[str] = "SELECT pg_advisory_lock(2, %(account)s)"
    UNLOCK: ClassVar[str] = "SELECT pg_advisory_unlock(2, %(account)s)"

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        """Lock, move the money, unlock."""
        transaction.close_if_it_fails()
        for account in attempt.order.accounts:
            transaction.execute(self.LOCK, {"account": account})
        try:
            super().move(transaction, attempt)
        except Refused:
            self._unlock(transaction, attempt.order)
            raise
        self._unlock(transaction, attempt.order)

    def _unlock(self, transaction: Transaction, order: Order) -> None:
        for account in order.accounts:
            transaction.execute(self.UNLOCK, {"account": account})
