"""The row lock that is just strong enough."""

from bank.strategies.base import Claim
from bank.strategies.row_lock import RowLock


class NoKeyLock(RowLock):
    """``SELECT … FOR NO KEY UPDATE`` on both accounts, in id order.

    Claims everywhere, as ``row-lock`` does. It is the lock that an UPDATE of a balance takes anyway, and it conflicts
    with itself, which is all that is needed. ``FOR UPDATE`` also keeps out ``FOR KEY SHARE``, the lock that a foreign
    key check takes on the row it points to (manual, section 13.3.2): where other tables reference the accounts, their
    inserts wait for a transfer under ``row-lock``, and not under this one. This bank has no foreign keys, so here the
    two are the same.
    """

    name = "no-key-lock"
    summary = "FOR NO KEY UPDATE, in id order"
    claim = Claim.EVERYWHERE

    READ = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts
        WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR NO KEY UPDATE
    """
