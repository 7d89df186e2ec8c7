"""What faults did to strategies while transfers flowed, and what the bank looked like when all had recovered."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter

from bank.audit import Audit
from bank.errors import CannotStart
from bankrun.results.provenance import Amount, Count, Expected, Provenance, Verdict
from bankrun.results.reading import check_distinct, validate
from bankrun.results.workload import Workload


@dataclass(slots=True)
class ChaosCell:
    """One strategy under one fault. Money in minor units.

    ``recovery_s`` is the time from the end of the last fault until no transfer was pending, the rest of the work
    included; None if some still are. ``extra_deliveries`` counts what the instances that live to tell were given more
    than once.
    """

    fault: str
    strategy: str
    topology: str
    verdict: Verdict
    expected: Expected
    reason: str
    applied: Count
    refused: Count
    failed: Count
    pending: Count
    lost_postings: Count
    drift: int
    duplicates: Count
    unexplained: int
    extra_deliveries: Count
    republished: Count
    retries: Count
    recovery_s: Amount | None
    seconds: Amount
    rounds: Count
    audit: Audit = field(default_factory=Audit)

    @property
    def contradicts(self) -> bool:
        """Whether something that is promised was not kept."""
        return self.expected == "safe" and self.verdict == "broken"

    def as_json(self) -> dict[str, Any]:
        """Return the cell as plain values."""
        return {**asdict(self), "audit": self.audit.as_json()}


@dataclass(slots=True)
class Chaos:
    """All cells under one load. ``not_run`` has the faults that this machine cannot have, and why."""

    kind: ClassVar[str] = "chaos"

    provenance: Provenance
    workload: Workload
    rounds: Count
    not_run: dict[str, str]
    cells: Annotated[list[ChaosCell], Field(min_length=1)]

    @property
    def contradictions(self) -> list[ChaosCell]:
        """Return the cells in which a promise was not kept."""
        return [cell for cell in self.cells if cell.contradicts]

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""
        return {
            **self.provenance.as_json(self.kind),
            "workload": asdict(self.workload),
            "rounds": self.rounds,
            "not_run": self.not_run,
            "cells": [cell.as_json() for cell in self.cells],
        }


_CHAOS = TypeAdapter(Chaos)


def parse(plain: dict[str, Any]) -> Chaos:
    """Return what faults did from the plain values of a file. Raises ValueError, and names the first that is wrong."""
    try:
        chaos = validate(_CHAOS, plain)
    except CannotStart as error:  # of a workload that cannot be
        raise ValueError(f"workload: {error}") from error
    check_distinct((cell.fault, cell.strategy, cell.topology) for cell in chaos.cells)
    return chaos
