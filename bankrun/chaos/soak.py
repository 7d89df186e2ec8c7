"""Many faults, one after another, under one long run."""

from __future__ import annotations

import random
import secrets
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from bank.audit import audit
from bank.errors import CannotStart
from bank.outside import strategy_named
from bank.postgres.schema import open_bank
from bank.strategies import Claim
from bankrun.chaos.targets import Missed, Stage
from bankrun.results.models.soak import Recovery, Soak, SoakLoad, Strike
from bankrun.results.provenance import write_command
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.boundary import LOST_SERVER
from bankrun.runs.provenance import begin
from workers.submission import Submission, accept, publish

QUIET_FRACTION = 0.05
"""So much of the transfers is left alone at the end: the last fault must strike while there is work."""
STALLED_SECONDS = 180.0
POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class SoakPlan(SoakLoad):
    """How much, and what strikes. Raises CannotStart for what makes no sense."""

    def __post_init__(self) -> None:
        if min(self.kills, self.pauses, self.postgres_restarts, self.redis_restarts) < 0:
            raise CannotStart("kills, pauses and restarts are 0 or more")
        if self.transfers < 20 * self.faults:
            raise CannotStart(f"transfers={self.transfers}: {self.faults} faults need {20 * self.faults} at least")
        if not self.faults:
            raise CannotStart("a soak needs at least one fault: give --kills, for example")
        strategy = strategy_named(self.strategy)
        if strategy.claim is not Claim.EVERYWHERE or strategy.routed_to_one:
            raise CannotStart(f"{self.strategy} does not claim to hold on whatever instances are there: use another")
        if self.pauses and strategy.survives_pause is False:
            raise CannotStart(f"{self.strategy} does not survive a paused holder: give --pauses 0, or another strategy")
        _ = self.workload  # which refuses what makes no bank

    @property
    def workload(self) -> Workload:
        """Return the bank, and the transfers that it gets."""
        return Workload(accounts=self.accounts, transfers=self.transfers)

    @property
    def faults(self) -> int:
        """Return how many there are in all."""
        return self.kills + self.pauses + self.postgres_restarts + self.redis_restarts

    def schedule(self, chance: random.Random) -> list[str]:
        """Return what strikes, in the order in which it does. The seed decides; one restart empties Redis."""
        restarts = ["redis-emptied" if number == 0 else "redis-restart" for number in range(self.redis_restarts)]
        postgres = ["postgres-crash" if number % 2 else "postgres-restart" for number in range(self.postgres_restarts)]
        kinds = ["kill"] * self.kills + ["pause"] * self.pauses + postgres + restarts
        chance.shuffle(kinds)
        return kinds


def begin_soak(stage: Stage, plan: SoakPlan, topology: Topology) -> Soak:
    """Return a result that begins now, in which nothing has happened yet."""
    # The names of a plan's values are those of the command's options.
    command = write_command("soak", topology=str(topology), **asdict(plan))
    instances = list(stage.infos.values())
    provenance = begin(command, stage.database, stage.app, stage.settings, instances, embedded=True, seed=plan.seed)
    return Soak(provenance, plan, str(topology))


def run_soak(stage: Stage, plan: SoakPlan, result: Soak, tell: Callable[[int, str], None]) -> None:
    """Run it. ``tell`` is called with how many transfers have their outcome, and what struck last."""
    chance = random.Random(plan.seed)
    kinds = plan.schedule(chance)
    workload = plan.workload
    name = f"soak-{secrets.token_hex(4)}"
    submission = stage.submission = Submission(name, plan.strategy, name)
    orders = list(workload.orders(plan.seed))
    open_bank(stage.database, accounts=workload.accounts, opening=workload.opening)
    accept(stage.database, orders, submission)
    started = time.monotonic()
    publisher = threading.Thread(target=_publish, args=(stage, orders, submission), daemon=True)
    publisher.start()
    for one in stage.infos:
        stage.join(one)
    for number, kind in enumerate(kinds):
        due = int(plan.transfers * (1 - QUIET_FRACTION) * (number + chance.random()) / len(kinds))
        _await(stage, due, lambda decided, kind=kind: tell(decided, f"next: {kind}"))  # type: ignore[misc]
        seconds = _strike(stage, kind, chance)
        result.struck.append(Strike(kind, due, round(seconds, 3)))
        tell(due, kind)
    _await(stage, plan.transfers, lambda decided: tell(decided, "no more faults"))
    result.seconds = round(time.monotonic() - started, 1)
    found = audit(stage.database)
    result.transfers = found.transfers
    result.lost_postings, result.duplicates, result.drift = found.lost_postings, found.duplicates, found.drift
    result.audit = found
    result.republished = stage.republished(name)
    for kind in dict.fromkeys(sorted(kinds)):
        times = [struck.recovery_s for struck in result.struck if struck.kind == kind]
        result.recovery_s[kind] = Recovery(statistics.median(times), max(times))
    stage.submission = None


def _publish(stage: Stage, orders: list[Any], submission: Submission) -> None:
    """Publish until Redis goes away for the first time: the rest, the reconcilers will find."""
    with suppress(*LOST_SERVER):
        publish(stage.app, orders, submission)


def _await(stage: Stage, due: int, tell: Callable[[int], None]) -> None:
    """Wait until so many transfers are decided. Raises Missed where nothing moves for three minutes."""
    before, moved_at = -1, time.monotonic()
    while True:
        decided = stage.insist(lambda: stage.count("applied", "refused", "failed"), STALLED_SECONDS)
        tell(decided)
        if decided >= due:
            return
        if decided != before:
            before, moved_at = decided, time.monotonic()
        if time.monotonic() - moved_at > STALLED_SECONDS:
            raise Missed(f"{decided} transfers are decided, and nothing has moved for {STALLED_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _strike(stage: Stage, kind: str, chance: random.Random) -> float:
    """Let one fault strike, and return how long it took until what was struck worked again, in seconds."""
    name = chance.choice(sorted(stage.infos))
    if kind in ("kill", "pause"):
        before = stage.insist(lambda: stage.count_by(name))
        if kind == "kill":
            stage.kill(name)
            over = time.monotonic()
            stage.revive(name)
        else:
            stage.pause(name, chance.uniform(0.1, 1.5 * stage.settings.lock_timeout_ms / 1000))
            over = time.monotonic()
        _until_moving(stage, lambda: stage.count_by(name) > before, f"{name} works again")
        return time.monotonic() - over
    if kind.startswith("postgres"):
        stage.restart_postgres(signal.SIGINT if kind == "postgres-restart" else signal.SIGQUIT)
    else:
        stage.restart_redis(kept=kind == "redis-restart")
    over = time.monotonic()
    before = stage.insist(lambda: stage.count("applied", "refused"))
    _until_moving(stage, lambda: stage.count("applied", "refused") > before, "somebody works again")
    return time.monotonic() - over


def _until_moving(stage: Stage, moves: Callable[[], bool], what: str) -> None:
    """Wait until something moves, or nothing is left that could."""
    stage.until(lambda: moves() or not stage.count("pending"), what, STALLED_SECONDS)
