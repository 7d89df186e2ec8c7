"""No reading first: the database adds and subtracts."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from bank.errors import InsufficientFunds, UnknownAccount
from bank.orders import Posting
from bank.postgres import versions
from bank.postgres.database import Transaction
from bank.strategies.base import Attempt, Claim, Strategy


class AtomicUpdate(Strategy):
    """``UPDATE … SET balance = balance + delta``, one statement for each account, in id order.

    Claims everywhere. The read and the write are one statement, and an UPDATE that waited for another computes again
    from the row that the other left (manual, section 13.2.1). It works as long as the new value can be said in SQL; a
    rule that needs both balances at once cannot. ``RETURNING old.…, new.…`` tells what was really read and written.
    Before Postgres 18 the entry that the row named is told by a locking CTE, which takes the UPDATE's own lock.
    """

    name = "atomic-update"
    summary = "UPDATE … SET balance = balance + delta"
    claim = Claim.EVERYWHERE

    ADD: ClassVar[str] = """
        UPDATE accounts SET balance = balance + %(delta)s, last_entry = %(entry_id)s
        WHERE id = %(account_id)s AND (%(delta)s > 0 OR balance + %(delta)s >= 0)
        RETURNING old.balance, new.balance, old.last_entry, clock_timestamp()
    """
    ADD_BEFORE_18: ClassVar[str] = """
        WITH locked AS (
            SELECT id, last_entry FROM accounts
            WHERE id = %(account_id)s AND (%(delta)s > 0 OR balance + %(delta)s >= 0) FOR NO KEY UPDATE
        )
        UPDATE accounts SET balance = balance + %(delta)s, last_entry = %(entry_id)s
        FROM locked WHERE accounts.id = locked.id
        RETURNING balance - %(delta)s, balance, locked.last_entry, clock_timestamp()
    """

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        """Change both balances in place: both, or none if the second one refuses."""
        with transaction.savepoint():
            self._add_both(transaction, attempt)

    def _add_both(self, transaction: Transaction, attempt: Attempt) -> None:
        attempt.think()
        order, (debit_entry, credit_entry) = attempt.order, attempt.entry_ids
        legs = [(order.debit, -order.amount, debit_entry), (order.credit, order.amount, credit_entry)]
        add = self.ADD if versions.can(transaction.raw, versions.RETURNING_OLD) else self.ADD_BEFORE_18
        postings = []
        for account_id, delta, entry_id in sorted(legs):
            row = transaction.execute(add, {"account_id": account_id, "delta": delta, "entry_id": entry_id}).fetchone()
            if row is None:
                self._refuse(transaction, account_id, -delta)
            before, after, previous_entry, read_at = row
            postings.append(Posting(entry_id, account_id, delta, before, after, previous_entry, read_at))
        transaction.record((postings[0], postings[1]), order.id)

    def _refuse(self, transaction: Transaction, account_id: int, amount: int) -> NoReturn:
        row = transaction.execute("SELECT balance FROM accounts WHERE id = %(id)s", {"id": account_id}).fetchone()
        if row is None:
            raise UnknownAccount(f"there is no account {account_id}")
        raise InsufficientFunds(f"account {account_id} holds {row[0]}, less than {amount}")
