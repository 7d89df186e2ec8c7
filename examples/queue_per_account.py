"""A queue per account: every account has its own, people say, so nothing happens to it at the same time.

bankrun prove --strategy queue_per_account:QueuePerAccount --strategy queue_per_account:QueueInPostgres
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque

from bankrun import Attempt, Claim, Guard, NotAcquired, Order, Snapshot, Strategy, Transaction


class Queues:
    """A queue for each account: a transfer at the head of both of its queues may go."""

    def __init__(self) -> None:
        self.moved = threading.Condition()
        self.waiting: defaultdict[int, deque[object]] = defaultdict(deque)


class Place:
    """One transfer's place in the queues of its two accounts, as a guard."""

    def __init__(self, queues: Queues, accounts: tuple[int, int]) -> None:
        self._queues = queues
        self._accounts = accounts

    def enter(self, timeout_seconds: float) -> None:
        """Queue up at both, at once, and wait until no other is before us in either."""
        with self._queues.moved:
            for account in self._accounts:
                self._queues.waiting[account].append(self)
            if self._queues.moved.wait_for(self._is_first, timeout_seconds):
                return
            self._remove()
        raise NotAcquired(f"not at the head of both queues within {timeout_seconds:g} s")

    def try_enter(self) -> bool:
        """Go in if both queues are empty."""
        with self._queues.moved:
            if any(self._queues.waiting[account] for account in self._accounts):
                return False
            for account in self._accounts:
                self._queues.waiting[account].append(self)
            return True

    def leave(self) -> None:
        """Leave both queues."""
        with self._queues.moved:
            self._remove()

    def _is_first(self) -> bool:
        return all(self._queues.waiting[account][0] is self for account in self._accounts)

    def _remove(self) -> None:
        for account in self._accounts:
            self._queues.waiting[account].remove(self)
        self._queues.moved.notify_all()


class QueuePerAccount(Strategy):
    """The queues in memory, one for each account.

    Claims everywhere, as people do, and is refuted: every *process* has a queue for every account. It holds as long as
    there is one of them, or as long as something routes all transfers of an account to the same one; and a transfer
    has two accounts.
    """

    summary = "a queue in memory for each account"
    claim = Claim.EVERYWHERE

    def __init__(self) -> None:
        self._queues = Queues()

    def guard(self, order: Order) -> Guard:
        """Return a place in both queues."""
        return Place(self._queues, order.accounts)


class QueueInPostgres(Strategy):
    """The queues that are there already: Postgres lets those that wait for one lock go in the order in which they came.

    Claims everywhere, and holds.
    """

    summary = "a queue in Postgres for each account"
    claim = Claim.EVERYWHERE

    QUEUE = "SELECT pg_advisory_xact_lock(7, %(account)s)"

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        """Queue up at both accounts, in id order, then read."""
        for account in attempt.order.accounts:
            transaction.execute(self.QUEUE, {"account": account})
        return super().read(transaction, attempt)
