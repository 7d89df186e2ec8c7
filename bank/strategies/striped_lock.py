"""One thread lock per account, so that transfers that share no account do not wait for each other."""

from __future__ import annotations

import threading

from bank.orders import Order
from bank.strategies.base import Claim, Guard, Strategy, ThreadGuard


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
        return ThreadGuard(*(self._locks[stripe] for stripe in stripes))
