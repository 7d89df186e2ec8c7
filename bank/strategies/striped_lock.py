"""A thread lock for each account instead of one for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from bank.errors import NotAcquired
from bank.orders import Order
from bank.strategies.base import Claim, Guard, Strategy


class StripedGuard:
    """Several ``threading.Lock`` objects as one guard: all of them, or none."""

    def __init__(self, locks: Sequence[threading.Lock]) -> None:
        self._locks = locks

    def enter(self, timeout_seconds: float) -> None:
        """Wait for one lock after the other. Raises NotAcquired, holding none, after ``timeout_seconds`` in all."""
        deadline = time.monotonic() + timeout_seconds
        if not self._take(lambda lock: lock.acquire(timeout=max(0.0, deadline - time.monotonic()))):
            raise NotAcquired(f"the thread locks of both accounts were not free within {timeout_seconds:g} s")

    def try_enter(self) -> bool:
        """Take all locks if all are free."""
        return self._take(lambda lock: lock.acquire(blocking=False))

    def leave(self) -> None:
        """Release all locks."""
        for lock in self._locks:
            lock.release()

    def _take(self, acquire: Callable[[threading.Lock], bool]) -> bool:
        for number, lock in enumerate(self._locks):
            if not acquire(lock):
                for taken in self._locks[:number]:
                    taken.release()
                return False
        return True


class StripedLock(Strategy):
    """One ``threading.Lock`` per account, both taken in id order, held from before BEGIN until after COMMIT.

    Claims one process, as ``thread-lock`` does and for the same reason; but transfers that share no account no longer
    wait for each other. Without the order two transfers in opposite directions could each hold what the other waits
    for, and no server is there to notice. The locks are a fixed number of stripes, so that they do not grow with the
    accounts: accounts that are ``STRIPES`` apart share one, which costs a wait and is never wrong.
    """

    name = "striped-lock"
    summary = "one threading.Lock per account"
    claim = Claim.PROCESS

    STRIPES = 1024

    def __init__(self) -> None:
        self._locks = tuple(threading.Lock() for _ in range(self.STRIPES))

    def guard(self, order: Order) -> Guard:
        """Return the locks of both accounts; once if it is the same, because a thread cannot take it twice."""
        stripes = sorted({account % self.STRIPES for account in order.accounts})
        return StripedGuard([self._locks[stripe] for stripe in stripes])
