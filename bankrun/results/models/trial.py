"""A trial: any programs, every interleaving of them, and whether each ended like one after the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from bankrun.results.models.schedule import Background, StepTold
from bankrun.results.provenance import Count, Provenance
from bankrun.results.reading import check_distinct, validate

Instances = Literal["two", "same"]
Verdict = Literal["safe", "broken", "error", "needs retry", "inconclusive"]
WORST_FIRST: tuple[Verdict, ...] = ("broken", "error", "inconclusive", "needs retry", "safe")


@dataclass(slots=True)
class TrialCase:
    """The programs in processes of their own (``two``), or as threads of one (``same``).

    ``executions`` are the interleavings that were run; ``broken``, ``error`` and ``needs_retry`` are counted among
    them. ``shortest`` is an id that ``bankrun replay`` takes, of a schedule that shows the verdict, and
    ``story`` and ``steps`` tell that one, ``background`` what they are seen against. ``not_compared`` is what serial
    orders did not agree on by themselves.
    """

    instances: Instances
    verdict: Verdict
    complete: bool
    executions: Count = 0
    broken: Count = 0
    error: Count = 0
    needs_retry: Count = 0
    shortest: str | None = None
    difference: str = ""
    reason: str = ""
    sentence: str = ""
    story: str = ""
    steps: list[StepTold] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    seconds: float = 0.0
    background: Background | None = None


@dataclass(slots=True)
class TrialResult:
    """What was found of some programs. ``files`` has the SHA-256 of each file that was given, by its name."""

    kind: ClassVar[str] = "trial"

    provenance: Provenance
    programs: Annotated[list[str], Field(min_length=2, max_length=26)]
    cases: Annotated[list[TrialCase], Field(min_length=1)]
    setup: str | None = None
    invariant: str | None = None
    judge: Literal["serial", "invariant"] = "serial"
    ignored: list[str] = field(default_factory=list)
    isolation: str | None = None
    preemptions: int | None = None
    env: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> TrialCase:
        """The case with the worst verdict."""
        return min(self.cases, key=lambda case: WORST_FIRST.index(case.verdict))

    @property
    def verdict(self) -> Verdict:
        """The worst verdict."""
        return self.worst.verdict

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""
        plain = asdict(self)
        del plain["provenance"]
        return {**self.provenance.as_json(self.kind), **plain}


_TRIAL = TypeAdapter(TrialResult)


def parse(plain: dict[str, Any]) -> TrialResult:
    """Return a trial from the plain values of a file. Raises ValueError, and names the first that is wrong."""
    trial = validate(_TRIAL, plain)
    check_distinct(case.instances for case in trial.cases)
    return trial
