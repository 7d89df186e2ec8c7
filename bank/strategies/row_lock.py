"""The talk's answer: lock the rows where the truth is, in Postgres."""

from bank.orders import Posting
from bank.postgres.database import Transaction
from bank.strategies.base import Attempt, Claim, Strategy


class RowLock(Strategy):
    """``SELECT … FOR UPDATE`` on both accounts, in id order, before anything is computed.

    Claims everywhere. The second transfer waits in the SELECT and then reads what the first one committed (manual,
    section 13.2.1: READ COMMITTED reads a locked row again). The order keeps two transfers in opposite directions from
    waiting for each other (section 13.3.4); the rows are locked as they leave the sort.
    """

    name = "row-lock"
    summary = "FOR UPDATE, both rows in id order"
    claim = Claim.EVERYWHERE

    READ = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts
        WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR UPDATE
    """

    def post(self, transaction: Transaction, postings: tuple[Posting, Posting], attempt: Attempt) -> None:
        """Write everything at once: no other transaction can get at these rows any more."""
        transaction.post_locked(postings, attempt.order.id)
