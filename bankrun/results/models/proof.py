"""A proof: every order in which a few transfers can meet, run, audited and counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter

from bankrun.results.models.schedule import Background, StepTold
from bankrun.results.provenance import Count, Provenance, Verdict
from bankrun.results.reading import check_distinct, validate

SUMMARIES = {
    "same-pair": "both move money from 101 to 102",
    "one-common": "one account in common",
    "opposite": "from 101 to 102, and back",
    "duplicate": "one transfer, delivered twice",
    "drain": "each fits, both together do not",
    "drain-higher": "the same, and the payer has the higher id",
    "one-payee": "the same amount from 101 and from 103, both to 102",
    "apart": "no account in common: only what a process remembers can mix them up",
    "paused-holder": "a lease runs out between read and write",
    "three": "three on the same pair",
    "chunks": "two messages of two, each in the opposite order; together they overdraw 101",
}
"""How the transfers of each case meet."""
HEADINGS = {
    "same-pair": "pair",
    "one-common": "one",
    "opposite": "back",
    "duplicate": "twice",
    "drain-higher": "drain2",
    "one-payee": "payee",
    "paused-holder": "pause",
}
"""Cases whose names are too long for a column's head."""


@dataclass(slots=True)
class CaseResult:
    """All executions of one case, counted. ``shortest_broken`` is an id that ``bankrun replay`` takes.

    ``interleavings`` are the executions that were run to their end, ``left_out`` those that were begun and are like
    one of these. ``serial_broken`` are broken one after the other: that is no race. ``refused_payable`` refuse a
    transfer that is paid in every order one by one; ``leases`` are keys in Redis, with their ms, that make a guard a
    lease without its saying so. ``kinds`` are the findings of the audits, ``outcomes`` what the executions came to,
    each once.
    ``broken_ids`` are all that are broken, the shortest first; they are not saved. ``steps`` are those of the shortest,
    and ``background`` what they are seen against.
    """

    strategy: str
    instances: str
    case: str
    transfers: Count
    claim: str
    expected: str
    interleavings: Count = 0
    broken: Count = 0
    truncated: Count = 0
    deadlocks: Count = 0
    conflicts: Count = 0
    serial_broken: Count = 0
    refused_payable: Count = 0
    left_out: Count = 0
    complete: bool = True
    verdict: Verdict = "safe"
    reason: str = ""
    leases: dict[str, int] = field(default_factory=dict)
    shortest_broken: str | None = None
    kinds: list[str] = field(default_factory=list)
    broken_ids: list[str] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    steps: list[StepTold] = field(default_factory=list)
    background: Background | None = None

    @property
    def contradicts(self) -> bool:
        """Whether a claim was refuted."""
        return self.expected == "safe" and self.broken > 0

    def as_json(self) -> dict[str, Any]:
        """Return the case as plain values."""
        plain = asdict(self)
        del plain["broken_ids"]
        return plain


@dataclass(slots=True)
class ProofResult:
    """All cases of all strategies. ``faults`` has, for a strategy that could not be proved, why not."""

    kind: ClassVar[str] = "proof"

    provenance: Provenance
    cases: Annotated[list[CaseResult], Field(min_length=1)]
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def contradictions(self) -> list[CaseResult]:
        """Return the cases that refute a claim."""
        return [case for case in self.cases if case.contradicts]

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""
        return {
            **self.provenance.as_json(self.kind),
            "cases": [case.as_json() for case in self.cases],
            "faults": self.faults,
        }


_PROOF = TypeAdapter(ProofResult)


def parse(plain: dict[str, Any]) -> ProofResult:
    """Return a proof from the plain values of a file. Raises ValueError, and names the first that is wrong."""
    proof = validate(_PROOF, plain)
    check_distinct((case.strategy, case.instances, case.case) for case in proof.cases)
    return proof
