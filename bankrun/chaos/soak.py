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
from dataclasses import asdict, dataclass, field
from typing import Any

from bank.audit import audit
from bank.errors import CannotStart
from bank.outside import strategy_named
from bank.postgres.schema import open_bank
from bank.strategies import Claim
from bankrun.chaos.targets import Missed, Stage
from bankrun.results.models import SCHEMA, Provenance
from bankrun.results.workload import Workload
from bankrun.runs.boundary import LOST_SERVER
from workers.submission import Submission, accept, publish

QUIET_FRACTION = 0.05
"""So much of the transfers is left alone at the end: the last fault must strike while there is work."""
STALLED_SECONDS = 180.0
POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """How much, and what strikes. Raises CannotStart for what makes no sense."""

    strategy: str = "row-lock"
    transfers: int = 100_000
    accounts: int = 1_000
    kills: int = 25
    pauses: int = 25
    postgres_restarts: int = 5
    redis_restarts: int = 5
    seed: int = 1

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


@dataclass(slots=True)
class Soak(Provenance):
    """What was left after it all. ``recovery_s`` has, for each kind, the time until what was struck worked again.

    That is: until an instance that was killed or paused decides its next transfer, and, after a restart of a server,
    until any of them does; from the moment at which the process that was killed is gone, the one that was paused goes
    on, or the server answers again.
    """

    plan: SoakPlan
    topology: str
    struck: list[dict[str, Any]] = field(default_factory=list)
    recovery_s: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    transfers: dict[str, int] = field(default_factory=dict)
    lost_postings: int = 0
    duplicates: int = 0
    drift: int = 0
    republished: int = 0
    audit: dict[str, Any] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether nothing was lost, nothing was applied twice, and nothing has failed or is pending."""
        return bool(self.audit["passed"]) and not self.transfers["failed"] and not self.transfers["pending"]

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""
        return {"schema": SCHEMA, **asdict(self)}


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
        result.struck.append({"kind": kind, "at": due, "recovery_s": round(seconds, 3)})
        tell(due, kind)
    _await(stage, plan.transfers, lambda decided: tell(decided, "no more faults"))
    result.seconds = round(time.monotonic() - started, 1)
    found = audit(stage.database)
    result.transfers = found.transfers
    result.lost_postings, result.duplicates, result.drift = found.lost_postings, found.duplicates, found.drift
    result.audit = found.as_json()
    result.republished = stage.republished(name)
    for kind in dict.fromkeys(sorted(kinds)):
        times = [struck["recovery_s"] for struck in result.struck if struck["kind"] == kind]
        result.recovery_s[kind] = {"median": statistics.median(times), "worst": max(times)}
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
