"""Cells, runs, results: the same transfers through several strategies on several topologies."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import NAMESPACE_OID, uuid5

from celery import Celery

from bank import outside
from bank.audit import audit
from bank.errors import BankError, CannotStart
from bank.outside import strategy_named
from bank.postgres import versions
from bank.postgres.catalog import describe_surroundings, is_as_made
from bank.postgres.database import Database
from bank.postgres.schema import open_bank, renew_schema
from bank.settings import Settings
from bank.strategies import CONTROL, STRATEGIES, check_settings
from bankrun.results.models.comparison import Cell, Run
from bankrun.results.provenance import check_seed
from bankrun.results.timeline import read_history, read_scene, read_seconds
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.delivery import Delivery, Patience, Stalled, count_pending, wait, withdraw_pending
from bankrun.runs.far import Network
from bankrun.runs.progress import Silence
from bankrun.runs.rehearsal import rehearse
from bankrun.runs.verdict import judge
from workers.fleet import Fleet, InstanceInfo
from workers.process.meter import Readings
from workers.submission import Submission

REPEAT_MAX = 1_000
WARMUP = 100
CELL_SECONDS_MAX = 120.0
CELL_SECONDS_LIMIT = 86_400
JOIN_SECONDS_MAX = 45.0
SECONDS_FAR = 10.0
"""A table lock for a few thousand transfers at 30 ms would take minutes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: every strategy on every topology, and the control wherever a verdict needs it.

    A plain value: its strategies are names, which ``user_strategy`` looks up before the workers start, and
    ``Lab.admit`` tries before anything is sent. Raises CannotStart for what makes no sense.
    """

    strategies: tuple[str, ...]
    topologies: tuple[Topology, ...]
    workload: Workload
    seed: int
    repeat: int = 1
    warmup: int = WARMUP
    cell_seconds_max: float = CELL_SECONDS_MAX
    seconds: float | None = None
    """After so many seconds, the transfers of a cell that nobody has begun are withdrawn."""

    def __post_init__(self) -> None:
        if not self.strategies or not self.topologies:
            raise CannotStart("a comparison needs at least one strategy and one topology")
        if not 1 <= self.repeat <= REPEAT_MAX:
            raise CannotStart(f"repeat={self.repeat}: it must be between 1 and {REPEAT_MAX}")
        if not 0 <= self.warmup <= self.workload.transfers * 100:
            raise CannotStart(f"warmup={self.warmup}: it must be 0 or more, and at most 100 times the transfers")
        if not 0 < self.cell_seconds_max <= CELL_SECONDS_LIMIT:
            raise CannotStart(f"cell-timeout={self.cell_seconds_max}: it must be between 0 and {CELL_SECONDS_LIMIT} s")
        if self.seconds is not None and not 0 < self.seconds < self.cell_seconds_max:
            raise CannotStart(
                f"seconds={self.seconds:g}: more than 0, and less than {self.cell_seconds_max:g}, which end a cell"
            )
        check_seed(self.seed)

    @property
    def instances(self) -> int:
        """Return how many instances the largest topology needs."""
        return max(topology.instances for topology in self.topologies)

    @property
    def threads(self) -> int:
        """Return how many threads the widest topology needs in each instance."""
        return max(topology.threads for topology in self.topologies)

    @property
    def is_far(self) -> bool:
        """Whether an instance is to be far from Postgres somewhere."""
        return any(not topology.distance.is_near for topology in self.topologies)

    def within_reason(self) -> Plan:
        """Return the same plan, with an end to the cells of one that is far and has none."""
        return replace(self, seconds=SECONDS_FAR) if self.seconds is None and self.is_far else self

    def cells(self) -> Iterator[tuple[str, Topology]]:
        """Yield (strategy, topology). The control comes first, also where it was not asked for."""
        for topology in self.topologies:
            alone = topology.instances * topology.threads == 1
            names = dict.fromkeys(self.strategies if alone else (CONTROL, *self.strategies))
            yield from ((name, topology) for name in names)


class InstanceEnded(BankError):
    """An instance has ended by itself."""


class Progress(Protocol):
    """What is told how far a comparison is."""

    def cell_begins(self, strategy: str, topology: Topology, number: int, total: int) -> None:
        """Say which run begins; ``number`` counts from 1."""

    def transfers(self, done: int, total: int) -> None:
        """Say how many transfers have their outcome."""

    def cell_ends(self, run: Run) -> None:
        """Say what a run found."""


def judge_all(runs: Sequence[Run]) -> list[Cell]:
    """Judge runs, each cell by all of its own and by the control's on the same topology."""
    by_cell: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_cell.setdefault((run.strategy, run.topology), []).append(run)
    return [judge(found, by_cell.get((CONTROL, topology), [])) for (_, topology), found in by_cell.items()]


class Lab:
    """A bank, a broker and a fleet that are ready to run cells. Owns none of them.

    ``check_processes`` raises BankError if a process has ended that must not, for an instance InstanceEnded;
    ``revive_instances`` starts those instances again that have ended; ``restart`` starts all of them again.
    ``come_back`` says that an instance that ends is started again, here or by those who run it: a run then waits for
    it.
    """

    def __init__(
        self,
        database: Database,
        app: Celery,
        fleet: Fleet,
        instances: Sequence[InstanceInfo],
        check_processes: Callable[[], None] = lambda: None,
        *,
        settings: Settings | None = None,
        restart: Callable[[], Sequence[InstanceInfo]] | None = None,
        revive_instances: Callable[[], None] = lambda: None,
        come_back: bool = False,
        network: Network | None = None,
    ) -> None:
        self.database = database
        self._network = network
        self._settings = settings or Settings()
        self._restart = restart
        self._checked: set[str] = set()
        self._admitted: set[str] = set()
        self._is_used = False
        self._changed: dict[str, frozenset[str]] = {}
        self._check_processes = check_processes
        self.app = app
        self.fleet = fleet
        self.instances = list(instances)
        self._name = secrets.token_hex(4)
        self._runs = 0
        self._revive_instances = revive_instances
        self._come_back = come_back
        self._delivery: Delivery | None = None

    def compare(self, plan: Plan, progress: Progress, runs: list[Run] | None = None) -> list[Cell]:
        """Run every cell of the plan, repetitions outermost so that a slow minute hits all of them, and judge them.

        Each finished run is added to ``runs``: what was found is there also if the comparison is cut short.
        """
        for strategy in plan.strategies:
            self.admit(strategy)
        cells = list(plan.cells())
        runs = [] if runs is None else runs
        for repeat in range(plan.repeat):
            for strategy, topology in cells:
                progress.cell_begins(strategy, topology, 1 + len(runs), len(cells) * plan.repeat)
                runs.append(self.run(strategy, topology, plan, progress, repeat=repeat + 1))
                progress.cell_ends(runs[-1])
        return judge_all(runs)

    def run(self, strategy: str, topology: Topology, plan: Plan, progress: Progress, *, repeat: int = 1) -> Run:
        """Run one cell once: reset the bank, send the transfers, wait, audit.

        Raises what ``admit`` raises, before anything is sent.
        """
        self.admit(strategy)
        around = self._renew(strategy)
        measured = self._place(topology)
        if plan.warmup:
            workload = replace(plan.workload, transfers=plan.warmup)
            self._send(strategy, topology, workload, plan.seed, plan, Silence())
        # Repetitions differ in their transfers; the first one is what the seed alone says.
        seed = plan.seed + repeat - 1
        name, chosen, withdrawn = self._send(strategy, topology, plan.workload, seed, plan, progress)
        readings = self.fleet.read_meters(name, chosen)
        found = audit(self.database)
        faults = self._faults(strategy, chosen, readings, found.transfers["pending"])
        if around is not None:
            changed = sorted((around ^ describe_surroundings(self.database)) | self._changed[strategy])
            faults |= {f"{strategy} changes what lies outside of the bank: {what}": 1 for what in changed}
        seconds = self.seconds()
        decided = sum(count for status, count in found.transfers.items() if status != "pending")
        return Run(
            strategy=strategy,
            topology=str(topology),
            instances=topology.instances,
            threads=topology.threads,
            **found.transfers,
            duplicates=found.duplicates,
            opening_total=found.opening_total,
            closing_total=found.closing_total,
            drift=found.drift,
            lost_postings=found.lost_postings,
            lost_delta=found.lost_delta,
            unexplained=found.unexplained,
            overdrawn=found.overdrawn,
            retries=readings.counts["retries"],
            deadlocks=readings.counts["deadlocks"],
            serialization_failures=readings.counts["serialization_failures"],
            conflicts=readings.counts["conflicts"],
            seconds=round(seconds, 4),
            transfers_per_s=round(decided / seconds, 1) if seconds else 0.0,
            latency_ms=readings.latency_ms(),
            lock_wait_ms=readings.lock_wait_ms(),
            claim=strategy_named(strategy).claim.value,
            hosts=len({info.host for info in chosen}),
            working_max=readings.working_max,
            audit=found,
            repeat=repeat,
            latency_counts=readings.latency_counts(),
            cost_ms=readings.cost_ms(),
            history=read_history(self.database),
            scene=read_scene(self.database, found),
            faults=faults,
            refused_payable=self._count_refused_payable(),
            distance_ms=measured,
            withdrawn=withdrawn,
        )

    def _place(self, topology: Topology) -> dict[str, float]:
        """Put the instances where the topology wants them, and return the round trips that were measured, in ms."""
        if self._network is None:
            if not topology.distance.is_near:
                raise CannotStart(f"{topology}: these instances' way to Postgres cannot be made longer")
            return {}
        return self._network.adjust(topology.distance, [one.instance for one in self.instances[: topology.instances]])

    def _count_refused_payable(self) -> int:
        """Return how many transfers were refused that every order one by one pays.

        Those from an account that could pay all its transfers from what it was opened with, and are of two accounts
        that exist.
        """
        with self.database.transaction() as transaction:
            row = transaction.execute(
                """
                SELECT count(*) FROM transfers t JOIN accounts d ON d.id = t.debit JOIN accounts c ON c.id = t.credit
                JOIN (SELECT debit, sum(amount) AS most FROM transfers GROUP BY debit) paid ON paid.debit = t.debit
                WHERE t.status = 'refused' AND d.opening >= paid.most
                """
            ).fetchone()
        return int(row[0]) if row is not None else 0

    def admit(self, strategy: str) -> None:
        """Try out, once and before anything is sent, whether a strategy from outside can be used at all.

        Two of its transfers are run here, one after the other, on the bank, which is emptied; then every instance
        loads it. Raises StrategyFault, or CannotStart, that says what is wrong with it. Our own can, if these servers
        have what they need.
        """
        self.check_ours(strategy)
        if strategy in STRATEGIES or strategy in self._admitted:
            return
        with self.database.transaction() as transaction:
            outside.leave_out_too_new([strategy], versions.version_of(transaction.raw))
        self._is_used = True
        around = describe_surroundings(self.database)
        rehearse(self.database, self._settings, [strategy])
        self._changed[strategy] = around ^ describe_surroundings(self.database)
        self.fleet.check_strategy(strategy, self.instances)
        self._admitted.add(strategy)

    def check_ours(self, strategy: str) -> None:
        """Raise CannotStart if this is a strategy of ours, and needs what is not here: a Redis, say."""
        if strategy not in self._checked:
            check_settings(strategy, self._settings)
            self._checked.add(strategy)

    def _renew(self, strategy: str) -> frozenset[str] | None:
        """Give a strategy from outside, and the one after it, a bank and sessions that nobody used before.

        Returns, for one from outside, what lay around the bank before it.
        """
        theirs = strategy not in STRATEGIES
        around = describe_surroundings(self.database) if theirs else None
        if theirs or self._is_used or not is_as_made(self.database):
            renew_schema(self.database)
            self.fleet.renew_sessions(self.instances)
        if theirs:
            outside.install(strategy_named(strategy), self.database)
        self._is_used = theirs
        return around

    def _faults(
        self, strategy: str, chosen: Sequence[InstanceInfo], readings: Readings, pending: int
    ) -> dict[str, int]:
        """Return what a strategy from outside did that is no outcome, and how often."""
        faults = dict(readings.faults)
        if strategy not in STRATEGIES and self._restart is not None:
            try:
                self._check_processes()
            except InstanceEnded as error:
                self.instances = list(self._restart())
                return faults | {f"{strategy} ends its worker: {error}": 1}
        standing = self.fleet.find_stuck(chosen) if pending and strategy not in STRATEGIES else {}
        for instance, places in standing.items():
            faults |= {f"{strategy} hangs: {instance} stands in {place}": 1 for place in places}
        if standing and self._restart is not None:
            self.instances = list(self._restart())
        elif standing:
            raise BankError(f"{next(iter(faults))}; restart that worker: its threads are not coming back")
        return faults

    def look_after(self) -> None:
        """Check the processes, and start those again that may end. Raises BankError if another one has ended."""
        self._check_processes()
        self._revive_instances()

    def next_name(self) -> str:
        """Return a name for one run and its queue that no other run has."""
        self._runs += 1
        return f"run-{self._name}-{self._runs}"

    def _send(
        self,
        strategy: str,
        topology: Topology,
        workload: Workload,
        seed: int,
        plan: Plan,
        progress: Progress,
    ) -> tuple[str, list[InstanceInfo], int]:
        """Send a workload to a fresh bank and wait for its outcomes.

        Returns the run's name, its instances, and how many transfers were withdrawn when the plan's time was over.
        """
        withdrawn = 0
        chosen, threads = self.instances[: topology.instances], topology.threads
        if strategy_named(strategy).routed_to_one:
            chosen, threads = chosen[:1], 1
        name = self.next_name()
        # The run's number goes into the ids: a message that a cell before this one left behind then finds nothing.
        orders = list(workload.orders(seed, salt=uuid5(NAMESPACE_OID, str(self._runs)).int))
        open_bank(self.database, accounts=workload.accounts, opening=workload.opening, constraint=workload.constraint)
        submission = Submission(name, strategy, name, workload.chunk, workload.think_ms, threads)
        # The audit says what is pending; and what ended an instance in the hands of a strategy from outside, `_faults`.
        told_later = (Stalled,) if strategy in STRATEGIES or self._restart is None else (Stalled, InstanceEnded)
        with Delivery(self, submission) as delivery, suppress(*told_later):
            delivery.accept(orders)
            # All messages are there before the first one is taken: publishing is not part of what is measured.
            delivery.publish(orders, progress=lambda published: self.look_after())
            self.look_after()
            delivery.join(chosen, seconds_max=JOIN_SECONDS_MAX if self._come_back else 0, meanwhile=self.look_after)
            self._delivery = delivery
            began = time.monotonic()

            def count() -> int:
                nonlocal withdrawn
                if plan.seconds is not None and time.monotonic() - began > plan.seconds:
                    withdrawn += withdraw_pending(self.database)
                return count_pending(self.database)

            try:
                wait(
                    count,
                    Patience(seconds_max=plan.cell_seconds_max),
                    check=self.look_after,
                    progress=lambda pending: progress.transfers(len(orders) - pending, len(orders)),
                )
            finally:
                self._delivery = None
        return name, chosen, withdrawn

    def join_again(self, timeout_seconds: float) -> set[str]:
        """Let instances that were started again take part in the run that is on; return the names that answer."""
        return set() if self._delivery is None else self._delivery.join_again(timeout_seconds)

    def seconds(self) -> float:
        """Return the time from the first claim to the last outcome, by Postgres' clock."""
        return read_seconds(self.database)
