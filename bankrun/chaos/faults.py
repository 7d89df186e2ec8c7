"""What goes wrong on purpose, a function a fault. Each returns when the fault is over; then it is up to the system."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from bank.errors import unknown
from bank.orders import Order
from bankrun.chaos.targets import STEP_SECONDS_MAX, Missed, Targets, faketime_library
from bankrun.runs.boundary import LOST_SERVER
from bankrun.runs.delivery import Delivery
from workers.control.failpoints import Action, Point
from workers.process.reconciler import Reconciler
from workers.submission import Submission

OUTAGE_SECONDS = 1.0
REDIS, RABBITMQ = "Redis", "RabbitMQ"


@dataclass(slots=True)
class Scene:
    """One cell while its transfers flow: what faults act upon. ``chance`` makes the choices that the seed decides.

    ``failed`` is how many transfers this fault must leave as failed, with a reason that contains ``failed_because``.
    """

    targets: Targets
    names: Sequence[str]
    orders: Sequence[Order]
    delivery: Delivery
    chance: random.Random
    failed: int = 0
    failed_because: str = ""
    over_at: float = 0.0
    armed: str = ""

    @property
    def submission(self) -> Submission:
        """How the transfers are published."""
        return self.delivery.submission

    def over(self) -> None:
        """Note that the damage is done: from here on it is recovery."""
        self.over_at = time.monotonic()

    def arm(self, point: Point, action: Action) -> str:
        """Arm a failpoint in one of the instances, unless one is armed already, and return its name.

        It lets some transfers pass, as the seed says: few enough for it to be reached before there are no more.
        """
        if not self.armed:
            self.armed = self.an_instance()
            passes = self.chance.randint(1, max(1, len(self.orders) // (12 * len(self.names))))
            self.targets.arm(self.armed, point, action, passes=passes)
        return self.armed

    def an_instance(self) -> str:
        """Return one of the instances that take part."""
        return self.chance.choice(self.names)


@dataclass(frozen=True, slots=True)
class Fault:
    """A thing that goes wrong. ``before`` acts when the transfers are accepted, instead of publishing them all.

    ``point`` is where it strikes inside a transaction: that is armed before the first transfer comes by, since they are
    soon gone. ``quick`` ones need no wait for a timeout; a few that others resemble are left out. ``breaks_leases``
    says that a strategy which does not survive a paused holder claims nothing under it. ``starts_one`` says that a new
    instance has to start, which is most of what it takes. ``needs`` is the only kind of broker that it can be had with,
    and ``missing`` says why it cannot be had on this machine.
    """

    name: str
    summary: str
    strike: Callable[[Scene], None] | None = None
    before: Callable[[Scene], None] | None = None
    point: tuple[Point, Action] | None = None
    quick: bool = True
    needs_network: bool = False
    breaks_leases: bool = False
    starts_one: bool = False
    needs: str = ""
    missing: Callable[[], str] = lambda: ""


# --- instances ---


def _kill(scene: Scene) -> None:
    name = scene.an_instance()
    scene.targets.kill(name)
    scene.over()
    scene.targets.revive(name)


def _kill_at(point: Point) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        name = scene.arm(point, "kill")
        scene.targets.await_death(name)
        scene.over()
        scene.armed = ""
        scene.targets.revive(name)

    return strike


def _kill_when_a_message_wakes_it(scene: Scene) -> None:
    """Let one instance wait for messages, and end with the first that it gets, before it can have done anything."""
    targets, name = scene.targets, scene.an_instance()
    targets.arm(name, "receive", "kill")
    targets.join(name)
    time.sleep(OUTAGE_SECONDS)
    scene.delivery.publish(scene.orders)
    targets.await_death(name)
    scene.over()
    targets.revive(name)


def _pause_holder(scene: Scene) -> None:
    settings = scene.targets.settings
    # Longer than a lease and than a wait for a lock, and shorter than Postgres lets a transaction idle.
    longer = (settings.lock_timeout_ms + settings.idle_timeout_ms) / 2_000
    scene.targets.pause_armed(scene.arm("after-read", "stop"), longer)
    scene.armed = ""


def _kill_each_time(scene: Scene) -> None:
    """Choose a transfer at which every instance ends that comes to it."""
    transfer = str(scene.orders[len(scene.orders) // 2].id)
    for name in scene.names:
        scene.targets.arm(name, "claim", "exit", transfer)
    scene.delivery.publish(scene.orders)
    scene.failed, scene.failed_because = 1, "its instance ended each time"


def _revive_until_failed(scene: Scene) -> None:
    transfer = str(scene.orders[len(scene.orders) // 2].id)
    targets = scene.targets
    deadline = time.monotonic() + 4 * STEP_SECONDS_MAX

    def has_failed() -> bool:
        with suppress(*LOST_SERVER):
            return targets.count("failed") == 1
        return False

    while not has_failed():
        if time.monotonic() > deadline:
            raise Missed("the transfer that ends its instance has not failed")
        for name in scene.names:
            if not targets.is_alive(name):
                targets.revive(name, join=False)
                targets.arm(name, "claim", "exit", transfer)  # before it takes part
                targets.call(name)
        time.sleep(0.1)
    scene.over()
    for name in scene.names:
        if not targets.is_alive(name):
            targets.revive(name)


def _wrong_clock(scene: Scene) -> None:
    name = scene.an_instance()
    targets = scene.targets
    hours = scene.chance.choice(["+1h", "-1h"])
    targets.keeper.stop([name], grace_seconds=STEP_SECONDS_MAX)
    targets.revive(name, LD_PRELOAD=str(faketime_library()), FAKETIME=hours, FAKETIME_DONT_FAKE_MONOTONIC="1")
    time.sleep(OUTAGE_SECONDS)
    scene.over()
    targets.kill(name)  # so that what it had in its hands comes back by a clock that is right
    targets.revive(name)


def _no_faketime() -> str:
    return "" if faketime_library() else "libfaketime is not installed (Debian: apt install libfaketime)"


# --- the network between the instances and Postgres ---


def _swallow_commit(scene: Scene) -> None:
    if not scene.targets.proxy.swallow_commit(STEP_SECONDS_MAX):
        raise Missed("no COMMIT came by")


def _cut(scene: Scene) -> None:
    scene.targets.proxy.cut()


def _half_open(scene: Scene) -> None:
    scene.targets.proxy.half_open()
    time.sleep(scene.targets.settings.attempt_timeout_ms / 1000)


def _silence(scene: Scene) -> None:
    scene.targets.proxy.silence()
    try:
        time.sleep(1.3 * scene.targets.settings.attempt_timeout_ms / 1000)
    finally:
        scene.targets.proxy.speak()


# --- Postgres ---


def _restart_postgres(scene: Scene) -> None:
    scene.targets.restart_postgres(signal.SIGINT)


def _crash_postgres(scene: Scene) -> None:
    scene.targets.restart_postgres(signal.SIGQUIT)


def _end_sessions(scene: Scene) -> None:
    scene.targets.end_sessions()


def _freeze_postgres(scene: Scene) -> None:
    scene.targets.freeze_postgres(1.3 * scene.targets.settings.attempt_timeout_ms / 1000)


def _take_all_connections(scene: Scene) -> None:
    scene.targets.take_all_connections(OUTAGE_SECONDS)


def _fill_disk(scene: Scene) -> None:
    scene.targets.fill_disk(OUTAGE_SECONDS)


# --- the broker and its messages ---


def _empty_redis(scene: Scene) -> None:
    scene.targets.restart_redis(kept=False)


def _restart_redis(scene: Scene) -> None:
    scene.targets.restart_redis(kept=True)


def _restart_rabbitmq(scene: Scene) -> None:
    scene.targets.restart_rabbitmq()


def _cut_rabbitmq(scene: Scene) -> None:
    scene.targets.broker_proxy.cut()


def _silence_rabbitmq(scene: Scene) -> None:
    scene.targets.broker_proxy.silence()
    try:
        time.sleep(scene.targets.settings.visibility_timeout_ms / 1000)
    finally:
        scene.targets.broker_proxy.speak()


def _delete_messages(scene: Scene) -> None:
    scene.targets.messages.delete_some(scene.submission.queue, scene.chance)


def _repeat_messages(scene: Scene) -> None:
    scene.targets.messages.repeat_some(scene.submission.queue)


def _poison_messages(scene: Scene) -> None:
    """Change some messages to nonsense, add others, and accept a transfer for a strategy that does not exist."""
    queue = scene.submission.queue
    scene.targets.messages.poison_some(queue, scene.chance)
    unknown = f"no-such-lock-{uuid4().hex[:8]}"
    first = scene.orders[0]
    stranger = Delivery(scene.targets, Submission(unknown, unknown, queue))
    stranger.accept([Order(uuid4(), first.debit, first.credit, 1)])
    scene.failed, scene.failed_because = scene.failed + 1, "there is no strategy"


def _submitter_dies(scene: Scene) -> None:
    """Let a process of its own publish the transfers; it is killed when some of them are sent."""
    targets = scene.targets
    some = scene.chance.randint(1, len(scene.orders) * 3 // 4)
    targets.keeper.spawn(
        "submitter",
        [sys.executable, "-P", "-m", "bankrun.chaos.submitter", scene.submission.run, str(some)],
        env=targets.environment,
        cwd=targets.servers.state_dir,
        log=targets.log_path / "submitter.log",
    )
    if targets.keeper.wait("submitter", STEP_SECONDS_MAX) != -signal.SIGKILL:
        raise Missed(f"the submitter was not killed; see {targets.log_path / 'submitter.log'}")


def _two_reconcilers(scene: Scene) -> None:
    """Lose what is in the queue, and let two reconcilers that know nothing of each other publish it again."""
    targets = scene.targets
    targets.messages.delete_all(scene.submission.queue)
    published: list[int] = []

    def look() -> None:
        reconciler = Reconciler(targets.database, targets.app, wait_seconds=0)
        until = time.monotonic() + OUTAGE_SECONDS
        while time.monotonic() < until:
            with suppress(*LOST_SERVER):
                published.append(reconciler.look(alone=False))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill", "an instance is killed at a random moment", _kill, quick=False, starts_one=True),
        Fault(
            "kill-while-receiving",
            "killed when it has taken messages, and before it can have noted them",
            _kill_at("receive"),
            point=("receive", "kill"),
            starts_one=True,
        ),
        Fault(
            "kill-while-waiting",
            "the same, of an instance that was waiting for messages",
            before=_kill_when_a_message_wakes_it,
            starts_one=True,
        ),
        Fault(
            "kill-between-writes",
            "killed between the debit and the credit",
            _kill_at("between-writes"),
            point=("between-writes", "kill"),
            starts_one=True,
        ),
        Fault(
            "kill-before-commit",
            "killed right before COMMIT",
            _kill_at("before-commit"),
            point=("before-commit", "kill"),
            starts_one=True,
            quick=False,
        ),
        Fault(
            "kill-after-commit",
            "killed between COMMIT and the acknowledgement",
            _kill_at("after-commit"),
            point=("after-commit", "kill"),
            starts_one=True,
        ),
        Fault(
            "pause-holder",
            "stopped between read and write, for longer than a lease and than a wait for a lock",
            _pause_holder,
            point=("after-read", "stop"),
            breaks_leases=True,
        ),
        Fault(
            "killer-transfer",
            "a transfer at which every instance ends",
            _revive_until_failed,
            before=_kill_each_time,
            quick=False,
        ),
        Fault("wrong-clock", "an instance's clock is an hour off", _wrong_clock, quick=False, missing=_no_faketime),
        Fault("lost-answer", "a COMMIT whose answer is lost", _swallow_commit, needs_network=True),
        Fault("cut", "all connections to Postgres are cut", _cut, needs_network=True),
        Fault(
            "half-open",
            "Postgres' end of each connection is gone",
            _half_open,
            quick=False,
            needs_network=True,
            breaks_leases=True,
        ),
        Fault(
            "silent-network",
            "every byte is dropped, both ways",
            _silence,
            quick=False,
            needs_network=True,
            breaks_leases=True,
        ),
        Fault("postgres-restart", "Postgres is restarted (fast)", _restart_postgres),
        Fault("postgres-crash", "Postgres is restarted (immediate), and recovers", _crash_postgres),
        Fault("terminate", "pg_terminate_backend on every session", _end_sessions),
        Fault(
            "postgres-frozen",
            "Postgres is stopped for longer than an attempt",
            _freeze_postgres,
            quick=False,
            breaks_leases=True,
        ),
        Fault("no-connections", "Postgres has no connection left", _take_all_connections),
        Fault("disk-full", "Postgres cannot write: 53100", _fill_disk),
        Fault("redis-restart", "Redis is killed and restarted with its log", _restart_redis, quick=False, needs=REDIS),
        Fault("redis-emptied", "Redis is killed and restarted empty", _empty_redis, needs=REDIS),
        Fault("rabbitmq-restart", "RabbitMQ is restarted", _restart_rabbitmq, quick=False, needs=RABBITMQ),
        Fault("rabbitmq-cut", "all connections to RabbitMQ are cut", _cut_rabbitmq, needs=RABBITMQ),
        Fault(
            "rabbitmq-silent",
            "every byte to and from RabbitMQ is dropped",
            _silence_rabbitmq,
            quick=False,
            needs=RABBITMQ,
        ),
        Fault("messages-lost", "messages are deleted from the broker", _delete_messages),
        Fault("messages-repeated", "messages are duplicated in the broker", _repeat_messages),
        Fault("messages-poisoned", "messages are nonsense, or say what was not accepted", _poison_messages),
        Fault("submitter-dies", "the submitter is killed halfway through publishing", before=_submitter_dies),
        Fault("two-reconcilers", "all messages are lost, and two reconcilers publish them", _two_reconcilers),
    )
}
"""In the order in which they are shown."""


def fault_named(name: str) -> Fault:
    """Return a fault. Raises CannotStart for a name that does not exist."""
    if name in FAULTS:
        return FAULTS[name]
    raise unknown("fault", name, FAULTS)


def faults_with(broker: str) -> tuple[str, ...]:
    """Return the names of all faults for a kind of broker: on RabbitMQ, those that need Redis are there to be named."""
    return tuple(name for name, fault in FAULTS.items() if broker == RABBITMQ or fault.needs != RABBITMQ)
