"""One lock for everything, in Postgres."""

from __future__ import annotations

from typing import ClassVar

from bank.orders import Posting, Snapshot
from bank.postgres.database import Transaction
from bank.strategies.base import Attempt, Claim, Strategy


class TableLock(Strategy):
    """``LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE`` before the read; COMMIT frees it.

    Claims everywhere, and against everybody who writes: this mode conflicts with itself and with the lock of any
    UPDATE, while plain reading goes on (manual, section 13.3.1). The weaker SHARE MODE does not conflict with itself:
    two would hold it, and end in a deadlock like ``share-lock``. All transfers of the bank stand in one queue, whatever
    accounts they touch, and so does VACUUM.
    """

    name = "table-lock"
    summary = "LOCK TABLE accounts: one queue for all"
    claim = Claim.EVERYWHERE

    LOCK: ClassVar[str] = "LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE"

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        """Lock the table, then read."""
        transaction.execute(self.LOCK)
        return super().read(transaction, attempt)

    def post(self, transaction: Transaction, postings: tuple[Posting, Posting], attempt: Attempt) -> None:
        """Write everything at once: no other transaction can write to this table any more."""
        transaction.post_locked(postings, attempt.order.id)
