"""Almost right: no posting is ever lost, and the account is overdrawn."""

from __future__ import annotations

from typing import ClassVar

from bank.errors import InsufficientFunds
from bank.orders import Order
from bank.postgres.database import Database, Transaction
from bank.strategies.atomic_update import AtomicUpdate
from bank.strategies.base import Attempt, Claim


class CheckThenDebit(AtomicUpdate):
    """Look whether there is enough, in a transaction of its own; then let the database add and subtract.

    Claims nothing. People believe in it because each half is right: the check is a check, and the UPDATE is atomic, so
    every total adds up and no posting is lost. But what was checked is not locked. Two transfers that each fit both see
    enough, and both are booked (time of check, time of use). ``atomic-update`` is the same with the check where it
    belongs, in the UPDATE's own WHERE, which is looked at again after a wait (manual, section 13.2.1). A
    ``CHECK (balance >= 0)``, as with ``--constraint``, would stop it.
    """

    name = "check-then-debit"
    summary = "almost right: funds checked too early"
    claim = Claim.NOTHING

    CHECK: ClassVar[str] = "SELECT balance FROM accounts WHERE id = %(id)s"
    ADD = """
        UPDATE accounts SET balance = balance + %(delta)s, last_entry = %(entry_id)s WHERE id = %(account_id)s
        RETURNING old.balance, new.balance, old.last_entry, clock_timestamp()
    """
    ADD_BEFORE_18 = """
        WITH locked AS (SELECT id, last_entry FROM accounts WHERE id = %(account_id)s FOR NO KEY UPDATE)
        UPDATE accounts SET balance = balance + %(delta)s, last_entry = %(entry_id)s
        FROM locked WHERE accounts.id = locked.id
        RETURNING balance - %(delta)s, balance, locked.last_entry, clock_timestamp()
    """

    def prepare(self, database: Database, order: Order) -> object:
        """Return what the debit account holds, or None if there is no such account."""
        with database.transaction() as transaction:
            row = transaction.execute(self.CHECK, {"id": order.debit}).fetchone()
        return None if row is None else row[0]

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        """Believe what ``prepare`` saw, and change both balances in place."""
        order, seen = attempt.order, attempt.prepared
        if isinstance(seen, int) and seen < order.amount:
            raise InsufficientFunds(f"account {order.debit} holds {seen}, less than {order.amount}")
        super().move(transaction, attempt)
