"""Every strategy in every case: the proof that ``bankrun prove`` runs and saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bank import outside
from bank.audit import Audit
from bank.errors import CannotStart, StrategyFault
from bank.outside import strategy_named
from bank.strategies import Strategy
from bankrun.proof.interleavings import CASES, CHUNKS, INSTANCES, THREE, Case, Prover, applies
from bankrun.proof.scheduler import Execution
from bankrun.proof.verdicts import replayed
from bankrun.results.models.proof import ProofResult
from bankrun.results.provenance import write_command
from bankrun.runs.provenance import begin_with
from bankrun.runs.rehearsal import rehearse
from bankrun.runs.session import Servers

PREEMPTIONS_MAX = 10
ALL_CASES = {**CASES, CHUNKS.name: CHUNKS}

Step = tuple[type[Strategy], str, Case]
Story = tuple[str, Execution, Audit]
"""An interleaving by its id, what happened in it, and what became of the money."""


class ProofProgress(Protocol):
    """A display of which case is run."""

    def begin(self, what: str) -> None:
        """Say what begins."""


@dataclass(frozen=True, slots=True)
class ProofPlan:
    """What to prove. Raises CannotStart for what cannot be proved.

    ``instances`` is "same", "two" or "both"; ``preemptions`` bounds three transfers, ``show`` is how many broken
    interleavings are told.
    """

    strategies: tuple[str, ...]
    instances: str = "both"
    cases: tuple[str, ...] = tuple(ALL_CASES)
    transfers: int = 2
    preemptions: int = 2
    show: int = 0

    def __post_init__(self) -> None:
        if self.transfers not in (2, 3):
            raise CannotStart(
                f"transfers={self.transfers}: the proof is for 2 transfers, or for 3 on one pair of accounts"
            )
        for name in self.cases:
            if name not in ALL_CASES:
                raise CannotStart(f"there is no case {name!r}: there are {', '.join(ALL_CASES)}")
        if self.show < 0 or not 0 <= self.preemptions <= PREEMPTIONS_MAX:
            raise CannotStart(
                f"show={self.show}, preemptions={self.preemptions}: show is 0 or more, preemptions 0 to"
                f" {PREEMPTIONS_MAX}"
            )
        if not self.proved():
            raise CannotStart(
                "nothing to prove: its transfers are routed to one instance, one at a time, and never meet"
            )

    def proved(self) -> list[type[Strategy]]:
        """Return the strategies whose transfers can meet."""
        chosen = [strategy_named(name) for name in self.strategies]
        return [one for one in chosen if not one.routed_to_one]

    def steps(self) -> list[Step]:
        """Return what is run: each strategy in each number of instances in each case that says anything about it."""
        cases = [THREE] if self.transfers > 2 else [ALL_CASES[name] for name in self.cases]
        return [
            (one, where, case)
            for one in self.proved()
            for where in (INSTANCES if self.instances == "both" else (self.instances,))
            for case in cases
            if applies(one, case)
        ]

    def command(self) -> str:
        """Return the command that repeats it."""
        three = self.transfers > 2
        return write_command(
            "prove",
            instances=self.instances,
            transfers=self.transfers,
            strategy=[one.name for one in self.proved()],
            case=None if three else self.cases,
            preemptions=self.preemptions if three else None,
        )


def prove_matrix(servers: Servers, plan: ProofPlan, progress: ProofProgress) -> tuple[ProofResult, list[Story]]:
    """Run every step of a plan on a bank that is held, and tell the first of what is broken."""
    result = ProofResult(begin_with(servers, plan.command()), cases=[])
    with Prover(servers.database, servers.settings, transfers=plan.transfers) as prover:
        preemptions_max = plan.preemptions if plan.transfers > 2 else None
        _prove_all(prover, plan.steps(), progress, preemptions_max, result)
        told = [name for case in result.cases for name in case.broken_ids][: plan.show]
        return result, [(name, *replayed(prover, name)) for name in told]


def _prove_all(
    prover: Prover, steps: Sequence[Step], progress: ProofProgress, preemptions_max: int | None, result: ProofResult
) -> None:
    """Run the steps. A strategy that fails to be one has a fault for a result, and harms no other."""
    rehearsed: set[str] = set()
    for one, where, case in steps:
        progress.begin(f"{one.name} on {where}, {case.name}")
        if one.name in result.faults:
            continue
        try:
            if one.name not in rehearsed and outside.recall(one.name):
                rehearsed.add(one.name)
                rehearse(prover.database, prover.settings, [one.name])
            result.cases.append(prover.prove(one, where, case, preemptions_max=preemptions_max))
        except StrategyFault as fault:
            result.faults[one.name] = fault.what


def choose_cases(names: Sequence[str]) -> Iterator[str]:
    """Yield the cases that are asked for, each once, in their own order; ``all`` are all. Unknown ones come last."""
    wanted = set(ALL_CASES if "all" in names else names)
    yield from (name for name in ALL_CASES if name in wanted)
    yield from (name for name in names if name != "all" and name not in ALL_CASES)
