"""Almost right: the conflict is noticed, and then talked away."""

from __future__ import annotations

from typing import ClassVar

from bank.errors import Conflict
from bank.orders import Posting
from bank.postgres.database import Transaction
from bank.strategies.base import Claim
from bank.strategies.version_check import VersionCheck


class RetryWithoutReread(VersionCheck):
    """``version-check``, but after a conflict only the write is done again, with the version that is there now.

    Claims nothing. People believe in it because there is a version column, a check and a retry, and the log shows that
    conflicts are found. But the sum was computed from the old balance: the new version lets it through, and the other's
    posting is lost. A retry has to begin with the read, and so with the whole transaction (manual, section 13.5: it is
    important to retry the complete transaction, including all logic that decides which values to use).
    """

    name = "retry-without-reread"
    summary = "almost right: retries the write only"
    claim = Claim.NOTHING

    VERSION: ClassVar[str] = "SELECT version FROM accounts WHERE id = %(id)s"

    def write(self, transaction: Transaction, posting: Posting) -> None:
        """Write the new balance; if the version has moved, take the one that is there and write it again."""
        try:
            super().write(transaction, posting)
        except Conflict:
            row = transaction.execute(self.VERSION, {"id": posting.account_id}).fetchone()
            assert row is not None
            super().write(transaction, posting._replace(version=row[0]))
