"""What became of one delivery, and what it cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from bank.errors import Conflict, NotAcquired, Rejected, Transient, Unavailable
from bank.postgres.models import PENDING


@dataclass(slots=True)
class Cost:
    """What one delivery cost, over all attempts.

    ``seconds`` is the whole time, over all attempts. Parts of it: ``guard_seconds`` in the guard's queue,
    ``move_seconds`` in the strategy's own statements, ``commit_seconds`` in the COMMIT that succeeded,
    ``backoff_seconds`` between attempts; the rest is the claim, the think time, and Python. What a statement waits for
    a lock cannot be told apart from its round trip.
    """

    attempts: int = 0
    seconds: float = 0.0
    guard_seconds: float = 0.0
    move_seconds: float = 0.0
    commit_seconds: float = 0.0
    backoff_seconds: float = 0.0
    conflicts: Counter[str] = field(default_factory=Counter)

    @property
    def lock_wait_seconds(self) -> float:
        """Return the time in the guard's queue and in the strategy's own statements."""
        return self.guard_seconds + self.move_seconds

    def count(self, error: Transient) -> None:
        """Count an attempt that failed, by its kind."""
        if isinstance(error, Conflict):
            kind = {"40001": "serialization_failures", "40P01": "deadlocks"}.get(error.sqlstate or "", "conflicts")
        elif isinstance(error, Unavailable):
            kind = "unavailable"
        else:
            kind = "not_acquired" if isinstance(error, NotAcquired) else "connection_losses"
        self.conflicts[kind] += 1


@dataclass(slots=True)
class Receipt(Cost):
    """What became of one delivery of one transfer, and what it cost.

    ``outcome`` is the transfer's status; ``first`` is whether this delivery decided it, rather than found it decided.
    """

    outcome: str = PENDING
    first: bool = False


class Fate(NamedTuple):
    """What became of one order of a chunk, as in a Receipt."""

    outcome: str
    first: bool


@dataclass(slots=True)
class ChunkReceipt(Cost):
    """What became of one delivery of a chunk, order by order, and what all of it cost together."""

    fates: list[Fate | Rejected] = field(default_factory=list)
