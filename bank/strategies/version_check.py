"""Optimistic: write only if the row has not been written since the read."""

from bank.errors import Conflict
from bank.orders import Posting
from bank.postgres.database import Transaction
from bank.strategies.base import Claim, Strategy


class VersionCheck(Strategy):
    """Every write counts the row's version up, and demands the version that was read.

    Claims everywhere. Nothing is locked while the transfer thinks. The UPDATE may wait for another one, but then looks
    at its WHERE again (manual, section 13.2.1), finds the version moved and changes nothing: the teller starts over,
    and reads again. All writers must keep to it; one that forgets the version is not noticed.
    """

    name = "version-check"
    summary = "a version column, retried"
    claim = Claim.EVERYWHERE

    WRITE = """
        UPDATE accounts SET balance = %(after)s, last_entry = %(entry_id)s, version = version + 1
        WHERE id = %(account_id)s AND version = %(version)s
        RETURNING id
    """

    def write(self, transaction: Transaction, posting: Posting) -> None:
        """Write the new balance, or raise Conflict if the row is not the one that was read."""
        if transaction.execute(self.WRITE, posting._asdict()).fetchone() is None:
            raise Conflict(f"account {posting.account_id} is no longer at version {posting.version}")
