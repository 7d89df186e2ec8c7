"""Not one by one: a whole message in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import ClassVar
from uuid import UUID

from bank.errors import InsufficientFunds, Refused, UnknownAccount
from bank.ledger import array, columns
from bank.orders import Order
from bank.postgres.database import Transaction
from bank.strategies.base import ChunkAttempt, ChunkStrategy, Claim


class Batch(ChunkStrategy):
    """``SELECT … FOR UPDATE`` on the accounts of a whole message, in id order; then everything is written at once.

    Claims everywhere, as ``row-lock`` does: what was read stays locked until COMMIT. One statement posts all orders,
    each from what the one before it left, so outcomes and entries are those of one by one; if an account would be
    overdrawn on the way, the orders are decided in memory first, in their order. Each account is written once, however
    many entries it gets. The price: a transfer that shares an account with a message waits for all of
    it, one COMMIT stands for all of it, and a conflict undoes all of it. It is for messages of hundreds of orders.
    """

    name = "batch"
    summary = "a whole message in one transaction"
    claim = Claim.EVERYWHERE

    # The rows are locked as they leave the sort; the clock is read when all of them are.
    LOCK: ClassVar[str] = """
        SELECT count(*), clock_timestamp()
        FROM (SELECT FROM accounts JOIN unnest(%(accounts)s::int[]) AS wanted (id) USING (id)
              ORDER BY accounts.id FOR UPDATE OF accounts) AS locked
    """
    # All of it or nothing: nothing if somewhere on the way an account would be overdrawn. An account's entries draw
    # their seq in the orders' order: no other transaction can have written it meanwhile.
    POST: ClassVar[str] = """
        WITH leg AS (
            SELECT nextval('entry_ids') AS id, sent.id AS transfer_id, account_id, delta, position
            FROM unnest(%(ids)s::uuid[], %(debits)s::int[], %(credits)s::int[], %(amounts)s::bigint[])
                WITH ORDINALITY AS sent (id, debit, credit, amount, position),
                LATERAL (VALUES (debit, -amount), (credit, amount)) AS side (account_id, delta)
        ), posting AS MATERIALIZED (
            SELECT leg.*, (balance + sum(delta) OVER so_far)::bigint AS after,
                   lag(leg.id, 1, last_entry) OVER so_far AS previous_entry,
                   lead(leg.id) OVER so_far IS NULL AS is_last
            FROM leg JOIN accounts ON accounts.id = leg.account_id
            WINDOW so_far AS (PARTITION BY leg.account_id ORDER BY position ROWS UNBOUNDED PRECEDING)
        ), lawful AS (
            SELECT min(after) >= 0 AS is_so FROM posting
        ), written AS (
            UPDATE accounts SET balance = after, last_entry = posting.id
            FROM posting WHERE accounts.id = account_id AND is_last AND (SELECT is_so FROM lawful)
        )
        INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
        SELECT id, transfer_id, account_id, delta, after - delta, after, previous_entry, %(read_at)s
        FROM posting WHERE (SELECT is_so FROM lawful)
        ORDER BY account_id, position
    """
    BALANCES: ClassVar[str] = "SELECT id, balance FROM accounts WHERE id = ANY(%(accounts)s::int[])"

    def move_all(self, transaction: Transaction, attempt: ChunkAttempt) -> Mapping[UUID, Refused]:
        """Lock every account, find out which orders have to be refused, if any, and post the others at once."""
        orders = attempt.orders
        accounts = array(sorted(set(chain.from_iterable(order.accounts for order in orders))))
        found = transaction.execute(self.LOCK, {"accounts": accounts}).fetchone()
        assert found is not None
        locked, read_at = found
        attempt.think()
        if locked == accounts.count(",") + 1 and self._post(transaction, orders, read_at):
            return {}
        refusals = _refusals(orders, dict(transaction.execute(self.BALANCES, {"accounts": accounts}).fetchall()))
        lawful = [order for order in orders if order.id not in refusals]
        if lawful:
            posted = self._post(transaction, lawful, read_at)
            assert posted, "what was decided one after another overdraws an account"
        return refusals

    def _post(self, transaction: Transaction, orders: Sequence[Order], read_at: datetime) -> bool:
        """Write balances and entries; return whether it was possible."""
        return transaction.execute(self.POST, {"read_at": read_at, **columns(orders)}).rowcount > 0


def _refusals(orders: Sequence[Order], balance: dict[int, int]) -> dict[UUID, Refused]:
    """Decide the orders one after another, each from what the one before it left. ``balance`` is used up."""
    refusals: dict[UUID, Refused] = {}
    for order in orders:
        missing = [account for account in (order.debit, order.credit) if account not in balance]
        if missing:
            refusals[order.id] = UnknownAccount(f"there is no account {missing[0]}")
        elif balance[order.debit] < order.amount:
            refusals[order.id] = InsufficientFunds(
                f"account {order.debit} holds {balance[order.debit]}, less than {order.amount}"
            )
        else:
            balance[order.debit] -= order.amount
            balance[order.credit] += order.amount
    return refusals
