"""Every order in which a few transfers can meet: enumerated, run, audited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID

from bank import outside
from bank.audit import Audit, audit
from bank.errors import CannotStart
from bank.orders import Order
from bank.postgres.database import Database
from bank.postgres.schema import reset_bank
from bank.settings import Settings
from bank.strategies import Strategy, takes_chunks
from bankrun.proof.scheduler import Choose, Execution, Scheduler, Step
from bankrun.results.models.proof import SUMMARIES, CaseResult

ACCOUNTS = (101, 102, 103)
OPENING = 100
INSTANCES = ("same", "two")


@dataclass(frozen=True, slots=True)
class Case:
    """A few transfers that are about to meet.

    ``legs`` are (debit, credit, amount). The same number twice is the same transfer, delivered twice.
    """

    name: str
    legs: tuple[tuple[int, int, int], ...]
    numbers: tuple[int, ...]
    leases_expire: bool = False
    then: tuple[tuple[int, int, int], ...] = ()
    """What each moves besides, in the same message: for strategies that apply a whole one in one transaction."""

    @property
    def summary(self) -> str:
        """Return how they meet, in words."""
        return SUMMARIES[self.name]

    def messages(self) -> dict[str, tuple[Order, ...]]:
        """Return what is delivered, by the name of who applies it: its order, and a second one where there is one."""
        first = self.orders()
        second = (Order(UUID(int=number), *leg) for number, leg in enumerate(self.then, start=len(self.legs) + 1))
        return {name: (order, *([next(second)] if self.then else [])) for name, order in first.items()}

    def orders(self) -> dict[str, Order]:
        """Return each order by the name of who applies it: A, B, C."""
        named = zip("ABC", self.numbers, self.legs, strict=False)
        return {name: Order(UUID(int=number), *leg) for name, number, leg in named}


A, B, C = ACCOUNTS
CASES = {
    case.name: case
    for case in (
        Case("same-pair", ((A, B, 10), (A, B, 5)), (1, 2)),
        Case("one-common", ((A, B, 10), (B, C, 5)), (1, 2)),
        Case("opposite", ((A, B, 10), (B, A, 5)), (1, 2)),
        Case("duplicate", ((A, B, 10), (A, B, 10)), (1, 1)),
        Case("drain", ((A, B, 60), (A, C, 60)), (1, 2)),
        Case("paused-holder", ((A, B, 10), (A, B, 5)), (1, 2), True),
    )
}
THREE = Case("three", ((A, B, 10), (A, B, 5), (A, B, 3)), (1, 2, 3))
CHUNKS = Case(
    "chunks",
    ((A, B, 60), (B, A, 5)),
    (1, 2),
    then=((B, C, 5), (A, C, 60)),
)


@dataclass(slots=True)
class _Node:
    """A point at which somebody had to be chosen."""

    able: Mapping[str, Step]
    sleep: Mapping[str, Step]
    last: str
    preemptions: int
    tried: list[str] = field(default_factory=list)
    chosen: str = ""


class Explorer:
    """Depth first over all choices, leaving out orders that only swap steps which do not depend on each other.

    The pruning is by sleep sets (Godefroid, 1996): once a step was explored at a node, it sleeps in the branches of its
    siblings until something happens that it depends on. ``preemptions_max`` bounds how often a transfer is interrupted
    although it could go on; sleep sets are not sound under such a bound, so they are off then.
    """

    def __init__(self, *, prune: bool = True, preemptions_max: int | None = None) -> None:
        self._prune = prune and preemptions_max is None
        self._preemptions_max = preemptions_max
        self._stack: list[_Node] = []

    def executions(self, run: Callable[[Choose], Execution]) -> Iterator[Execution]:
        """Run one execution after another until there is none left."""
        while True:
            execution = run(self._choose)
            if execution.complete or execution.truncated:
                yield execution
            while self._stack and not self._next_branch(self._stack[-1]):
                self._stack.pop()
            if not self._stack:
                return

    def _next_branch(self, node: _Node) -> bool:
        node.tried.append(node.chosen)
        return self._pick(node) is not None

    def _choose(self, able: Mapping[str, Step], depth: int) -> str | None:
        if depth < len(self._stack):
            node = self._stack[depth]
            if node.chosen in able:
                node.able = able
                return node.chosen
            # It could not go after all: its guard was taken. That is not another execution.
            node.able = able
            del self._stack[depth + 1 :]
            return self._pick(node)
        node = self._child(able)
        self._stack.append(node)
        return self._pick(node)

    def _child(self, able: Mapping[str, Step]) -> _Node:
        if not self._stack:
            return _Node(able, {}, "", 0)
        parent = self._stack[-1]
        step = parent.able[parent.chosen]
        slept = {**parent.sleep, **{name: parent.able[name] for name in parent.tried if name in parent.able}}
        sleep = {name: other for name, other in slept.items() if name != parent.chosen and not other.depends_on(step)}
        return _Node(able, sleep if self._prune else {}, parent.chosen, parent.preemptions + self._preempts(parent))

    def _preempts(self, node: _Node, name: str | None = None) -> bool:
        return node.last in node.able and (name or node.chosen) != node.last

    def _pick(self, node: _Node) -> str | None:
        options = [name for name in sorted(node.able) if name not in node.sleep and name not in node.tried]
        if self._preemptions_max is not None:
            free = self._preemptions_max - node.preemptions
            options = [name for name in options if not self._preempts(node, name) or free > 0]
        if not options:
            return None
        node.chosen = node.last if node.last in options else options[0]
        return node.chosen


def canonical(steps: Sequence[tuple[str, Step]]) -> str:
    """Return the same text for all orders of these steps that differ only in steps that commute."""
    left, order = list(steps), []
    while left:
        free = [
            position
            for position, (name, step) in enumerate(left)
            if not any(name == before or step.depends_on(other) for before, other in left[:position])
        ]
        chosen = min(free, key=lambda position: left[position][0])
        order.append(left.pop(chosen)[0])
    return "".join(order)


class Prover:
    """Runs cases on one bank. Owns its scheduler; use as a context manager."""

    def __init__(self, database: Database, settings: Settings, *, transfers: int = 2) -> None:
        self.database = database
        self.settings = settings
        self._names = "ABC"[:transfers]
        self._installed: set[str] = set()
        self._scheduler = Scheduler(database.url, settings, self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._scheduler.__exit__(*error)

    def prove(
        self,
        strategy: type[Strategy],
        instances: str,
        case: Case,
        *,
        prune: bool = True,
        preemptions_max: int | None = None,
    ) -> CaseResult:
        """Run every execution of a case and audit each.

        Raises StrategyFault, naming the fault and its place, for a strategy that does not keep to its contract; the
        prover can then go on with others.
        """
        started = time.perf_counter()
        covered = strategy.claim.covers(instances=1 + (instances == "two"), threads=2, hosts=1)
        safe = covered and (not case.leases_expire or strategy.survives_pause is True)
        result = CaseResult(
            strategy.name, instances, case.name, len(case.legs), strategy.claim.value, "safe" if safe else "unsafe"
        )
        seen: set[str] = set()
        outcomes: set[str] = set()
        kinds: dict[str, None] = {}
        explorer = Explorer(prune=prune, preemptions_max=preemptions_max)
        for execution in explorer.executions(lambda choose: self.run(strategy, instances, case, choose)):
            key = canonical(execution.steps)
            if key in seen:
                continue
            seen.add(key)
            result.interleavings += 1
            result.truncated += execution.truncated
            result.deadlocks += execution.deadlocks
            result.conflicts += execution.conflicts
            found = audit(self.database)
            outcomes.add(outcome(found))
            if not found.passed:
                result.broken += 1
                kinds |= dict.fromkeys(finding.kind for finding in found.findings)
                result.broken_ids.append(interleaving_id(strategy.name, instances, case, execution.choices))
        result.broken_ids.sort(key=length)
        result.shortest_broken = next(iter(result.broken_ids), None)
        result.kinds, result.outcomes = list(kinds), sorted(outcomes)
        result.seconds = round(time.perf_counter() - started, 3)
        return result

    def run(self, strategy: type[Strategy], instances: str, case: Case, choose: Choose) -> Execution:
        """Run one execution on a bank that looks the same each time."""
        messages = case.messages()
        if strategy.name not in self._installed:
            outside.install(strategy, self.database)
            self._installed.add(strategy.name)
        self._reset(messages, strategy.name)
        try:
            with ExitStack() as opened:
                strategies: dict[str, Strategy] = {}
                for number, name in enumerate(messages):
                    first = next(iter(strategies.values()), None)
                    if instances == "same" and first is not None:
                        strategies[name] = first
                        continue
                    made = outside.open_strategy(outside.as_imported_by(strategy, number), self.settings)
                    opened.callback(outside.close_strategy, made)
                    strategies[name] = made
                return self._scheduler.run(messages, strategies, ACCOUNTS, choose, leases_expire=case.leases_expire)
        finally:
            if self._scheduler.is_spent:
                self._scheduler.__exit__()
                self._scheduler = Scheduler(self.database.url, self.settings, self._names)

    def replay(self, strategy: type[Strategy], instances: str, case: Case, choices: str) -> tuple[Execution, Audit]:
        """Run exactly one interleaving again. Raises CannotStart if these choices are not possible."""

        def choose(able: Mapping[str, Step], depth: int) -> str | None:
            wanted = choices[depth] if depth < len(choices) else min(able)
            if wanted not in able:
                raise CannotStart(f"step {depth + 1} of {choices}: {wanted} cannot go; {', '.join(sorted(able))} can")
            return wanted

        execution = self.run(strategy, instances, case, choose)
        return execution, audit(self.database)

    def _reset(self, messages: Mapping[str, Sequence[Order]], strategy: str) -> None:
        with self.database.transaction() as transaction:
            reset_bank(transaction.raw, ACCOUNTS, OPENING)
            for order in {order.id: order for message in messages.values() for order in message}.values():
                transaction.execute(
                    "INSERT INTO transfers (id, debit, credit, amount, strategy)"
                    " VALUES (%(id)s, %(debit)s, %(credit)s, %(amount)s, %(strategy)s)",
                    {
                        "id": order.id,
                        "debit": order.debit,
                        "credit": order.credit,
                        "amount": order.amount,
                        "strategy": strategy,
                    },
                )


def outcome(found: Audit) -> str:
    """Return what an execution came to, in a form that can be compared."""
    statuses = ",".join(f"{count} {status}" for status, count in found.transfers.items() if count)
    return f"{statuses}; drift {found.drift:+d}; {found.lost_postings} lost"


def interleaving_id(strategy: str, instances: str, case: Case, choices: str) -> str:
    """Return the id by which an interleaving can be run again: it says all there is to know."""
    return f"{strategy}/{instances}/{case.name}/{choices}"


def applies(strategy: type[Strategy], case: Case) -> bool:
    """Whether a case says anything about a strategy: only a lease can run out, and only some take two at once."""
    if case.then and not takes_chunks(strategy):
        return False
    return strategy.survives_pause is not None or not case.leases_expire


def length(interleaving: str) -> tuple[int, str]:
    """Return what an id is sorted by: how many steps it has, whatever the names before them."""
    return len(interleaving.rpartition("/")[2]), interleaving
