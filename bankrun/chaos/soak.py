"""Many faults, one after another, under one long run."""

from __future__ import annotations

import random
import secrets
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from bank.audit import audit
from bank.errors import CannotStart
from bank.orders import Order
from bank.outside import strategy_named
from bank.postgres.schema import open_bank
from bank.strategies import Claim
from bankrun.chaos.targets import STEP_SECONDS_MAX, Targets
from bankrun.results.models.soak import Recovery, Soak, SoakLoad, Strike
from bankrun.results.provenance import check_seed, write_command
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.boundary import LOST_SERVER
from bankrun.runs.delivery import Delivery, Patience, Stalled, count_pending, wait
from bankrun.runs.provenance import begin
from workers.submission import Submission

QUIET_FRACTION = 0.05
"""So much of the transfers is left alone at the end: the last fault must strike while there is work."""
STALLED_SECONDS = 180.0
CUT_SECONDS_MAX = 3.0
"""So long a soak that is cut short waits for a server that it has struck."""


@dataclass(frozen=True, slots=True)
class SoakPlan(SoakLoad):
    """How much, and what strikes: a plain value. Raises CannotStart for what makes no sense."""

    def __post_init__(self) -> None:
        if min(self.kills, self.pauses, self.postgres_restarts, self.redis_restarts) < 0:
            raise CannotStart("kills, pauses and restarts are 0 or more")
        if self.transfers < 20 * self.faults:
            raise CannotStart(f"transfers={self.transfers}: {self.faults} faults need {20 * self.faults} at least")
        if not self.faults:
            raise CannotStart("a soak needs at least one fault: give --kills, for example")
        check_seed(self.seed)
        _ = self.workload  # which refuses what makes no bank

    def check_strategy(self) -> None:
        """Look up the strategy, before anything starts. Raises CannotStart for one that is not to survive all this."""
        strategy = strategy_named(self.strategy)
        if strategy.claim is not Claim.EVERYWHERE or strategy.routed_to_one:
            raise CannotStart(f"{self.strategy} does not claim to hold on any number of instances: use another")
        if self.pauses and strategy.survives_pause is False:
            raise CannotStart(f"{self.strategy} does not survive a paused holder: give --pauses 0, or another strategy")

    @property
    def workload(self) -> Workload:
        """Return the bank, and the transfers that it gets."""
        return Workload(accounts=self.accounts, transfers=self.transfers, think_ms=self.think_ms)

    def schedule(self, chance: random.Random) -> list[str]:
        """Return what strikes, in the order in which it does. The seed decides; one restart empties Redis."""
        restarts = ["redis-emptied" if number == 0 else "redis-restart" for number in range(self.redis_restarts)]
        postgres = ["postgres-crash" if number % 2 else "postgres-restart" for number in range(self.postgres_restarts)]
        kinds = ["kill"] * self.kills + ["pause"] * self.pauses + postgres + restarts
        chance.shuffle(kinds)
        return kinds


def begin_soak(targets: Targets, plan: SoakPlan, topology: Topology) -> Soak:
    """Return a result that begins now, in which nothing has happened yet. Raises CannotStart if it thinks too long."""
    plan.workload.check_idle_timeout(targets.settings.idle_timeout_ms)
    # The names of a plan's values are those of the command's options.
    command = write_command("soak", topology=str(topology), **asdict(plan))
    instances = list(targets.infos.values())
    provenance = begin(
        command, targets.database, targets.app, targets.settings, instances, embedded=True, seed=plan.seed
    )
    return Soak(provenance, plan, str(topology))


def run_soak(targets: Targets, plan: SoakPlan, result: Soak, tell: Callable[[int, str], None]) -> None:
    """Run it. ``tell`` is called with how many transfers have their outcome, and what struck last.

    What was found until then is in the result also if it is cut short.
    """
    workload = plan.workload
    name = f"soak-{secrets.token_hex(4)}"
    open_bank(targets.database, accounts=workload.accounts, opening=workload.opening)
    started = time.monotonic()
    try:
        _let_flow(targets, plan, result, name, tell)
    except BaseException:
        with suppress(*LOST_SERVER):
            targets.stop_all()  # what they have in hand would go on meanwhile
        with suppress(*LOST_SERVER):  # what was struck may be away
            _add_up(targets, result, name, started, insist_seconds=CUT_SECONDS_MAX)
        raise
    _add_up(targets, result, name, started)


def _let_flow(targets: Targets, plan: SoakPlan, result: Soak, name: str, tell: Callable[[int, str], None]) -> None:
    """Send the transfers, and let one fault strike after the other."""
    chance = random.Random(plan.seed)
    kinds = plan.schedule(chance)
    orders = list(plan.workload.orders(plan.seed))
    submission = Submission(name, plan.strategy, name, think_ms=plan.think_ms)
    with Delivery(targets, submission, insist_seconds=STEP_SECONDS_MAX) as delivery:
        delivery.accept(orders)
        threading.Thread(target=_publish, args=(delivery, orders), daemon=True).start()
        targets.delivery = delivery
        for one in targets.infos:
            targets.join(one)
        for number, kind in enumerate(kinds):
            due = int(plan.transfers * (1 - QUIET_FRACTION) * (number + chance.random()) / len(kinds))
            left = _await(targets, plan, due, lambda decided, kind=kind: tell(decided, f"next: {kind}"))  # type: ignore[misc]
            seconds = _strike(targets, kind, chance)
            result.struck.append(Strike(kind, due, round(seconds, 3), left))
            tell(due, kind)
        _await(targets, plan, plan.transfers, lambda decided: tell(decided, "no more faults"))
        targets.delivery = None


def _add_up(targets: Targets, result: Soak, name: str, started: float, *, insist_seconds: float = 0.0) -> None:
    """Audit the bank, and add up what struck."""
    result.seconds = round(time.monotonic() - started, 1)
    found = targets.insist(lambda: audit(targets.database), insist_seconds)
    result.transfers = found.transfers
    result.lost_postings, result.duplicates, result.drift = found.lost_postings, found.duplicates, found.drift
    result.audit = found
    result.republished = targets.count_republished(name)
    for kind in sorted({struck.kind for struck in result.struck}):
        times = [struck.recovery_s for struck in result.struck if struck.kind == kind]
        result.recovery_s[kind] = Recovery(statistics.median(times), max(times))


def _publish(delivery: Delivery, orders: Sequence[Order]) -> None:
    """Publish, and go on once Redis is back: what it has forgotten the reconcilers find."""
    with suppress(*LOST_SERVER):
        delivery.publish(orders)


def _await(targets: Targets, plan: SoakPlan, due: int, tell: Callable[[int], None]) -> int:
    """Wait until so many transfers are decided, and return how many are left.

    Raises Stalled where nothing moves for three minutes.
    """
    try:
        return wait(
            lambda: count_pending(targets.database),
            Patience(stalled_seconds=STALLED_SECONDS, outage_seconds=STALLED_SECONDS),
            most=plan.transfers - due,
            progress=lambda pending: tell(plan.transfers - pending),
        )
    except Stalled as stalled:
        standing = targets.find_standing(plan.strategy)
        raise Stalled(f"{standing}: {stalled}" if standing else str(stalled), stalled.left) from None


def _strike(targets: Targets, kind: str, chance: random.Random) -> float:
    """Let one fault strike, and return how long it took until what was struck worked again, in seconds."""
    name = chance.choice(sorted(targets.infos))
    if kind in ("kill", "pause"):
        before = targets.insist(lambda: targets.count_by(name))
        if kind == "kill":
            targets.kill(name)
            over = time.monotonic()
            targets.revive(name)
        else:
            targets.pause(name, chance.uniform(0.1, 1.5 * targets.settings.lock_timeout_ms / 1000))
            over = time.monotonic()
        _until_moving(targets, lambda: targets.count_by(name) > before, f"{name} works again")
        return time.monotonic() - over
    if kind.startswith("postgres"):
        targets.restart_postgres(signal.SIGINT if kind == "postgres-restart" else signal.SIGQUIT)
    else:
        targets.restart_redis(kept=kind == "redis-restart")
    over = time.monotonic()
    before = targets.insist(lambda: targets.count("applied", "refused"))
    _until_moving(targets, lambda: targets.count("applied", "refused") > before, "an instance works again")
    return time.monotonic() - over


def _until_moving(targets: Targets, moves: Callable[[], bool], what: str) -> None:
    """Wait until something moves, or nothing is left that could."""
    targets.until(lambda: moves() or not count_pending(targets.database), what, STALLED_SECONDS)
