"""Every strategy in every case: the proof that ``bankrun prove`` runs and saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bank.errors import CannotStart, StrategyFault
from bank.outside import strategy_named
from bank.strategies import STRATEGIES, Strategy
from bankrun.proof.cases import ALL_CASES, INSTANCES, THREE, Case, applies
from bankrun.proof.private_bank import WAITS_MS
from bankrun.proof.prover import Judged, Prover
from bankrun.proof.verdicts import ProofProgress, prove_cases, replay_by_id
from bankrun.results.models.proof import ProofResult
from bankrun.results.provenance import Provenance, write_command

PREEMPTIONS_MAX = 10


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
        if not self.list_strategies():
            raise CannotStart(
                "nothing to prove: its transfers are routed to one instance, one at a time, and never meet"
            )

    def list_strategies(self) -> list[type[Strategy]]:
        """Return the strategies whose transfers can meet."""
        chosen = [strategy_named(name) for name in self.strategies]
        return [one for one in chosen if not one.routed_to_one]

    def list_instances(self) -> tuple[str, ...]:
        """Return in how many instances: in one, in two, or first one and then the other."""
        return INSTANCES if self.instances == "both" else (self.instances,)

    def list_cases(self, strategy: type[Strategy]) -> list[Case]:
        """Return the cases that say anything about a strategy."""
        cases = [THREE] if self.transfers > 2 else [ALL_CASES[name] for name in self.cases]
        return [case for case in cases if applies(strategy, case)]

    def count_steps(self) -> int:
        """Return how many cases there are in all."""
        return sum(map(self.count_cases, self.list_strategies()))

    def count_cases(self, strategy: type[Strategy]) -> int:
        """Return how many cases of a strategy there are at least: what turns out to be a lease has more."""
        return len(self.list_instances()) * len(self.list_cases(strategy))

    def command(self) -> str:
        """Return the command that repeats it."""
        three = self.transfers > 2
        return write_command(
            "prove",
            instances=self.instances,
            transfers=self.transfers,
            strategy=[one.name for one in self.list_strategies()],
            case=None if three else self.cases,
            preemptions=self.preemptions if three else None,
        )


def begin_proof(prover: Prover, plan: ProofPlan) -> ProofResult:
    """Return a result that begins now, without any cases yet."""
    provenance = Provenance.begin(plan.command(), environment=prover.bank.describe(), settings=WAITS_MS)
    return ProofResult(provenance, cases=[])


def prove_matrix(prover: Prover, plan: ProofPlan, progress: ProofProgress, result: ProofResult) -> None:
    """Run every step of a plan; each case that is finished is added to the result.

    A strategy that fails to be one has a fault for a result, and harms no other.
    """
    for strategy in plan.list_strategies():
        before = len(result.cases)
        try:
            _prove_strategy(prover, strategy, plan, progress, result)
        except StrategyFault as fault:
            result.faults[strategy.name] = fault.what
            progress.tell(f"{strategy.name}: no verdict")
        else:
            found = result.cases[before:]
            broken, total = sum(case.broken for case in found), sum(case.interleavings for case in found)
            seconds = sum(case.seconds for case in found)
            progress.tell(f"{strategy.name}: {broken:,} of {total:,} broken, {seconds:.1f} s")


def replay_broken(prover: Prover, plan: ProofPlan, result: ProofResult) -> list[tuple[str, Judged]]:
    """Run the first of what is broken again, as many as the plan shows; return their ids and what came of them."""
    told = [name for case in result.cases for name in case.broken_ids][: plan.show]
    return [(name, replay_by_id(prover, name)) for name in told]


def _prove_strategy(
    prover: Prover, strategy: type[Strategy], plan: ProofPlan, progress: ProofProgress, result: ProofResult
) -> None:
    if strategy not in STRATEGIES.values():
        prover.rehearse(strategy)
    preemptions_max = plan.preemptions if plan.transfers > 2 else None
    for where in plan.list_instances():
        for case in prove_cases(prover, strategy, where, plan.list_cases(strategy), progress, preemptions_max):
            result.cases.append(case)


def choose_cases(names: Sequence[str]) -> Iterator[str]:
    """Yield the cases that are asked for, each once, in their own order; ``all`` are all. Unknown ones come last."""
    wanted = set(ALL_CASES if "all" in names else names)
    yield from (name for name in ALL_CASES if name in wanted)
    yield from (name for name in names if name != "all" and name not in ALL_CASES)
