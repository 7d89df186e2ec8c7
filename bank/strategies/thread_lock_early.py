"""Almost right: the lock covers the code, and not the COMMIT."""

from collections.abc import Callable

from bank.strategies.base import Claim
from bank.strategies.thread_lock import ThreadLock


class ThreadLockEarly(ThreadLock):
    """``thread-lock``, given back when everything is written and before it is committed.

    Claims nothing, not even in one process. People believe in it because it looks right on the page: ``with lock:``
    stands around the read and the write. But the transaction is around *that* (a session from a ``with`` further out, a
    framework that commits after the view), and between the two the next one enters, reads the old balance, because
    no transaction sees what is not committed (manual, section 13.2.1), waits for the row, and writes over it.
    """

    name = "thread-lock-early"
    summary = "almost right: released before COMMIT"
    claim = Claim.NOTHING

    def before_commit(self, leave_guard: Callable[[], None]) -> None:
        """Give the lock back: everything is written."""
        leave_guard()
