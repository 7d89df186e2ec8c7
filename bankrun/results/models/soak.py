"""A soak: many faults, one after another, under one long run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import TypeAdapter

from bank.audit import Audit
from bankrun.results.provenance import Count, Provenance
from bankrun.results.reading import validate


@dataclass(frozen=True, slots=True)
class SoakLoad:
    """How many transfers by which strategy, and how often each fault strikes.

    ``think_ms``, between a transfer's read and its write, has them last for as long as there are faults.
    """

    strategy: str = "row-lock"
    transfers: int = 100_000
    accounts: int = 1_000
    think_ms: float = 20.0
    kills: int = 25
    pauses: int = 25
    postgres_restarts: int = 5
    redis_restarts: int = 5
    seed: int = 1

    @property
    def faults(self) -> int:
        """Return how many there are in all."""
        return self.kills + self.pauses + self.postgres_restarts + self.redis_restarts


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: its kind, after how many decided transfers it struck, and how long it took until it was over.

    ``pending`` is how many transfers were left when it struck. A file of 0.1 does not say.
    """

    kind: str
    at: int
    recovery_s: float
    pending: int | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long it took after all faults of one kind until what was struck worked again, in seconds."""

    median: float
    worst: float


@dataclass(slots=True)
class Soak:
    """What was left after it all. ``recovery_s`` has, for each kind, the time until what was struck worked again.

    That is: until an instance that was killed or paused decides its next transfer, and, after a restart of a server,
    until any of them does; from the moment at which the process that was killed is gone, the one that was paused goes
    on, or the server answers again.
    """

    kind: ClassVar[str] = "soak"

    provenance: Provenance
    plan: SoakLoad
    topology: str
    struck: list[Strike] = field(default_factory=list)
    recovery_s: dict[str, Recovery] = field(default_factory=dict)
    seconds: float = 0.0
    transfers: dict[str, int] = field(default_factory=dict)
    lost_postings: Count = 0
    duplicates: Count = 0
    drift: int = 0
    republished: Count = 0
    audit: Audit = field(default_factory=Audit)

    @property
    def idle_strikes(self) -> int:
        """Return how many faults struck when there was nothing left to do."""
        return sum(struck.pending == 0 for struck in self.struck)

    @property
    def held(self) -> bool:
        """Whether nothing was lost, nothing was applied twice, and nothing has failed or is pending."""
        return self.audit.passed and not self.transfers["failed"] and not self.transfers["pending"]

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""
        plain = {**asdict(self), "audit": self.audit.as_json()}
        del plain["provenance"]
        return {**self.provenance.as_json(self.kind), **plain}


_SOAK = TypeAdapter(Soak)


def parse(plain: dict[str, Any]) -> Soak:
    """Return a soak from the plain values of a file. Raises ValueError, and names the first that is wrong."""
    soak = validate(_SOAK, plain)
    if not {"failed", "pending"} <= set(soak.transfers):
        raise ValueError("transfers: how many have failed and how many are pending is missing")
    return soak
