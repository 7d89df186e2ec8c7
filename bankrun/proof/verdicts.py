"""A strategy on trial, in one call: by proof or by stress, with what is to be told if it does not hold."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console

from bank.audit import Audit
from bank.errors import CannotStart
from bank.outside import user_strategy
from bank.settings import Settings, read_settings
from bank.strategies import Strategy
from bankrun.proof.interleavings import CASES, INSTANCES, Case, Prover, applies, length
from bankrun.proof.replay import money, parse_id, steps_table
from bankrun.proof.scheduler import Execution
from bankrun.render.story import explain
from bankrun.results.models.comparison import Cell
from bankrun.results.models.proof import CaseResult
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Plan
from bankrun.runs.progress import Silence
from bankrun.runs.rehearsal import rehearse
from bankrun.runs.session import Servers, hold_bank, open_lab, open_servers

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
    def shortest_broken(self) -> str | None:
        """Return the id of the shortest broken one: what ``bankrun replay`` takes."""
        ids = [case.shortest_broken for case in self.cases if case.shortest_broken is not None]
        return min(ids, key=length, default=None)


def prove(
    strategy: str | type, *, instances: str = "two", cases: Iterable[str] = (), settings: Settings | None = None
) -> Proof:
    """Run every order in which two transfers can meet, on servers of the environment's, or on our own.

    ``instances`` is "same", "two" or "both"; ``cases`` some of CASES, by default all that say anything about the
    strategy. Raises CannotStart for what does not exist or does not fit, StrategyFault for a strategy that fails.
    """
    user_strategy(strategy)
    with open_servers(settings or read_settings()) as servers:
        return prove_on(servers, strategy, instances=instances, cases=cases)


def prove_on(servers: Servers, strategy: str | type, *, instances: str = "two", cases: Iterable[str] = ()) -> Proof:
    """Do as ``prove`` does, on servers that are open."""
    wanted = user_strategy(strategy)
    chosen = chosen_cases(cases, wanted)
    if instances not in (*INSTANCES, "both"):
        raise CannotStart(f"instances={instances!r}: there are same, two and both")
    if wanted.routed_to_one:
        raise CannotStart(f"{wanted.name}: its transfers go to one instance, one at a time, and never meet")
    with hold_bank(servers), Prover(servers.database, servers.settings) as prover:
        rehearse(servers.database, servers.settings, [wanted.name])
        results = [
            prover.prove(wanted, where, case)
            for where in (INSTANCES if instances == "both" else (instances,))
            for case in chosen
        ]
        proof = Proof(wanted.name, tuple(results), "")
        shortest = proof.shortest_broken
        story = "" if shortest is None else story_of(shortest, *replayed(prover, shortest))
    return Proof(wanted.name, tuple(results), story)


def chosen_cases(names: Iterable[str], strategy: type[Strategy]) -> list[Case]:
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


def replayed(prover: Prover, interleaving: str) -> tuple[Execution, Audit]:
    """Run an interleaving by its id."""
    name, where, case, choices = parse_id(interleaving)
    return prover.replay(user_strategy(name), where, case, choices)


def story_of(interleaving: str, execution: Execution, found: Audit) -> str:
    """Tell one interleaving: the transfers side by side, what became of the money, and how to see it again."""
    _, _, case, _ = parse_id(interleaving)
    page = Console(file=io.StringIO(), width=STORY_COLUMNS, color_system=None, highlight=False)
    page.print(steps_table(execution, list(case.orders())))
    for line in money(found):
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


def why_broken(proof: Proof) -> str:
    """Tell how a proof failed: how many, and the shortest in two columns."""
    where = {"same": "in one instance", "two": "on two instances"}
    places = dict.fromkeys(where[case.instances] for case in proof.cases if case.broken)
    kinds = dict.fromkeys(kind for case in proof.cases for kind in case.kinds)
    cases = dict.fromkeys(case.case for case in proof.cases if case.broken)
    head = (
        f"{proof.strategy} is not safe {' and '.join(places)}: {proof.broken} of {proof.interleavings} interleavings "
        f"of two transfers are broken ({', '.join(kinds)}; cases {', '.join(cases)}). The shortest:"
    )
    return f"{head}\n\n{proof.story}"
