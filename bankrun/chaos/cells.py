"""Faults while transfers flow, and what the bank looks like when everybody has recovered."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bank.audit import Audit, audit
from bank.errors import CannotStart
from bank.outside import strategy_named
from bank.postgres.database import Database
from bank.postgres.schema import open_bank
from bankrun.chaos.faults import FAULTS, Fault, Scene, fault_named
from bankrun.chaos.targets import Missed, Stage
from bankrun.results.models.chaos import Chaos, ChaosCell
from bankrun.results.provenance import Expected, Verdict, write_command
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.boundary import LOST_SERVER
from bankrun.runs.provenance import begin
from bankrun.runs.verdict import BROKEN, INCONCLUSIVE, SAFE, UNSAFE
from workers.submission import Submission, abandon, accept, publish

ROUNDS_MAX = 100
STALLED_SECONDS = 60.0
"""No transfer was decided for so long: whoever is only slow decides some."""
POLL_SECONDS = 0.02
STRIKE_FRACTION_MAX = 0.5
"""A fault strikes when at most so many of its round's transfers are decided: what it hits has to be still there."""
CHAOS_LOAD = Workload(accounts=16, transfers=600)


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """Which faults meet which strategies. Raises CannotStart for what cannot be run."""

    faults: tuple[str, ...]
    strategies: tuple[str, ...]
    topology: Topology
    workload: Workload
    seed: int
    rounds: int = 1

    def __post_init__(self) -> None:
        if not self.faults or not self.strategies:
            raise CannotStart("chaos needs at least one fault and one strategy")
        for name in self.faults:
            fault_named(name)
        for name in self.strategies:
            if strategy_named(name).routed_to_one:
                raise CannotStart(f"{name} is routed to one instance: there is nothing that could take its place")
        if not 1 <= self.rounds <= ROUNDS_MAX:
            raise CannotStart(f"rounds={self.rounds}: it must be between 1 and {ROUNDS_MAX}")
        if self.seed < 0:
            raise CannotStart(f"seed={self.seed}: it must be 0 or more")
        if self.topology.instances < 2:
            raise CannotStart(f"topology={self.topology}: with one instance, nobody is left to go on: at least 2")
        if self.workload.transfers < 50 * self.rounds:
            raise CannotStart(f"transfers={self.workload.transfers}: at least 50 for each round, or no fault meets one")

    @property
    def needs_network(self) -> bool:
        """Whether some fault is one of the network's."""
        return any(FAULTS[name].needs_network for name in self.faults)

    def missing(self) -> dict[str, str]:
        """Return the faults that cannot be had on this machine, and why."""
        return {name: why for name in self.faults if (why := FAULTS[name].missing())}

    def cells(self) -> list[tuple[Fault, str]]:
        """Return what is run: each fault with each strategy."""
        absent = self.missing()
        return [(FAULTS[name], strategy) for name in self.faults if name not in absent for strategy in self.strategies]

    def command(self) -> str:
        """Return the command that repeats it."""
        quick = self.faults == tuple(name for name, fault in FAULTS.items() if fault.quick)
        return write_command(
            "chaos",
            quick=quick,
            fault=None if quick or self.faults == tuple(FAULTS) else self.faults,
            strategy=self.strategies,
            topology=str(self.topology),
            transfers=self.workload.transfers,
            accounts=self.workload.accounts,
            rounds=self.rounds,
            seed=self.seed,
        )


class ChaosProgress(Protocol):
    """Who wants to know which cell is run."""

    def begin(self, what: str) -> None:
        """Say what begins."""


def begin_chaos(stage: Stage, plan: ChaosPlan) -> Chaos:
    """Return a result that begins now, without any cells yet."""
    instances = list(stage.infos.values())
    provenance = begin(
        plan.command(), stage.database, stage.app, stage.settings, instances, embedded=True, seed=plan.seed
    )
    return Chaos(provenance, plan.workload, plan.rounds, plan.missing(), cells=[])


def run_chaos(stage: Stage, plan: ChaosPlan, progress: ChaosProgress, cells: list[ChaosCell]) -> None:
    """Run every cell of the plan; each that is finished is added to ``cells``."""
    for fault, strategy in plan.cells():
        progress.begin(f"{fault.name}, {strategy}")
        cells.append(run_cell(stage, plan, fault, strategy))


def run_cell(stage: Stage, plan: ChaosPlan, fault: Fault, strategy: str) -> ChaosCell:
    """Let the transfers of a fresh bank flow, strike, let everybody recover, and audit."""
    # A string's hash differs between processes; a generator that is seeded with the string itself does not.
    chance = random.Random(f"{plan.seed} {fault.name} {strategy}")
    name = f"chaos-{fault.name}-{chance.getrandbits(32):08x}-{time.monotonic_ns():x}"
    submission = Submission(name, strategy, name, threads=plan.topology.threads)
    orders = list(plan.workload.orders(chance.getrandbits(31)))
    scene = Scene(stage, sorted(stage.infos)[: plan.topology.instances], orders, submission, chance)
    stage.submission = submission
    missed = ""
    stage.insist(lambda: open_bank(stage.database, accounts=plan.workload.accounts, opening=plan.workload.opening))
    started = time.monotonic()
    rounds = plan.rounds if fault.before is None else 1  # what acts before there are messages acts once
    try:
        try:
            for number in range(rounds):
                scene.orders = orders[len(orders) * number // rounds : len(orders) * (number + 1) // rounds]
                if number:  # as in the first: nobody takes part before everything is there
                    stage.insist(lambda: stage.fleet.leave(name, list(stage.infos.values())))
                _begin_round(scene, fault)
                _strike(scene, fault)
        except Missed as error:
            missed = str(error)
        scene.over_at = scene.over_at or time.monotonic()
        dead = [one for one in scene.names if not stage.is_alive(one)]
        stage.restore()
        _await_pending(stage, 0)
        ended = time.monotonic()
        dead += [one for one in scene.names if not stage.is_alive(one)]
        stage.restore()
        readings = stage.insist(lambda: stage.fleet.read_meters(name, list(stage.infos.values())))
        republished = stage.insist(lambda: stage.republished(name))
        found = stage.insist(lambda: audit(stage.database))
    finally:
        stage.submission = None
        _end(stage, submission)
    if found.transfers["pending"]:  # whatever holds them up in an instance is not the next cell's
        for one in scene.names:
            stage.kill(one)
        stage.restore()
    verdict, expected, reason = _judge(scene, fault, found, missed, dead)
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
    stage = scene.stage
    accept(stage.database, scene.orders, scene.submission)
    if fault.before is not None:
        fault.before(scene)
    if fault.point is not None:
        scene.arm(*fault.point)
    if fault.before is None:
        publish(stage.app, scene.orders, scene.submission)
    if scene.armed:  # the others might be done before it has begun
        before = stage.count_by(scene.armed)
        stage.join(scene.armed)
        stage.until(lambda: stage.count_by(scene.armed) > before or not stage.is_alive(scene.armed), "it has begun", 10)
    for one in scene.names:
        if one != scene.armed:
            stage.join(one)


def _strike(scene: Scene, fault: Fault) -> None:
    """Strike when so many of the round's transfers are decided as the seed says."""
    if fault.strike is None:
        return
    stage = scene.stage
    fraction = STRIKE_FRACTION_MAX * scene.chance.uniform(0.1, 0.9)
    if fault.before is None and not scene.armed:
        pending = _await_pending(stage, round(len(scene.orders) * (1 - fraction)))
        if not pending:
            raise Missed("every transfer was decided before it struck")
    scene.over_at = 0.0
    fault.strike(scene)
    scene.over_at = scene.over_at or time.monotonic()


def _await_pending(stage: Stage, most: int) -> int:
    """Wait until no more transfers than this are pending, as long as some are decided; return how many are pending."""
    least, deadline = None, 0.0
    while True:
        pending = stage.insist(lambda: stage.count("pending"))
        if pending <= most:
            return pending
        if least is None or pending < least:
            least, deadline = pending, time.monotonic() + STALLED_SECONDS
        if time.monotonic() > deadline:
            return pending
        time.sleep(POLL_SECONDS)


def _end(stage: Stage, submission: Submission) -> None:
    """Leave nothing of this cell to the next one: no queue, and no run that somebody would publish again."""
    try:
        stage.insist(lambda: abandon(stage.database, submission.run), 5)
        stage.insist(lambda: stage.fleet.leave(submission.queue, list(stage.infos.values())), 5)
    except LOST_SERVER:  # what ended the cell is told; this would only hide it
        return


def _judge(scene: Scene, fault: Fault, found: Audit, missed: str, dead: Sequence[str]) -> tuple[Verdict, Expected, str]:
    """Return the verdict, what was expected, and the reason.

    A promise is kept if every invariant holds, nothing is pending, exactly those have failed that had to, and no
    instance has ended that nobody killed.
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
        return BROKEN, expected, f"{pending} transfers stayed pending: none was decided for {STALLED_SECONDS:g} s"
    reasons = _reasons(scene.stage.database)
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
