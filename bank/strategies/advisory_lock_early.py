"""Almost right: Postgres' own lock, given back before the COMMIT."""

from __future__ import annotations

from typing import ClassVar, LiteralString

from bank.errors import Refused
from bank.orders import Order
from bank.postgres.database import Transaction
from bank.strategies.base import Claim, Strategy


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

    LOCK: ClassVar[LiteralString] = "SELECT pg_advisory_lock(2, %(account)s)"
    UNLOCK: ClassVar[LiteralString] = "SELECT pg_advisory_unlock(2, %(account)s)"

    def move(self, transaction: Transaction, order: Order, entry_ids: tuple[int, int]) -> None:
        """Lock, move the money, unlock."""
        transaction.holds_session_locks = True
        for account in order.accounts:
            transaction.execute(self.LOCK, {"account": account})
        try:
            super().move(transaction, order, entry_ids)
        except Refused:
            self._unlock(transaction, order)
            raise
        self._unlock(transaction, order)

    def _unlock(self, transaction: Transaction, order: Order) -> None:
        for account in order.accounts:
            transaction.execute(self.UNLOCK, {"account": account})
        transaction.holds_session_locks = False
