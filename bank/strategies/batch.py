"""Not one by one: a whole message in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import ClassVar, LiteralString
from uuid import UUID

from bank.database import Transaction, array
from bank.errors import InsufficientFunds, Refused, UnknownAccount
from bank.orders import Order
from bank.strategies.base import ChunkStrategy, Claim


class Batch(ChunkStrategy):
    """``SELECT … FOR UPDATE`` on the accounts of a whole message, in id order; then everything is written at once.

    Claims everywhere, as ``row-lock`` does: what was read stays locked until COMMIT. The orders are decided in memory,
    in their order, each from what the one before it left, so outcomes and entries are those of one by one. Each account
    is written once, however many entries it gets. The price: whoever shares an account with a message waits for all of
    it, one COMMIT stands for all of it, and a conflict undoes all of it. It is for messages of hundreds of orders.
    """

    name = "batch"
    summary = "a whole message in one transaction"
    claim = Claim.EVERYWHERE

    # The rows are locked as they leave the sort; the clock is read when all of them are.
    READ: ClassVar[LiteralString] = """
        SELECT array_agg(id), array_agg(balance), array_agg(last_entry), clock_timestamp(),
               ARRAY(SELECT nextval('entry_ids') FROM generate_series(1, %(entries)s))
        FROM (SELECT id, balance, last_entry FROM accounts WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE) AS locked
    """
    WRITE: ClassVar[LiteralString] = """
        UPDATE accounts SET balance = written.balance, last_entry = written.last_entry
        FROM unnest(%(ids)s::int[], %(balances)s::bigint[], %(last_entries)s::bigint[])
            AS written (id, balance, last_entry)
        WHERE accounts.id = written.id
    """
    # In this order they draw their seq: nobody else can have written these accounts meanwhile.
    RECORD: ClassVar[LiteralString] = """
        INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
        SELECT id, transfer_id, account_id, delta, before, before + delta, previous_entry, %(read_at)s
        FROM unnest(%(ids)s::bigint[], %(transfers)s::uuid[], %(accounts)s::int[], %(deltas)s::bigint[],
                    %(befores)s::bigint[], %(previous)s::bigint[])
            WITH ORDINALITY AS posting (id, transfer_id, account_id, delta, before, previous_entry, position)
        ORDER BY position
    """

    def move_all(self, transaction: Transaction, orders: Sequence[Order]) -> Mapping[UUID, Refused]:
        """Lock and read every account, decide the orders one after another, and write what is left of it all."""
        wanted = sorted(set(chain.from_iterable(order.accounts for order in orders)))
        found = transaction.execute(self.READ, {"ids": wanted, "entries": 2 * len(orders)}).fetchone()
        assert found is not None
        ids, balances, last_entries, read_at, entry_ids = found
        balance = dict(zip(ids or (), balances or (), strict=True))
        last_entry = dict(zip(ids or (), last_entries or (), strict=True))
        transaction.think()
        refusals: dict[UUID, Refused] = {}
        postings: list[tuple[int, str, int, int, int, int | None]] = []
        fresh = iter(entry_ids)
        for order in orders:
            refusal = _refusal(order, balance)
            if refusal is not None:
                refusals[order.id] = refusal
                continue
            transfer = order.id.hex
            for account, delta in ((order.debit, -order.amount), (order.credit, order.amount)):
                entry, before = next(fresh), balance[account]
                postings.append((entry, transfer, account, delta, before, last_entry[account]))
                balance[account] = before + delta
                last_entry[account] = entry
        if postings:
            written = sorted({posting[2] for posting in postings})
            transaction.execute(
                self.WRITE,
                {
                    "ids": array(written),
                    "balances": array(map(balance.__getitem__, written)),
                    "last_entries": array(map(last_entry.__getitem__, written)),
                },
            )
            names = ("ids", "transfers", "accounts", "deltas", "befores", "previous")
            columns = dict(zip(names, map(array, zip(*postings, strict=True)), strict=True))
            transaction.execute(self.RECORD, {"read_at": read_at, **columns})
        return refusals


def _refusal(order: Order, balance: Mapping[int, int]) -> Refused | None:
    for account in (order.debit, order.credit):
        if account not in balance:
            return UnknownAccount(f"there is no account {account}")
    if balance[order.debit] < order.amount:
        return InsufficientFunds(f"account {order.debit} holds {balance[order.debit]}, less than {order.amount}")
    return None
