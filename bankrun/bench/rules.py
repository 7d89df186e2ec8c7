"""What holds for every contestant: how long it is waited for, and that only kept money has a rate."""

from __future__ import annotations

from bank.audit import audit
from bank.errors import BankError
from bank.postgres.database import Database
from bankrun.runs.delivery import Patience

PATIENCE = Patience(seconds_max=600, poll_seconds=0.02)
"""Asked for often, since some rates end with the answer."""


def check_kept(database: Database, name: str) -> None:
    """Raise BankError if an invariant fails: a rate of wrong transfers is no rate."""
    found = audit(database)
    if not found.passed:
        raise BankError(f"{name} did not keep the money: {found.findings[0].examples[0]}")
