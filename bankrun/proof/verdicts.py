"""A strategy on trial, in one call: by proof or by stress, with what is to be told if it does not hold."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bank import outside
from bank.errors import CannotStart
from bank.outside import user_strategy
from bank.settings import Settings, read_settings
from bank.strategies import STRATEGIES, Strategy
from bankrun.proof.cases import CASES, INSTANCES, Case, applies
from bankrun.proof.prover import Judged, Prover
from bankrun.proof.replay import draw_steps, parse_id, tell_money
from bankrun.render.story import explain
from bankrun.render.terminal import Terminal
from bankrun.results.models.comparison import Cell
from bankrun.results.models.proof import CaseResult
from bankrun.results.provenance import Verdict
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.boundary import convert_errors
from bankrun.runs.comparison import Plan
from bankrun.runs.progress import Silence
from bankrun.runs.session import Servers, open_lab

STORY_COLUMNS = 100
STRESS = Workload(transfers=1_000)


@dataclass(frozen=True, slots=True)
class Proof:
    """What every order of two transfers came to. ``story`` tells the shortest broken one, in two columns."""

    strategy: str
    cases: tuple[CaseResult, ...]
    story: str

    @property
    def interleavings(self) -> int:
        """Return how many were run and audited."""
        return sum(case.interleavings for case in self.cases)

    @property
    def broken(self) -> int:
        """Return how many of them an invariant did not survive."""
        return sum(case.broken for case in self.cases)

    @property
    def verdict(self) -> Verdict:
        """Return ``safe`` if every case is, ``broken`` if one is, else ``inconclusive``."""
        verdicts = [case.verdict for case in self.cases]
        return "broken" if "broken" in verdicts else "inconclusive" if "inconclusive" in verdicts else "safe"

    @property
    def reason(self) -> str:
        """Return why it is inconclusive."""
        return "; ".join(dict.fromkeys(case.reason for case in self.cases if case.verdict == "inconclusive"))

    @property
    def shortest_broken(self) -> str | None:
        """Return the id of the shortest broken one: what ``bankrun replay`` takes."""
        ids = [case.shortest_broken for case in self.cases if case.shortest_broken is not None]
        return min(ids, key=measure, default=None)


@convert_errors()
def prove(
    strategy: str | type,
    *,
    instances: str = "two",
    cases: Iterable[str] = (),
    settings: Settings | None = None,
    database_url: str | None = None,
) -> Proof:
    """Run every order in which two transfers can meet, on servers that are started for this call alone.

    With ``database_url``, in scratch databases of that server: Postgres 15 or newer, reached directly.

    ``instances`` is "same", "two" or "both"; ``cases`` some of ``bankrun prove --case``, by default all that say
    anything about the strategy. Raises CannotStart for what does not exist or does not fit, StrategyFault for a
    strategy that fails.
    """
    wanted = check_question(strategy, instances, cases)
    with Prover(settings or read_settings(), database_url=database_url) as prover:
        outside.leave_out_too_new([wanted.name], prover.bank.keeper.info.server_version)
        return prove_with(prover, wanted, instances=instances, cases=cases)


def check_question(strategy: str | type, instances: str, cases: Iterable[str]) -> type[Strategy]:
    """Return the strategy that is asked about. Raises CannotStart for what cannot be proved."""
    wanted = user_strategy(strategy)
    choose_cases(cases, wanted)
    if instances not in (*INSTANCES, "both"):
        raise CannotStart(f"instances={instances!r}: there are same, two and both")
    if wanted.routed_to_one:
        raise CannotStart(f"{wanted.name}: its transfers go to one instance, one at a time, and never meet")
    return wanted


def prove_with(prover: Prover, strategy: str | type, *, instances: str = "two", cases: Iterable[str] = ()) -> Proof:
    """Do as ``prove`` does, with a prover that is open."""
    wanted = check_question(strategy, instances, cases)
    if wanted not in STRATEGIES.values():
        prover.rehearse(wanted)
    results: list[CaseResult] = []
    for where in INSTANCES if instances == "both" else (instances,):
        results += prove_cases(prover, wanted, where, choose_cases(cases, wanted))
    proof = Proof(wanted.name, tuple(results), "")
    shortest = proof.shortest_broken
    return Proof(wanted.name, tuple(results), "" if shortest is None else tell_story(prover, shortest))


class ProofProgress(Protocol):
    """A display of which case is run."""

    def begin(self, what: str) -> None:
        """Say what begins."""

    def tell(self, what: str) -> None:
        """Say what was found of a strategy."""


def prove_cases(
    prover: Prover,
    strategy: type[Strategy],
    instances: str,
    cases: Sequence[Case],
    progress: ProofProgress | None = None,
    preemptions_max: int | None = None,
) -> Iterator[CaseResult]:
    """Yield the result of each case. A guard that turns out to be a lease is asked about a holder that pauses, too."""
    leases: dict[str, int] = {}
    todo = list(cases)
    for case in todo:
        if progress is not None:
            progress.begin(f"{strategy.name} on {instances}, {case.name}")
        result = prover.prove(strategy, instances, case, preemptions_max=preemptions_max)
        leases |= result.leases
        yield result
        if leases and case is cases[-1] and CASES["paused-holder"] not in cases:
            todo.append(CASES["paused-holder"])


def choose_cases(names: Iterable[str], strategy: type[Strategy]) -> list[Case]:
    """Return cases by name, or all that say anything about a strategy. Raises CannotStart for one that is none."""
    wanted = list(names)
    for name in wanted:
        if name not in CASES:
            raise CannotStart(f"there is no case {name!r}: there are {', '.join(CASES)}")
    # What a lease does whose holder is paused is asked only of those that say that they survive it.
    return [
        case
        for case in CASES.values()
        if (case.name in wanted if wanted else applies(strategy, case))
        and (wanted or strategy.survives_pause or not case.leases_expire)
    ]


def replay_by_id(prover: Prover, interleaving: str) -> Judged:
    """Run an interleaving by its id."""
    name, where, case, schedule = parse_id(interleaving)
    return prover.replay(user_strategy(name), where, case, schedule)


def tell_story(prover: Prover, interleaving: str) -> str:
    """Tell one interleaving: the transfers side by side, what became of the money, and how to see it again."""
    _, _, case, _ = parse_id(interleaving)
    judged = replay_by_id(prover, interleaving)
    page = Terminal(file=io.StringIO(), width=STORY_COLUMNS, color_system=None)
    page.print(draw_steps(judged.execution, list(case.messages())))
    for line in tell_money(judged.audit, judged.torn):
        page.print(line, markup=False, soft_wrap=True)
    page.print(f"see it again: bankrun replay {interleaving}", markup=False, soft_wrap=True)
    assert isinstance(page.file, io.StringIO)
    return "\n".join(line.rstrip() for line in page.file.getvalue().splitlines())


def stress_on(
    servers: Servers, strategy: str | type, *, topology: str = "2x4", workload: Workload = STRESS, seed: int = 1
) -> Cell:
    """Run one cell under load, with the control before it, on servers that are open."""
    wanted, shape = user_strategy(strategy), Topology.parse(topology)
    plan = Plan((wanted.name,), (shape,), workload, seed)
    with open_lab(servers, instances=shape.instances, threads=shape.threads) as lab:
        cells = lab.compare(plan, Silence())
    return next(cell for cell in cells if cell.shown.strategy == wanted.name)


def why_not_safe(cell: Cell) -> str:
    """Tell why a cell is not safe."""
    run = cell.shown
    told = [f"{run.strategy} on {run.topology} is {cell.verdict}: {cell.reason}"]
    return "\n".join([*told, *(explain(cell) if cell.verdict == "broken" else ())])


def measure(interleaving: str) -> tuple[int, str]:
    """Return what an id is sorted by: how many steps it has, whatever the names before them."""
    return len(interleaving.rpartition("/")[2]), interleaving


def why_not_proved(proof: Proof) -> str:
    """Tell why a proof is not safe: how many are broken, and the shortest in two columns; or what it leaves open."""
    if proof.verdict == "inconclusive":
        return f"{proof.strategy} is not proved safe: {proof.reason}"
    where = {"same": "in one instance", "two": "on two instances"}
    places = dict.fromkeys(where[case.instances] for case in proof.cases if case.broken)
    kinds = dict.fromkeys(kind for case in proof.cases for kind in case.kinds)
    cases = dict.fromkeys(case.case for case in proof.cases if case.broken)
    head = (
        f"{proof.strategy} is not safe {' and '.join(places)}: {proof.broken} of {proof.interleavings} interleavings "
        f"of two transfers are broken ({', '.join(kinds)}; cases {', '.join(cases)}). The shortest:"
    )
    return f"{head}\n\n{proof.story}"
