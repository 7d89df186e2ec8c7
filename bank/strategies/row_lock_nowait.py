"""Row locks for a transfer that would rather ask again than queue."""

from bank.strategies.base import Claim
from bank.strategies.row_lock import RowLock


class RowLockNowait(RowLock):
    """``SELECT … FOR UPDATE NOWAIT``: a row that is locked is an error at once, and the teller starts over.

    Claims everywhere, as ``row-lock`` does. No transfer waits while it holds a lock, so there is no deadlock, whatever
    the order (manual, SELECT, "The Locking Clause": 55P03 instead of a wait). But no transfer stands in a queue either:
    under contention most attempts are thrown away, each with its claim and its round trips, and an unlucky transfer may
    be overtaken any number of times.
    """

    name = "row-lock-nowait"
    summary = "FOR UPDATE NOWAIT, retried"
    claim = Claim.EVERYWHERE

    READ = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts
        WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR UPDATE NOWAIT
    """
