"""The talk's ``threading.Lock`` around the whole transfer."""

import threading

from bank.orders import Order
from bank.strategies.base import Claim, Guard, Strategy, ThreadGuard


class ThreadLock(Strategy):
    """One lock for all accounts, held from before BEGIN until after COMMIT.

    Claims one process. A second instance has a lock of its own and never waits for this one: across instances it is
    as good as none. Within one it also makes all transfers wait for each other, whichever accounts they touch.
    """

    name = "thread-lock"
    summary = "one threading.Lock in each instance"
    claim = Claim.PROCESS

    def __init__(self) -> None:
        self._guard = ThreadGuard(threading.Lock())

    def guard(self, order: Order) -> Guard:
        """Return the one guard of this instance."""
        return self._guard
