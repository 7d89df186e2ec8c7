"""The teller applies one transfer, or one chunk, with one strategy: claim, guard, transaction, retry, outcome."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, LiteralString, NamedTuple

from bank.errors import Conflict, NotAcquired, Refused, Rejected, Transient, Unavailable
from bank.orders import Order
from bank.postgres.database import Database, Transaction, array, columns
from bank.postgres.models import APPLIED, PENDING, REFUSED
from bank.strategies import ChunkStrategy, Guard, Strategy

BACKOFF_SECONDS = 0.001
BACKOFF_SECONDS_MAX = 1.0

CLAIM: LiteralString = """
    UPDATE transfers SET status = 'applied', reason = NULL, instance = %(instance)s, thread = %(thread)s,
           attempts = %(attempts)s, decided_at = clock_timestamp()
    WHERE id = %(id)s AND status = 'pending'
    RETURNING strategy, debit, credit, amount, nextval('entry_ids'), nextval('entry_ids')
"""
REFUSE: LiteralString = """
    UPDATE transfers SET status = 'refused', reason = %(reason)s, instance = %(instance)s, thread = %(thread)s,
           attempts = %(attempts)s, decided_at = clock_timestamp()
    WHERE id = %(id)s AND status = ANY(%(from)s)
    RETURNING id
"""
STATUS: LiteralString = "SELECT status FROM transfers WHERE id = %(id)s"

# A chunk is claimed before its accounts are locked, so that the next chunk can be claimed meanwhile; and as applied,
# since few are refused. In id order, so that two deliveries that overlap wait for each other in line. An order that
# disagrees with what was accepted is not claimed.
CLAIM_ALL: LiteralString = """
    UPDATE transfers SET status = 'applied', reason = NULL, instance = %(instance)s, thread = %(thread)s,
           attempts = %(attempts)s, decided_at = clock_timestamp()
    FROM (
        SELECT * FROM unnest(%(ids)s::uuid[], %(debits)s::int[], %(credits)s::int[], %(amounts)s::bigint[])
            WITH ORDINALITY AS sent (id, debit, credit, amount, position)
        ORDER BY id
    ) AS sent
    WHERE transfers.id = sent.id AND status = 'pending' AND strategy = %(strategy)s
      AND (transfers.debit, transfers.credit, transfers.amount) = (sent.debit, sent.credit, sent.amount)
    RETURNING position
"""
REFUSE_ALL: LiteralString = """
    UPDATE transfers SET status = 'refused', reason = refused.reason
    FROM unnest(%(ids)s::uuid[], %(reasons)s::text[]) AS refused (id, reason)
    WHERE transfers.id = refused.id
"""
FIND_ALL: LiteralString = """
    SELECT id, status, strategy, debit, credit, amount FROM transfers WHERE id = ANY(%(ids)s::uuid[])
"""


@dataclass(slots=True)
class Cost:
    """What one delivery cost, over all attempts.

    ``seconds`` is the whole time, over all attempts. Parts of it: ``guard_seconds`` in the guard's queue,
    ``move_seconds`` in the strategy's own statements, ``commit_seconds`` in the COMMIT that succeeded,
    ``backoff_seconds`` between attempts; the rest is the claim, the think time, and Python. What a statement waits for
    a lock cannot be told apart from its round trip.
    """

    attempts: int = 0
    seconds: float = 0.0
    guard_seconds: float = 0.0
    move_seconds: float = 0.0
    commit_seconds: float = 0.0
    backoff_seconds: float = 0.0
    conflicts: Counter[str] = field(default_factory=Counter)

    @property
    def lock_wait_seconds(self) -> float:
        """Return the time in the guard's queue and in the strategy's own statements."""
        return self.guard_seconds + self.move_seconds


@dataclass(slots=True)
class Receipt(Cost):
    """What became of one delivery of one transfer, and what it cost.

    ``outcome`` is the transfer's status; ``first`` is whether this delivery decided it, rather than found it decided.
    """

    outcome: str = PENDING
    first: bool = False


class Fate(NamedTuple):
    """What became of one order of a chunk, as in a Receipt."""

    outcome: str
    first: bool


@dataclass(slots=True)
class ChunkReceipt(Cost):
    """What became of one delivery of a chunk, order by order, and what all of it cost together."""

    fates: list[Fate | Rejected] = field(default_factory=list)


class Pace:
    """How a teller waits: for real. The proof has a pace of its own, in which a scheduler decides."""

    def enter(self, guard: Guard, timeout_seconds: float) -> None:
        """Wait for a guard. Raises NotAcquired after ``timeout_seconds``."""
        guard.enter(timeout_seconds)

    def leave(self, guard: Guard) -> None:
        """Give a guard back."""
        guard.leave()

    def think(self, transaction: Transaction, seconds: float) -> None:
        """Stand for what an application does between reading a balance and writing it."""
        if seconds:
            time.sleep(seconds)

    def before_retry(self, seconds_max: float) -> None:
        """Let the others finish, for a random time."""
        time.sleep(random.uniform(0, seconds_max))


class Teller:
    """Applies transfers for one instance. Thread-safe: its threads share nothing here but the pool of connections."""

    def __init__(
        self,
        database: Database,
        *,
        instance: str,
        guard_timeout_seconds: float,
        patience_seconds: float,
        pace: Pace | None = None,
    ) -> None:
        self.database = database
        self.instance = instance
        self.guard_timeout_seconds = guard_timeout_seconds
        self.patience_seconds = patience_seconds
        self.pace = pace or Pace()

    def apply(self, order: Order, strategy: Strategy, *, think_seconds: float = 0.0) -> Receipt:
        """Apply an accepted transfer, once, however often it is delivered.

        Tries again after a conflict, after a lock that was not acquired, while the server cannot do it, and after a
        connection that died, each time from the claim on. Raises the last of these once ``patience_seconds`` are over:
        the transfer then is as pending as before. Raises Rejected if no such transfer was accepted.
        """
        receipt = Receipt()
        if isinstance(strategy, ChunkStrategy):
            (fate,) = self._apply_chunk([order], strategy, think_seconds, receipt)
            if isinstance(fate, Rejected):
                raise fate
            receipt.outcome, receipt.first = fate
        else:
            self._until_it_succeeds(lambda: self._attempt(order, strategy, think_seconds, receipt), receipt)
        return receipt

    def apply_all(
        self, orders: Sequence[Order], strategy: ChunkStrategy, *, think_seconds: float = 0.0
    ) -> ChunkReceipt:
        """Apply a chunk of accepted transfers in one transaction, each of them once, as if one after another.

        Tries again as ``apply`` does, all of them. An order that was not accepted, or not so, is rejected alone.
        """
        receipt = ChunkReceipt()
        receipt.fates = self._apply_chunk(orders, strategy, think_seconds, receipt)
        return receipt

    def _apply_chunk(
        self, orders: Sequence[Order], strategy: ChunkStrategy, think_seconds: float, cost: Cost
    ) -> list[Fate | Rejected]:
        fates: list[Fate | Rejected] = []

        def attempt() -> None:
            with self.database.transaction(strategy.isolation) as transaction:
                transaction.think = lambda: self.pace.think(transaction, think_seconds)
                fates[:] = self._apply_all(transaction, orders, strategy, cost)
            cost.commit_seconds += transaction.commit_seconds

        self._until_it_succeeds(attempt, cost)
        return fates

    def _until_it_succeeds(self, attempt: Callable[[], None], cost: Cost) -> None:
        started = time.perf_counter()
        try:
            while True:
                cost.attempts += 1
                begun = time.perf_counter()
                try:
                    attempt()
                    return
                except Transient as error:
                    cost.conflicts[_kind(error)] += 1
                    if time.perf_counter() - started > self.patience_seconds:
                        raise
                failed = time.perf_counter()
                self.pace.before_retry(_backoff_seconds(cost.attempts, failed - begun))
                cost.backoff_seconds += time.perf_counter() - failed
        finally:
            cost.seconds = time.perf_counter() - started

    def _attempt(self, order: Order, strategy: Strategy, think_seconds: float, receipt: Receipt) -> None:
        with ExitStack() as guarded:
            self._enter(guarded, strategy.guard(order), receipt)
            prepared = strategy.prepare(self.database, order)
            try:
                with self.database.transaction(strategy.isolation) as transaction:
                    transaction.prepared = prepared
                    transaction.think = lambda: self.pace.think(transaction, think_seconds)
                    if not self._apply_at_once(transaction, order, strategy, receipt):
                        self._apply(transaction, order, strategy, receipt)
                    if not strategy.guards_commit:
                        guarded.close()
                receipt.commit_seconds += transaction.commit_seconds
            except Refused as refusal:
                # Only the database's CHECK gets here. It ended the transaction, the claim included.
                with self.database.transaction() as transaction:
                    self._refuse(transaction, order, refusal, receipt, [PENDING])

    def _enter(self, guarded: ExitStack, guard: Guard | None, receipt: Receipt) -> None:
        if guard is None:
            return
        started = time.perf_counter()
        try:
            self.pace.enter(guard, self.guard_timeout_seconds)
        finally:
            receipt.guard_seconds += time.perf_counter() - started
        guarded.callback(self.pace.leave, guard)

    def _apply_at_once(self, transaction: Transaction, order: Order, strategy: Strategy, receipt: Receipt) -> bool:
        """Apply the transfer with the strategy's one statement; return whether there is one and it did so."""
        if strategy.AT_ONCE is None:
            return False
        transaction.think()
        transaction.think = lambda: None
        before_seconds = transaction.statements_seconds
        parameters = {
            "id": order.id,
            "debit": order.debit,
            "credit": order.credit,
            "amount": order.amount,
            "strategy": strategy.name,
            **self._decision(receipt),
        }
        try:
            if not transaction.execute_alone(strategy.AT_ONCE, parameters).rowcount:
                return False
        finally:
            receipt.move_seconds += transaction.statements_seconds - before_seconds
        receipt.outcome, receipt.first = APPLIED, True
        return True

    def _apply(self, transaction: Transaction, order: Order, strategy: Strategy, receipt: Receipt) -> None:
        claimed = transaction.execute(CLAIM, {"id": order.id, **self._decision(receipt)}).fetchone()
        if claimed is None:
            self._find_decided(transaction, order, receipt)
            return
        accepted_for, debit, credit, amount, *entry_ids = claimed
        disagreement = _disagreement(order, strategy, accepted_for, debit, credit, amount)
        if disagreement is not None:
            raise disagreement
        claim_seconds = transaction.statements_seconds
        if strategy.refuses_after_write:
            transaction.execute("SAVEPOINT move")
        try:
            strategy.move(transaction, order, (entry_ids[0], entry_ids[1]))
        except Refused as refusal:
            if strategy.refuses_after_write:
                transaction.execute("ROLLBACK TO SAVEPOINT move")
            self._refuse(transaction, order, refusal, receipt, [PENDING, APPLIED])
        else:
            receipt.outcome, receipt.first = APPLIED, True
        finally:
            receipt.move_seconds += transaction.statements_seconds - claim_seconds

    def _apply_all(
        self, transaction: Transaction, orders: Sequence[Order], strategy: ChunkStrategy, cost: Cost
    ) -> list[Fate | Rejected]:
        fates = self._claim_all(transaction, orders, strategy, cost)
        claimed = [order for number, order in enumerate(orders) if number not in fates]
        claim_seconds = transaction.statements_seconds
        refusals = strategy.move_all(transaction, claimed) if claimed else {}
        cost.move_seconds += transaction.statements_seconds - claim_seconds
        if refusals:
            reasons = [str(refusal) for refusal in refusals.values()]
            transaction.execute(REFUSE_ALL, {"ids": array([one.hex for one in refusals]), "reasons": reasons})
        elif not fates:
            return [Fate(APPLIED, first=True)] * len(orders)
        for number, order in enumerate(orders):
            fate = fates.setdefault(number, Fate(APPLIED, first=True))
            if order.id in refusals and isinstance(fate, Fate):
                fates[number] = fate._replace(outcome=REFUSED)
        return [fates[number] for number in range(len(orders))]

    def _claim_all(
        self, transaction: Transaction, orders: Sequence[Order], strategy: ChunkStrategy, cost: Cost
    ) -> dict[int, Fate | Rejected]:
        """Claim what this delivery has to decide, and return the fates of the others by their numbers."""
        fates: dict[int, Fate | Rejected] = {}
        numbers: Sequence[int] = range(len(orders))
        while numbers:
            # A transfer that is in the chunk twice was delivered twice: the second time it is found decided, unless
            # only the second one is what was accepted. By the ids' integers, since a UUID's own hash is Python.
            once = {orders[number].id.int: number for number in reversed(numbers)}
            asked = sorted(once.values())
            rows = transaction.execute(
                CLAIM_ALL,
                {**self._decision(cost), "strategy": strategy.name, **columns([orders[number] for number in asked])},
            ).fetchall()
            if len(rows) < len(asked):
                claimed = {asked[position - 1] for (position,) in rows}
                others = [number for number in asked if number not in claimed]
                ids = array([orders[number].id.hex for number in others])
                found = {row[0]: row[1:] for row in transaction.execute(FIND_ALL, {"ids": ids})}
                fates |= {n: _fate(orders[n], strategy, found.get(orders[n].id)) for n in others}
            if len(asked) == len(numbers):
                break
            numbers = [number for number in numbers if once[orders[number].id.int] != number]
        return fates

    def _refuse(
        self, transaction: Transaction, order: Order, refusal: Refused, receipt: Receipt, claimable: list[str]
    ) -> None:
        decision = {"id": order.id, **self._decision(receipt), "reason": str(refusal), "from": claimable}
        if transaction.execute(REFUSE, decision).fetchone() is not None:
            receipt.outcome, receipt.first = REFUSED, True
        else:
            self._find_decided(transaction, order, receipt)

    def _find_decided(self, transaction: Transaction, order: Order, receipt: Receipt) -> None:
        row = transaction.execute(STATUS, {"id": order.id}).fetchone()
        if row is None:
            raise Rejected(f"transfer {order.id} was never accepted")
        receipt.outcome, receipt.first = row[0], False

    def _decision(self, cost: Cost) -> dict[str, object]:
        return {
            "instance": self.instance,
            "thread": threading.current_thread().name,
            "attempts": cost.attempts,
        }


def _fate(order: Order, strategy: Strategy, found: tuple[Any, ...] | None) -> Fate | Rejected:
    """Return what became of an order that could not be claimed, given its transfer, if there is such a transfer."""
    if found is None:
        return Rejected(f"transfer {order.id} was never accepted")
    status, *accepted = found
    disagreement = _disagreement(order, strategy, *accepted) if status == PENDING else None
    return disagreement or Fate(status, first=False)


def _disagreement(
    order: Order, strategy: Strategy, accepted_for: str, debit: int, credit: int, amount: int
) -> Rejected | None:
    """Return what is wrong with an order or the strategy that a message names, beside what was accepted."""
    if accepted_for != strategy.name:
        return Rejected(f"transfer {order.id} was accepted for {accepted_for}, not for {strategy.name}")
    if (debit, credit, amount) != (order.debit, order.credit, order.amount):
        return Rejected(
            f"transfer {order.id}: the message says {order.amount} from {order.debit} to {order.credit}, "
            f"but {amount} from {debit} to {credit} was accepted"
        )
    return None


def _backoff_seconds(attempts: int, lost_seconds: float) -> float:
    """Return how long to wait at most: twice as long each time, in units of what the failed attempt took.

    Whoever is back before a deadlock could be noticed only closes the next circle, and all of them starve.
    """
    doubled: int = 2 ** min(attempts, 16)
    return min(BACKOFF_SECONDS_MAX, max(BACKOFF_SECONDS, lost_seconds) * doubled)


def _kind(error: Transient) -> str:
    """Return the name under which a failed attempt is counted."""
    if isinstance(error, Conflict):
        return {"40001": "serialization_failures", "40P01": "deadlocks"}.get(error.sqlstate or "", "conflicts")
    if isinstance(error, Unavailable):
        return "unavailable"
    return "not_acquired" if isinstance(error, NotAcquired) else "connection_losses"
