"""The teller applies one transfer with one strategy: claim, guard, transaction, retry, outcome."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import LiteralString

from bank.database import Database, Transaction
from bank.errors import Conflict, NotAcquired, Refused, Rejected, Transient, Unavailable
from bank.models import APPLIED, PENDING, REFUSED
from bank.orders import Order
from bank.strategies import Guard, Strategy

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


@dataclass(slots=True)
class Receipt:
    """What became of one delivery of one transfer, and what it cost.

    ``outcome`` is the transfer's status; ``first`` is whether this delivery decided it, rather than found it decided.
    ``seconds`` is the whole time, over all attempts. Parts of it: ``guard_seconds`` in the guard's queue,
    ``move_seconds`` in the strategy's own statements, ``commit_seconds`` in the COMMIT that succeeded,
    ``backoff_seconds`` between attempts; the rest is the claim, the think time, and Python. What a statement waits for
    a lock cannot be told apart from its round trip.
    """

    outcome: str = PENDING
    first: bool = False
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
        started = time.perf_counter()
        try:
            while True:
                receipt.attempts += 1
                begun = time.perf_counter()
                try:
                    self._attempt(order, strategy, think_seconds, receipt)
                    return receipt
                except Transient as error:
                    receipt.conflicts[_kind(error)] += 1
                    if time.perf_counter() - started > self.patience_seconds:
                        raise
                failed = time.perf_counter()
                self.pace.before_retry(_backoff_seconds(receipt.attempts, failed - begun))
                receipt.backoff_seconds += time.perf_counter() - failed
        finally:
            receipt.seconds = time.perf_counter() - started

    def _attempt(self, order: Order, strategy: Strategy, think_seconds: float, receipt: Receipt) -> None:
        with ExitStack() as guarded:
            self._enter(guarded, strategy.guard(order), receipt)
            prepared = strategy.prepare(self.database, order)
            try:
                with self.database.transaction(strategy.isolation) as transaction:
                    transaction.prepared = prepared
                    transaction.think = lambda: self.pace.think(transaction, think_seconds)
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

    def _apply(self, transaction: Transaction, order: Order, strategy: Strategy, receipt: Receipt) -> None:
        claimed = transaction.execute(CLAIM, self._decision(order, receipt)).fetchone()
        if claimed is None:
            self._find_decided(transaction, order, receipt)
            return
        accepted_for, debit, credit, amount, *entry_ids = claimed
        if accepted_for != strategy.name:
            raise Rejected(f"transfer {order.id} was accepted for {accepted_for}, not for {strategy.name}")
        if (debit, credit, amount) != (order.debit, order.credit, order.amount):
            raise Rejected(
                f"transfer {order.id}: the message says {order.amount} from {order.debit} to {order.credit}, "
                f"but {amount} from {debit} to {credit} was accepted"
            )
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

    def _refuse(
        self, transaction: Transaction, order: Order, refusal: Refused, receipt: Receipt, claimable: list[str]
    ) -> None:
        decision = {**self._decision(order, receipt), "reason": str(refusal), "from": claimable}
        if transaction.execute(REFUSE, decision).fetchone() is not None:
            receipt.outcome, receipt.first = REFUSED, True
        else:
            self._find_decided(transaction, order, receipt)

    def _find_decided(self, transaction: Transaction, order: Order, receipt: Receipt) -> None:
        row = transaction.execute(STATUS, {"id": order.id}).fetchone()
        if row is None:
            raise Rejected(f"transfer {order.id} was never accepted")
        receipt.outcome, receipt.first = row[0], False

    def _decision(self, order: Order, receipt: Receipt) -> dict[str, object]:
        return {
            "id": order.id,
            "instance": self.instance,
            "thread": threading.current_thread().name,
            "attempts": receipt.attempts,
        }


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
