"""The teller applies one transfer, or one chunk, with one strategy: claim, guard, transaction, retry, outcome."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bank import ledger
from bank.chunks import Fates, apply_chunk
from bank.errors import Refused, Rejected, Transient
from bank.orders import Order
from bank.postgres.database import Database, Transaction
from bank.postgres.models import APPLIED, PENDING, REFUSED
from bank.receipts import ChunkReceipt, Cost, Receipt
from bank.strategies.base import Attempt, ChunkStrategy, Guard, Strategy, Think, takes_chunks

BACKOFF_SECONDS = 0.001
BACKOFF_SECONDS_MAX = 1.0


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
        if takes_chunks(strategy):
            (fate,) = self._apply_chunk([order], strategy, think_seconds, receipt)
            if isinstance(fate, Rejected):
                raise fate
            receipt.outcome, receipt.first = fate
        else:
            self._repeat(lambda: self._attempt(order, strategy, think_seconds, receipt), receipt)
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

    def _apply_chunk(self, orders: Sequence[Order], strategy: ChunkStrategy, think_seconds: float, cost: Cost) -> Fates:
        fates: Fates = []

        def attempt() -> None:
            with self.database.transaction(strategy.isolation) as transaction:
                think = self._think_once(transaction, think_seconds)
                fates[:] = apply_chunk(
                    transaction, orders, strategy, decision=self._decision(cost), think=think, cost=cost
                )
            cost.commit_seconds += transaction.commit_seconds

        self._repeat(attempt, cost)
        return fates

    def _repeat(self, attempt: Callable[[], None], cost: Cost) -> None:
        """Make attempts until one succeeds."""
        started = time.perf_counter()
        try:
            while True:
                cost.attempts += 1
                begun = time.perf_counter()
                try:
                    attempt()
                    return
                except Transient as error:
                    cost.count(error)
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
                    think = self._think_once(transaction, think_seconds)
                    if not self._apply_at_once(transaction, order, strategy, think, receipt):
                        self._apply(transaction, order, strategy, think, prepared, receipt)
                    strategy.before_commit(guarded.close)
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

    def _apply_at_once(
        self, transaction: Transaction, order: Order, strategy: Strategy, think: Think, receipt: Receipt
    ) -> bool:
        """Let the strategy apply the whole transfer in one statement; return whether it does so, and did."""
        parameters = {
            "id": order.id,
            "debit": order.debit,
            "credit": order.credit,
            "amount": order.amount,
            "strategy": strategy.name,
            **self._decision(receipt),
        }
        before_seconds = transaction.statements_seconds
        try:
            applied = strategy.apply_at_once(transaction, parameters, think)
        finally:
            receipt.move_seconds += transaction.statements_seconds - before_seconds
        if applied:
            receipt.outcome, receipt.first = APPLIED, True
        return applied

    def _apply(
        self,
        transaction: Transaction,
        order: Order,
        strategy: Strategy,
        think: Think,
        prepared: object,
        receipt: Receipt,
    ) -> None:
        claimed = transaction.execute(ledger.CLAIM, {"id": order.id, **self._decision(receipt)}).fetchone()
        if claimed is None:
            self._find_decided(transaction, order, receipt)
            return
        *accepted, debit_entry, credit_entry = claimed
        disagreement = ledger.find_disagreement(order, strategy.name, *accepted)
        if disagreement is not None:
            raise disagreement
        claim_seconds = transaction.statements_seconds
        try:
            strategy.move(transaction, Attempt(order, (debit_entry, credit_entry), think, prepared))
        except Refused as refusal:
            self._refuse(transaction, order, refusal, receipt, [PENDING, APPLIED])
        else:
            receipt.outcome, receipt.first = APPLIED, True
        finally:
            receipt.move_seconds += transaction.statements_seconds - claim_seconds

    def _refuse(
        self, transaction: Transaction, order: Order, refusal: Refused, receipt: Receipt, claimable: list[str]
    ) -> None:
        decision = {"id": order.id, **self._decision(receipt), "reason": str(refusal), "from": claimable}
        if transaction.execute(ledger.REFUSE, decision).fetchone() is not None:
            receipt.outcome, receipt.first = REFUSED, True
        else:
            self._find_decided(transaction, order, receipt)

    def _find_decided(self, transaction: Transaction, order: Order, receipt: Receipt) -> None:
        row = transaction.execute(ledger.FIND, {"id": order.id}).fetchone()
        if row is None:
            raise Rejected(f"transfer {order.id} was never accepted")
        receipt.outcome, receipt.first = row[0], False

    def _think_once(self, transaction: Transaction, seconds: float) -> Think:
        """Return what an attempt calls in order to think: a transfer thinks once, whichever way it goes."""
        thoughts = iter((seconds,))

        def think() -> None:
            for one in thoughts:
                self.pace.think(transaction, one)

        return think

    def _decision(self, cost: Cost) -> dict[str, object]:
        """Return who decides, as a claim records it."""
        return {
            "instance": self.instance,
            "thread": threading.current_thread().name,
            "attempts": cost.attempts,
        }


def _backoff_seconds(attempts: int, lost_seconds: float) -> float:
    """Return how long to wait at most: twice as long each time, in units of what the failed attempt took.

    A transfer that is back before a deadlock could be noticed only closes the next circle, and all of them starve.
    """
    doubled: int = 2 ** min(attempts, 16)
    return min(BACKOFF_SECONDS_MAX, max(BACKOFF_SECONDS, lost_seconds) * doubled)
