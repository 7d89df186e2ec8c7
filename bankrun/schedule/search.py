"""Every order in which the steps of a few participants can follow each other, run one by one.

Sleep sets (Godefroid, 1996) leave out orders that only swap steps which do not depend on each other: at a node, a step
that was taken there before sleeps in the branches that were begun after it, until something happens that it depends on.
Which siblings came before is fixed when a branch is begun, so the branches may be run in any order: those with the
fewest preemptions come first, since most faults need one or two (Musuvathi and Qadeer, 2007).
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg

from bankrun.schedule.chatter import find_chatter
from bankrun.schedule.detours import DETOURS_MAX, STEPS_ALONE_MAX, Detours
from bankrun.schedule.errors import Diverged
from bankrun.schedule.observation.footprints import Footprint, depends
from bankrun.schedule.stepping import CONFLICTS_MAX, Stepper
from bankrun.schedule.trace import CLOCK, Execution, Step

Depends = Callable[[Footprint, Footprint], bool]
EXECUTIONS_MAX = 5_000
SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: after this many executions, those that were cut short among them, or seconds."""

    executions: int = EXECUTIONS_MAX
    seconds: float = SECONDS_MAX


@dataclass(slots=True)
class Exploration:
    """What an exploration came to."""

    executions: int = 0
    cut: int = 0
    """How many more were begun and left out, since others show the same."""
    complete: bool = False
    reason: str = ""
    """Why it is not complete, or up to what it is."""
    seconds: float = 0.0
    steps: int = 0
    mismatches: list[str] = field(default_factory=list)
    """Steps that were not the same when a schedule was run again."""
    truncated: set[str] = field(default_factory=set)
    beyond: set[str] = field(default_factory=set)
    stopped: bool = False
    catalog_changes: int = 0


class Runs(Protocol):
    """What the search needs of an engine."""

    names: Sequence[str]
    start_order: Sequence[str]

    def execute(
        self, choose: Callable[[Sequence[str], Sequence[Step]], str | None], order: Sequence[str] | None = None
    ) -> Execution:
        """Run one execution."""


class SteppedRuns(Runs, Protocol):
    """What learning, detours and replays need of an engine besides."""

    stepper: Stepper
    leases_expire: bool
    steps_max: int

    @property
    def admin(self) -> psycopg.Connection[Any]:
        """A connection to the database that is not scheduled."""


@dataclass(slots=True)
class _Node:
    """A point at which somebody had to be chosen."""

    able: tuple[str, ...]
    sleep: Mapping[str, Footprint]
    preemptions: int
    last: str
    parent: _Node | None
    taken: dict[str, Footprint] = field(default_factory=dict)
    """Steps that were taken here, in the order in which their branches were begun."""
    identities: dict[str, tuple[object, ...]] = field(default_factory=dict)
    opening: set[str] = field(default_factory=set)
    """Whose steps here may have freed a guard."""
    begun: set[str] = field(default_factory=set)
    void: set[str] = field(default_factory=set)
    slept: dict[str, dict[str, Footprint]] = field(default_factory=dict)
    children: dict[str, _Node] = field(default_factory=dict)

    def cost(self, name: str) -> int:
        """Return how many preemptions there are if this participant goes on."""
        return self.preemptions + (self.last in self.able and name != self.last)

    def candidates(self) -> list[str]:
        """Return who may be chosen here: who goes on first, then the others."""
        names = [name for name in self.able if name not in self.sleep]
        return sorted(names, key=lambda name: (name != self.last, self.able.index(name)))


def _shut_out(node: _Node, name: str) -> None:
    """Note that a guard is taken for this participant from here on, until a guard is left or a lease runs out."""
    node.void.add(name)
    for other, child in node.children.items():
        if other != name and other not in node.opening:
            _shut_out(child, name)


class Search:
    """Chooses, execution after execution, until every order was shown or the budget is spent."""

    def __init__(
        self, *, pruned: bool = True, preemptions_max: int | None = None, depends_on: Depends = depends
    ) -> None:
        self._pruned = pruned and preemptions_max is None  # sleep sets are not sound under such a bound
        self._preemptions_max = preemptions_max
        self._depends = depends_on
        self._branches: list[tuple[int, int, _Node, str]] = []
        self._numbers = itertools.count()
        self._root: _Node | None = None
        self._plan: list[str] = []
        self._path: list[tuple[_Node, str]] = []
        self.skipped = False
        """Whether branches were left out for having more preemptions than asked for."""
        self.mismatches: list[str] = []

    def plans(self) -> Iterator[None]:
        """Return once for every execution that is to be run with ``choose``."""
        yield None
        while self._branches:
            _, _, node, name = heapq.heappop(self._branches)
            if name in node.begun or name in node.void:
                continue
            self._plan = [*self._way_to(node), name]
            yield None

    @property
    def has_more(self) -> bool:
        """Whether there are branches that were not run."""
        return any(name not in node.begun and name not in node.void for _, _, node, name in self._branches)

    def _way_to(self, node: _Node) -> list[str]:
        way: list[str] = []
        while node.parent is not None:
            parent = node.parent
            way.append(next(name for name, child in parent.children.items() if child is node))
            node = parent
        return way[::-1]

    def begin(self) -> None:
        """Begin an execution."""
        self._path = []

    def choose(self, able: Sequence[str], steps: Sequence[Step]) -> str | None:
        """Return whom to let go; None if the rest was shown already."""
        depth = len(steps)
        if len(self._path) > depth:
            return self._choose_again(able, depth)
        node = self._node_at(able, steps)
        if depth < len(self._plan):
            name = self._plan[depth]
            if name not in able:
                raise Diverged(f"step {depth + 1} of {''.join(self._plan)}: {name} cannot go, {', '.join(able)} can")
            return self._begin(node, name)
        candidates = [name for name in node.candidates() if name not in node.begun and name not in node.void]
        return self._begin(node, candidates[0]) if candidates else None

    def _choose_again(self, able: Sequence[str], depth: int) -> str | None:
        """The one that was chosen stood before a guard that is taken: nothing happened, so choose another."""
        node, name = self._path.pop()
        _shut_out(node, name)
        del self._plan[depth:]
        free = [other for other in node.candidates() if other in able and other not in node.void]
        fresh = [other for other in free if other not in node.begun]
        return self._begin(node, fresh[0]) if fresh else None

    def _begin(self, node: _Node, name: str) -> str:
        if name not in node.begun:
            node.begun.add(name)
            node.slept[name] = {**node.sleep, **node.taken} if self._pruned else {}
            for other in node.candidates():
                if other not in node.begun and other not in node.void:
                    self._push(node, other)
        self._path.append((node, name))
        return name

    def _push(self, node: _Node, name: str) -> None:
        cost = node.cost(name)
        if self._preemptions_max is not None and cost > self._preemptions_max:
            self.skipped = True
            return
        heapq.heappush(self._branches, (cost, next(self._numbers), node, name))

    def _node_at(self, able: Sequence[str], steps: Sequence[Step]) -> _Node:
        if not self._path:
            if self._root is None:
                self._root = _Node(tuple(able), {}, 0, "", None)
            return self._root
        parent, name = self._path[-1]
        self._note(parent, name, steps[-1])
        child = parent.children.get(name)
        if child is None:
            footprint = steps[-1].footprint
            sleep = {
                other: slept
                for other, slept in parent.slept[name].items()
                if other != name and not self._depends(slept, footprint)
            }
            child = _Node(tuple(able), sleep, parent.cost(name), name, parent)
            parent.children[name] = child
        return child

    def _note(self, node: _Node, name: str, step: Step) -> None:
        """Remember what a step was; whether it is the same each time is part of the result."""
        node.taken.setdefault(name, step.footprint)
        if step.opens_guards:
            node.opening.add(name)
        before = node.identities.setdefault(name, step.identity)
        if before != step.identity:
            self.mismatches.append(f"{before} became {step.identity}")

    def end(self, execution: Execution) -> None:
        """Take note of how an execution ended."""
        if self._path and len(execution.steps) == len(self._path):
            node, name = self._path[-1]
            self._note(node, name, execution.steps[-1])


def explore(
    engine: SteppedRuns,
    judge: Callable[[Execution], Any],
    *,
    budget: Budget | None = None,
    pruned: bool = True,
    preemptions_max: int | None = None,
    depends_on: Depends = depends,
    remembers: Callable[[], bool] = lambda: False,
    starts: Callable[[], bool] = lambda: False,
    insists: Callable[[], bool] = lambda: False,
) -> Exploration:
    """Run every interleaving within the budget, and give each execution to ``judge`` before its traces are removed.

    Executions that were cut short are not judged. If ``judge`` returns True, the exploration stops.

    What threads of one process remember in common, in a variable of a module, is in no footprint. If ``remembers`` says
    so when the first order is done, every interleaving with at most one preemption is run besides, whatever its steps
    depend on: somebody is interrupted between any two of its steps, and all of another one happens there.

    Who is started first gets what all want, such as a lock on a file, before its first step, and has the earlier time
    of day. So all of it is run again in every other order of starting if somebody waits for something that is not
    Postgres, or if ``starts`` says so when the first order is done.

    Who goes on at once after a conflict, again and again, or waits until its time runs out, is looked at in detours of
    their own if ``insists`` says so when the first order is done.
    """
    budget = budget or Budget()
    result = Exploration(complete=True)
    deadline = time.monotonic() + budget.seconds
    started = time.monotonic()
    orders = [tuple(engine.names)]
    detours = Detours()
    may_be_again = pruned and preemptions_max is None
    try:
        for order in orders:
            engine.start_order = order
            search = Search(pruned=pruned, preemptions_max=preemptions_max, depends_on=depends_on)
            waits_outside = _search(engine, search, judge, budget, deadline, result, detours)
            if order == orders[0] and result.complete and not result.stopped and may_be_again and remembers():
                once = Search(preemptions_max=1, depends_on=depends_on)
                _search(engine, once, judge, budget, deadline, result, detours)
                search.mismatches += once.mismatches
            if order == orders[0] and not result.stopped and insists():
                _take(engine, detours, judge, budget, deadline, result)
            if order == orders[0] and (waits_outside or starts()):
                orders += list(itertools.permutations(engine.names))[1:]
            if result.complete and search.skipped:
                result.complete, result.reason = False, f"only up to {preemptions_max} preemptions"
            result.mismatches += search.mismatches
            if result.stopped or not (result.complete or search.skipped):
                break
    except Diverged as error:  # it sends on two connections at once, or draws lots
        result.complete, result.reason = False, f"the same choices did not lead to the same point: {error}"
    finally:
        engine.start_order = orders[0]
    _conclude(result)
    result.seconds = time.monotonic() - started
    return result


def _conclude(result: Exploration) -> None:
    """Say why it is not complete after all, or up to what it is."""
    if result.mismatches:
        result.complete, result.reason = False, "a step was not the same when it was run again"
    elif result.complete and result.truncated:
        names = " and ".join(sorted(result.truncated))
        result.complete, result.reason = False, f"{names} started over more often than is explored"
    elif result.complete and result.beyond:
        result.reason = f"complete up to {CONFLICTS_MAX} conflicts of each; who had more was followed alone from there"


def _search(
    engine: Runs,
    search: Search,
    judge: Callable[[Execution], Any],
    budget: Budget,
    deadline: float,
    result: Exploration,
    detours: Detours,
) -> bool:
    """Run every interleaving from one start; return whether anybody waited for something that is not Postgres."""
    waits_outside = False
    for _ in search.plans():
        if result.executions + result.cut >= budget.executions:
            result.complete, result.reason = False, f"{budget.executions:,} executions, and more to go"
            break
        if time.monotonic() > deadline:
            result.complete, result.reason = False, f"{budget.seconds:g} s, and more to go"
            break
        search.begin()
        execution = engine.execute(search.choose)
        search.end(execution)
        waits_outside = waits_outside or execution.waits_outside
        result.steps += len(execution.steps)
        result.catalog_changes += execution.catalog_changed
        if execution.cut:
            result.cut += 1
            continue
        result.executions += 1
        result.truncated |= set(execution.truncated)
        result.beyond |= set(execution.beyond)
        detours.note(execution)
        if judge(execution) is True:
            result.stopped = True
            if search.has_more:
                result.complete, result.reason = False, "stopped by its judge"
            break
    return waits_outside


def _take(
    engine: SteppedRuns,
    detours: Detours,
    judge: Callable[[Execution], Any],
    budget: Budget,
    deadline: float,
    result: Exploration,
) -> None:
    """Run every detour. Who comes to no end is followed once; who waits without a limit has no time that runs out."""
    for_ever: set[tuple[object, ...]] = set()
    taken, ahead = 0, list(detours)[::-1]
    while ahead:
        detour = ahead.pop()
        if detour.place in for_ever:
            continue
        is_spent = result.executions + result.cut >= budget.executions or time.monotonic() > deadline
        if taken == DETOURS_MAX or is_spent:
            if result.complete:
                result.complete, result.reason = False, "not all was run that retries and timeouts may lead to"
            return
        with _goes_on(engine, detour.runs_out):
            execution = engine.execute(detour.choose)
        result.steps += len(execution.steps)
        taken += not execution.cut
        result.executions += not execution.cut
        if execution.cut or execution.stuck_kind == "cap":
            for_ever.add(detour.place)
            continue
        judge(execution)
        following = detour.find_next(execution)
        if following is not None:
            ahead.append(following)


@contextmanager
def _goes_on(engine: SteppedRuns, runs_out: Callable[[int], bool] = lambda number: False) -> Iterator[None]:
    """In the block, let those go on who would rest, and time run out in the waits after steps with these numbers."""
    stepper, steps_max, before = engine.stepper, engine.steps_max, engine.stepper.timeouts.runs_out
    stepper.timeouts.runs_out, stepper.insists, engine.steps_max = runs_out, True, max(steps_max, STEPS_ALONE_MAX)
    try:
        yield
    finally:
        stepper.timeouts.runs_out, stepper.insists, engine.steps_max = before, False, steps_max


def follow(schedule: str) -> Callable[[Sequence[str], Sequence[Step]], str | None]:
    """Return a ``choose`` that follows a schedule, and then lets the first go on who can.

    It raises Diverged if somebody should take a step who cannot.
    """

    def choose(able: Sequence[str], steps: Sequence[Step]) -> str | None:
        if len(steps) >= len(schedule):
            return able[0]
        name = schedule[len(steps)]
        if name not in able:
            raise Diverged(f"step {len(steps) + 1} of {schedule}: {name} cannot go; {', '.join(able)} can")
        return name

    return choose


def replay(engine: SteppedRuns, schedule: str, started: str = "") -> Execution:
    """Run one schedule, ``AAABAB…``, again; ``started`` is the order in which they were started, if not their own."""
    before = engine.start_order
    engine.start_order = tuple(started) or before
    try:
        if CLOCK in schedule and not engine.leases_expire:
            with _goes_on(engine, lambda number: schedule[number : number + 1] == CLOCK):
                return engine.execute(follow(schedule))
        try:
            return engine.execute(follow(schedule))
        except Diverged:  # somebody who rests may have gone on
            with _goes_on(engine):
                return engine.execute(follow(schedule))
    finally:
        engine.start_order = before


def run_serially(engine: SteppedRuns) -> dict[str, Execution]:
    """Run every serial order, and learn which statements are chatter: they touched nothing in any of them.

    Drivers ask for versions and types when they connect. What touched nothing could be anything (a function of C, a
    sleep), so it depends on everything, unless it is learned here that it never touches a thing. Returns the serial
    executions by their order, ``AB``, with chatter left out of their steps.
    """
    engine.stepper.chatter = frozenset()
    serial = _run_orders(engine)
    engine.stepper.chatter = find_chatter(serial.values(), engine.admin)
    return _run_orders(engine) if engine.stepper.chatter else serial


def _run_orders(engine: SteppedRuns) -> dict[str, Execution]:
    orders = itertools.permutations(engine.names)
    return {"".join(order): engine.execute(follow(""), order) for order in orders}
