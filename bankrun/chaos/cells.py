"""Faults while transfers flow, and what the bank looks like after the recovery."""

from __future__ import annotations

import math
import random
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bank.audit import Audit, audit
from bank.errors import CannotStart
from bank.outside import strategy_named
from bank.postgres.database import Database
from bank.postgres.schema import open_bank
from bankrun.chaos.faults import FAULTS, RABBITMQ, REDIS, Fault, Scene, fault_named, faults_with
from bankrun.chaos.targets import STEP_SECONDS_MAX, Missed, Targets, can_be_cut
from bankrun.results.models.chaos import Chaos, ChaosCell
from bankrun.results.provenance import Expected, Verdict, check_seed, write_command
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.delivery import Delivery, Patience, Stalled, count_pending, wait
from bankrun.runs.provenance import begin
from bankrun.runs.verdict import BROKEN, INCONCLUSIVE, SAFE, UNSAFE
from workers.submission import Submission

ROUNDS_MAX = 100
STALLED_SECONDS = 60.0
"""No transfer was decided for so long: instances that are only slow decide some."""
STRIKE_FRACTION_MAX = 0.5
"""A fault strikes when at most so many of its round's transfers are decided: what it hits has to be still there."""
CHAOS_LOAD = Workload(accounts=16, transfers=600)


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """Which faults meet which strategies: a plain value. Raises CannotStart for what makes no sense."""

    faults: tuple[str, ...]
    strategies: tuple[str, ...]
    topology: Topology
    workload: Workload
    seed: int
    rounds: int = 1
    broker_url: str = ""
    """A RabbitMQ that is given; without it, a Redis of our own."""
    restart_broker: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.faults or not self.strategies:
            raise CannotStart("chaos needs at least one fault and one strategy")
        for name in self.faults:
            fault_named(name)
        if not 1 <= self.rounds <= ROUNDS_MAX:
            raise CannotStart(f"rounds={self.rounds}: it must be between 1 and {ROUNDS_MAX}")
        check_seed(self.seed)
        if self.topology.instances < 2:
            raise CannotStart(f"topology={self.topology}: with one instance, none is left to go on: at least 2")
        if self.workload.transfers < 50 * self.rounds:
            raise CannotStart(f"transfers={self.workload.transfers}: at least 50 for each round, or no fault meets one")

    def check_strategies(self) -> None:
        """Look up the strategies, before anything starts. Raises CannotStart for one that chaos cannot use."""
        for name in self.strategies:
            if strategy_named(name).routed_to_one:
                raise CannotStart(f"{name} is routed to one instance: there is nothing that could take its place")

    @property
    def needs_network(self) -> bool:
        """Whether some fault is one of the network's."""
        return any(FAULTS[name].needs_network for name in self.faults)

    def missing(self) -> dict[str, str]:
        """Return the faults that cannot be had on this machine, and why."""
        return {
            name: why for name in self.faults if (why := FAULTS[name].missing() or self._find_missing(FAULTS[name]))
        }

    def _find_missing(self, fault: Fault) -> str:
        if fault.needs not in ("", self.broker):
            return f"needs {fault.needs}"
        if fault.name == "rabbitmq-restart" and not self.restart_broker:
            return "needs --restart-broker, the command that restarts your RabbitMQ"
        if fault.needs == RABBITMQ and fault.name != "rabbitmq-restart" and not can_be_cut(self.broker_url):
            return "needs an address with amqp://: nothing can stand before TLS"
        return ""

    @property
    def broker(self) -> str:
        """The kind of broker."""
        return RABBITMQ if self.broker_url else REDIS

    def cells(self) -> list[tuple[Fault, str]]:
        """Return what is run: each fault with each strategy."""
        absent = self.missing()
        return [(FAULTS[name], strategy) for name in self.faults if name not in absent for strategy in self.strategies]

    def command(self) -> str:
        """Return the command that repeats it."""
        every = faults_with(self.broker)
        quick = set(self.faults) == {name for name in every if FAULTS[name].quick}
        return write_command(
            "chaos",
            quick=quick,
            fault=None if quick or self.faults == every else self.faults,
            strategy=self.strategies,
            topology=str(self.topology),
            transfers=self.workload.transfers,
            accounts=self.workload.accounts,
            rounds=self.rounds,
            seed=self.seed,
            restart_broker=shlex.join(self.restart_broker) or None,
        )


class ChaosProgress(Protocol):
    """What is told which cell is run."""

    def begin(self, what: str) -> None:
        """Say what begins."""

    def tell(self, what: str) -> None:
        """Say what was found."""


def begin_chaos(targets: Targets, plan: ChaosPlan) -> Chaos:
    """Return a result that begins now, without any cells yet."""
    instances = list(targets.infos.values())
    provenance = begin(
        plan.command(), targets.database, targets.app, targets.settings, instances, embedded=True, seed=plan.seed
    )
    return Chaos(provenance, plan.workload, plan.rounds, plan.missing(), cells=[])


def run_chaos(
    targets: Targets, plan: ChaosPlan, progress: ChaosProgress, result: Chaos, *, until: float = math.inf
) -> None:
    """Run every cell of the plan; each that is finished is added to the result.

    From ``until`` on, by ``time.monotonic()``, no fault begins; those that are left are among what was not run.
    """
    for fault, strategy in plan.cells():
        if result.cells and strategy == plan.strategies[0] and time.monotonic() > until:
            result.not_run[fault.name] = "the time was over"
        if fault.name in result.not_run:
            continue
        progress.begin(f"{fault.name}, {strategy}")
        result.cells.append(run_cell(targets, plan, fault, strategy))
        last = result.cells[-1]
        progress.tell(f"{fault.name}, {strategy}: {last.verdict}, {last.seconds:.1f} s")


def run_cell(targets: Targets, plan: ChaosPlan, fault: Fault, strategy: str) -> ChaosCell:
    """Let the transfers of a fresh bank flow, strike, wait for the recovery, and audit."""
    # A string's hash differs between processes; a generator that is seeded with the string itself does not.
    chance = random.Random(f"{plan.seed} {fault.name} {strategy}")
    name = f"chaos-{fault.name}-{chance.getrandbits(32):08x}-{time.monotonic_ns():x}"
    submission = Submission(name, strategy, name, threads=plan.topology.threads)
    orders = list(plan.workload.orders(chance.getrandbits(31)))
    missed = ""
    targets.insist(lambda: open_bank(targets.database, accounts=plan.workload.accounts, opening=plan.workload.opening))
    started = time.monotonic()
    rounds = plan.rounds if fault.before is None else 1  # what acts before there are messages acts once
    with Delivery(targets, submission, insist_seconds=STEP_SECONDS_MAX) as delivery:
        targets.delivery = delivery
        scene = Scene(targets, sorted(targets.infos)[: plan.topology.instances], orders, delivery, chance)
        try:
            try:
                for number in range(rounds):
                    scene.orders = orders[len(orders) * number // rounds : len(orders) * (number + 1) // rounds]
                    if number:  # as in the first: no instance takes part before everything is there
                        targets.insist(delivery.withdraw)
                    _begin_round(scene, fault)
                    _strike(scene, fault)
            except Missed as error:
                missed = str(error)
            scene.over_at = scene.over_at or time.monotonic()
            dead = [one for one in scene.names if not targets.is_alive(one)]
            targets.restore()
            _await_pending(targets, 0)
            ended = time.monotonic()
            dead += [one for one in scene.names if not targets.is_alive(one)]
            targets.restore()
            readings = targets.insist(lambda: targets.fleet.read_meters(name, list(targets.infos.values())))
            republished = targets.insist(lambda: targets.count_republished(name))
            found = targets.insist(lambda: audit(targets.database))
        finally:
            targets.delivery = None
    standing = ""
    if found.transfers["pending"]:  # what holds them up in an instance is not the next cell's
        standing = targets.find_standing(strategy)
        for one in scene.names:
            targets.kill(one)
        targets.restore()
    verdict, expected, reason = _judge(scene, fault, found, missed, dead, standing)
    return ChaosCell(
        fault=fault.name,
        strategy=strategy,
        topology=str(plan.topology),
        verdict=verdict,
        expected=expected,
        reason=reason,
        **found.transfers,
        lost_postings=found.lost_postings,
        drift=found.drift,
        duplicates=found.duplicates,
        unexplained=found.unexplained,
        extra_deliveries=readings.counts["repeated"],
        republished=republished,
        retries=readings.counts["retries"],
        recovery_s=None if found.transfers["pending"] else round(ended - scene.over_at, 3),
        seconds=round(ended - started, 3),
        rounds=rounds,
        audit=found,
    )


def _begin_round(scene: Scene, fault: Fault) -> None:
    """Accept and send a round's transfers. Not before: what waits in the bank unsent would be found forgotten."""
    targets = scene.targets
    scene.delivery.accept(scene.orders)
    if fault.before is not None:
        fault.before(scene)
    if fault.point is not None:
        scene.arm(*fault.point)
    if fault.before is None:
        scene.delivery.publish(scene.orders)
    if scene.armed:  # the others might be done before it has begun
        before = targets.count_by(scene.armed)
        targets.call(scene.armed)
        targets.until(
            lambda: targets.count_by(scene.armed) > before or not targets.is_at_work(scene.armed), "it has begun", 10
        )
    for one in scene.names:
        if one != scene.armed:
            targets.join(one)


def _strike(scene: Scene, fault: Fault) -> None:
    """Strike when so many of the round's transfers are decided as the seed says."""
    if fault.strike is None:
        return
    targets = scene.targets
    fraction = STRIKE_FRACTION_MAX * scene.chance.uniform(0.1, 0.9)
    if fault.before is None and not scene.armed:
        pending = _await_pending(targets, round(len(scene.orders) * (1 - fraction)))
        if not pending:
            raise Missed("every transfer was decided before it struck")
    scene.over_at = 0.0
    fault.strike(scene)
    scene.over_at = scene.over_at or time.monotonic()


def _await_pending(targets: Targets, most: int) -> int:
    """Wait until no more transfers than this are pending, as long as some are decided; return how many are pending."""
    patience = Patience(stalled_seconds=STALLED_SECONDS, outage_seconds=STEP_SECONDS_MAX, poll_seconds=0.02)
    try:
        return wait(lambda: count_pending(targets.database), patience, most=most)
    except Stalled as stalled:
        return stalled.left


def _judge(
    scene: Scene, fault: Fault, found: Audit, missed: str, dead: Sequence[str], standing: str
) -> tuple[Verdict, Expected, str]:
    """Return the verdict, what was expected, and the reason.

    A promise is kept if every invariant holds, nothing is pending, exactly those have failed that had to, and no
    instance has ended by itself.
    """
    strategy = strategy_named(scene.submission.strategy)
    threads = scene.submission.threads or 1
    covered = strategy.claim.covers(instances=len(scene.names), threads=threads, hosts=1)
    promised = covered and (strategy.survives_pause is not False or not fault.breaks_leases)
    expected: Expected = SAFE if promised else UNSAFE
    kinds = list(dict.fromkeys(finding.kind for finding in found.findings))
    if kinds:
        return BROKEN, expected, ", ".join(kinds)
    pending, failed = found.transfers["pending"], found.transfers["failed"]
    if pending:
        why = f"none was decided for {STALLED_SECONDS:g} s" + (f", and {standing}" if standing else "")
        return BROKEN, expected, f"{pending} transfers stayed pending: {why}"
    reasons = _reasons(scene.targets.database)
    if failed != scene.failed or not all(scene.failed_because in reason for reason in reasons):
        said = "; ".join(reasons[:3])
        return BROKEN, expected, f"{failed} transfers have failed instead of {scene.failed}: {said}"
    if dead:
        return BROKEN, expected, f"{', '.join(dead)} ended by itself"
    if missed:
        return INCONCLUSIVE, expected, f"the fault did not happen: {missed}"
    if not promised:
        return INCONCLUSIVE, expected, "holds, but claims nothing here"
    return SAFE, expected, ""


def _reasons(database: Database) -> list[str]:
    with database.transaction() as transaction:
        rows = transaction.execute("SELECT DISTINCT reason FROM transfers WHERE status = 'failed'").fetchall()
    return [str(row[0]) for row in rows]
