"""The values that travel: an order to move money, and what an account looked like when it was read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

AMOUNT_MAX = 2**53 - 1
"""The largest amount: JSON readers that keep numbers as doubles still see it exactly (RFC 8259, section 6)."""

ACCOUNT_MAX = 2**31 - 1
"""The largest account id: the column is a Postgres ``integer``."""


@dataclass(frozen=True, slots=True)
class Order:
    """One transfer as it was ordered. ``amount`` is in minor units; ``id`` is its idempotency key."""

    id: UUID
    debit: int
    credit: int
    amount: int

    def __post_init__(self) -> None:
        if self.debit == self.credit:
            raise ValueError(f"transfer {self.id}: debit and credit are the same account, {self.debit}")
        if not 0 < self.amount <= AMOUNT_MAX:
            raise ValueError(f"transfer {self.id}: amount={self.amount} is not between 1 and {AMOUNT_MAX}")
        for account in (self.debit, self.credit):
            if not 0 < account <= ACCOUNT_MAX:
                raise ValueError(f"transfer {self.id}: account {account} is not between 1 and {ACCOUNT_MAX}")

    @property
    def accounts(self) -> tuple[int, int]:
        """Both accounts in id order: the order in which locks are taken, so that no two transfers wait in a circle."""
        return (self.debit, self.credit) if self.debit < self.credit else (self.credit, self.debit)


class Snapshot(NamedTuple):
    """An account as one statement saw it. ``read_at`` is Postgres' clock."""

    id: int
    balance: int
    last_entry: int | None
    version: int
    read_at: datetime

    def post(self, entry_id: int, delta: int) -> Posting:
        """Compute the new balance from this reading: whatever happened to the row since then is not in it."""
        return Posting(
            entry_id, self.id, delta, self.balance, self.balance + delta, self.last_entry, self.read_at, self.version
        )


class Posting(NamedTuple):
    """One entry as it will be written: a change of one account, and the entry it was computed from.

    ``version`` is the account's version in that reading, for a strategy that checks it.
    """

    entry_id: int
    account_id: int
    delta: int
    before: int
    after: int
    previous_entry: int | None
    read_at: datetime
    version: int = 0
