"""The row lock as the talk writes it: SQLModel objects, changed and flushed."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlmodel import col, select

from bank.errors import InsufficientFunds
from bank.orders import Snapshot
from bank.postgres.database import Transaction
from bank.postgres.models import Account
from bank.strategies.base import Attempt, Claim, Strategy, in_order


class RowLockOrm(Strategy):
    """``select(Account).with_for_update()`` through an ORM session.

    Claims everywhere, for the reason that ``row-lock`` does. It is here to show the price of the object-relational
    mapper: the same locks and the same rows, and several times the work in Python.
    """

    name = "row-lock-orm"
    summary = "the same through SQLModel's session"
    claim = Claim.EVERYWHERE

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        """Load both accounts with a row lock, change the objects, flush."""
        order = attempt.order
        with transaction.orm_session() as session:
            statement = (
                select(Account).where(col(Account.id).in_(order.accounts)).order_by(col(Account.id)).with_for_update()
            )
            with transaction.timed():
                accounts = {account.id: account for account in session.exec(statement)}
            read_at = datetime.now(UTC)
            debit, credit = in_order(
                order, [Snapshot(a.id, a.balance, a.last_entry, a.version, read_at) for a in accounts.values()]
            )
            if debit.balance < order.amount:
                raise InsufficientFunds(f"account {debit.id} holds {debit.balance}, less than {order.amount}")
            attempt.think()
            debit_entry, credit_entry = attempt.entry_ids
            postings = (debit.post(debit_entry, -order.amount), credit.post(credit_entry, order.amount))
            for posting in postings:
                accounts[posting.account_id].balance = posting.after
                accounts[posting.account_id].last_entry = posting.entry_id
            with transaction.timed():
                session.flush()
        transaction.record(postings, order.id)
