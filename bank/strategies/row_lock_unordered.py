"""Row locks in the order of the sentence: first who pays, then who is paid."""

from __future__ import annotations

from typing import ClassVar

from bank.orders import Snapshot
from bank.postgres.database import Transaction
from bank.strategies.base import Attempt, Claim, in_order
from bank.strategies.row_lock import RowLock


class RowLockUnordered(RowLock):
    """``SELECT … FOR UPDATE`` on the debit account, and then on the credit account.

    Claims everywhere, and keeps the money: what was read stays locked until COMMIT. But two transfers in opposite
    directions each hold what the other waits for. Postgres looks for such a circle once one has waited for
    ``deadlock_timeout``, one second by default, and ends one of them with 40P01 (manual, section 13.3.4); the teller
    runs it again. So it is right, and most of its time is spent waiting to be told.
    """

    name = "row-lock-unordered"
    summary = "FOR UPDATE, debit first: it deadlocks"
    claim = Claim.EVERYWHERE

    READ_ONE: ClassVar[str] = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts WHERE id = %(id)s FOR UPDATE
    """

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        """Lock and read one account after the other."""
        order, found = attempt.order, []
        for account in (order.debit, order.credit):
            row = transaction.execute(self.READ_ONE, {"id": account}).fetchone()
            if row is not None:
                found.append(Snapshot._make(row))
        return in_order(order, found)
