"""The set-based half of the teller: all orders of a message in one transaction, a statement for each step of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bank import ledger
from bank.errors import Rejected
from bank.orders import Order
from bank.postgres.database import Transaction
from bank.postgres.models import APPLIED, PENDING, REFUSED
from bank.receipts import Cost, Fate
from bank.strategies.base import ChunkAttempt, ChunkStrategy, Think

Fates = list[Fate | Rejected]


def apply_chunk(
    transaction: Transaction,
    orders: Sequence[Order],
    strategy: ChunkStrategy,
    *,
    decision: Mapping[str, object],
    think: Think,
    cost: Cost,
) -> Fates:
    """Claim the orders, let the strategy move their money, refuse whom it refuses; return what became of each.

    ``decision`` is who decides, as the claim records it.
    """
    fates = _claim(transaction, orders, strategy.name, decision)
    claimed = [order for number, order in enumerate(orders) if number not in fates]
    claim_seconds = transaction.statements_seconds
    refusals = strategy.move_all(transaction, ChunkAttempt(claimed, think)) if claimed else {}
    cost.move_seconds += transaction.statements_seconds - claim_seconds
    if refusals:
        reasons = [str(refusal) for refusal in refusals.values()]
        transaction.execute(ledger.REFUSE_ALL, {"ids": ledger.array([one.hex for one in refusals]), "reasons": reasons})
    elif not fates:
        return [Fate(APPLIED, first=True)] * len(orders)
    for number, order in enumerate(orders):
        fate = fates.setdefault(number, Fate(APPLIED, first=True))
        if order.id in refusals and isinstance(fate, Fate):
            fates[number] = fate._replace(outcome=REFUSED)
    return [fates[number] for number in range(len(orders))]


def _claim(
    transaction: Transaction, orders: Sequence[Order], strategy: str, decision: Mapping[str, object]
) -> dict[int, Fate | Rejected]:
    """Claim what this delivery has to decide, and return the fates of the others by their numbers."""
    fates: dict[int, Fate | Rejected] = {}
    numbers: Sequence[int] = range(len(orders))
    while numbers:
        # A transfer that is in the chunk twice was delivered twice: the second time it is found decided, unless
        # only the second one is what was accepted. By the ids' integers, since a UUID's own hash is Python.
        once = {orders[number].id.int: number for number in reversed(numbers)}
        wanted = sorted(once.values())
        rows = transaction.execute(
            ledger.CLAIM_ALL,
            {**decision, "strategy": strategy, **ledger.columns([orders[number] for number in wanted])},
        ).fetchall()
        if len(rows) < len(wanted):
            claimed = {wanted[position - 1] for (position,) in rows}
            others = [number for number in wanted if number not in claimed]
            ids = ledger.array([orders[number].id.hex for number in others])
            found = {row[0]: row[1:] for row in transaction.execute(ledger.FIND_ALL, {"ids": ids})}
            fates |= {n: _decide_fate(orders[n], strategy, found.get(orders[n].id)) for n in others}
        if len(wanted) == len(numbers):
            break
        numbers = [number for number in numbers if once[orders[number].id.int] != number]
    return fates


def _decide_fate(order: Order, strategy: str, found: tuple[Any, ...] | None) -> Fate | Rejected:
    """Return what became of an order that could not be claimed, given its transfer, if there is such a transfer."""
    if found is None:
        return Rejected(f"transfer {order.id} was never accepted")
    status, *accepted = found
    disagreement = ledger.find_disagreement(order, strategy, *accepted) if status == PENDING else None
    return disagreement or Fate(status, first=False)
