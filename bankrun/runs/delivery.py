"""One delivery: transfers are accepted, published, taken by the instances that join, and waited for.

    with Delivery(lab, Submission(name, "row-lock", name)) as delivery:
        delivery.accept(orders)
        delivery.publish(orders)
        delivery.join(lab.instances)
        wait(lambda: count_pending(lab.database), Patience(seconds_max=120))

Where a run is measured, publishing comes before the join: all messages are there before the first one is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

from celery import Celery
from sqlalchemy import text

from bank.errors import BankError
from bank.orders import Order
from bank.postgres.database import Database
from bankrun.runs.boundary import LOST_SERVER
from workers.app import TASK
from workers.fleet import Fleet, InstanceInfo
from workers.submission import Submission, abandon, accept, publish

POLL_SECONDS = 0.05
CHECK_SECONDS = 1.0
ASKING_SHARE = 1 / 20
"""So much of the time may go into asking how far it is: the question must not become the load."""
CLOSE_SECONDS_MAX = 5.0

T = TypeVar("T")


class Site(Protocol):
    """Where transfers are delivered: a bank, a broker, and the instances on it."""

    @property
    def database(self) -> Database:
        """The bank."""

    @property
    def app(self) -> Celery:
        """What sends messages to the broker."""

    @property
    def fleet(self) -> Fleet:
        """The instances."""


class Delivery:
    """A run's transfers on their way to the instances that join, for the block.

    After the block no instance takes from the run's queue, the queue is gone, and no reconciler publishes the transfers
    again. Without a block all of that stays as it is: the transfers are on their way for as long as it takes.
    ``insist_seconds`` is how long publishing, joining and leaving are tried again while a server is away.
    """

    def __init__(self, site: Site, submission: Submission, *, insist_seconds: float = 0.0) -> None:
        self.submission = submission
        self._site = site
        self._insist_seconds = insist_seconds
        self._joined: dict[str, InstanceInfo] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = min(self._insist_seconds, CLOSE_SECONDS_MAX)
        # A server that is gone has forgotten the run; and an error of the block must not be hidden by one from here.
        with suppress(*LOST_SERVER):
            insist(lambda: abandon(self._site.database, self.submission.run), seconds)
            insist(self.withdraw, seconds)

    def accept(self, orders: Iterable[Order], *, forgettable: bool = False) -> None:
        """Write the orders into the bank as pending transfers. A run may be accepted in parts."""
        accept(self._site.database, orders, self.submission, forgettable=forgettable)

    def publish(
        self,
        orders: Sequence[Order],
        *,
        task: str = TASK,
        progress: Callable[[int], None] = lambda published: None,
    ) -> None:
        """Tell the workers of accepted orders.

        Where the broker goes away meanwhile, it goes on from the last round trip that was answered, for as long as this
        delivery insists: what had arrived all the same is delivered twice, and decided once.
        """
        sent = 0

        def go_on() -> None:
            begin = sent

            def count(published: int) -> None:
                nonlocal sent
                sent = begin + published
                progress(sent)

            publish(self._site.app, orders[begin:], self.submission, task=task, progress=count)

        insist(go_on, self._insist_seconds)

    def join(
        self,
        instances: Sequence[InstanceInfo],
        *,
        seconds_max: float | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Let instances take from the run's queue, from now on.

        Those that do not answer are asked again for ``seconds_max``, by default as long as this delivery insists, and
        ``meanwhile`` is called before each time. Raises BankError if one still does not.
        """
        self._joined |= {info.node: info for info in instances}
        insist(
            lambda: self._site.fleet.join(self.submission.queue, instances),
            self._insist_seconds if seconds_max is None else seconds_max,
            meanwhile,
        )

    def call(self, instances: Sequence[InstanceInfo]) -> None:
        """Let instances take from the run's queue, and wait for no answer: one may end or stop at its first message."""
        self._joined |= {info.node: info for info in instances}
        insist(lambda: self._site.fleet.call(self.submission.queue, instances), self._insist_seconds)

    def join_again(self, timeout_seconds: float) -> set[str]:
        """Let those that have been started again meanwhile take part; return the names of all that answer."""
        return self._site.fleet.join_again(self.submission.queue, list(self._joined.values()), timeout_seconds)

    def withdraw(self) -> None:
        """Let no instance take from the queue any more, and remove it with what is left in it."""
        self._site.fleet.leave(self.submission.queue, list(self._joined.values()))


def insist(act: Callable[[], T], seconds_max: float, meanwhile: Callable[[], None] = lambda: None) -> T:
    """Return what ``act`` returns, once the servers that it needs are back. Raises its error if they stay away.

    ``meanwhile`` is called before each new attempt; what it raises ends the matter.
    """
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            return act()
        except LOST_SERVER:
            if time.monotonic() > deadline:
                raise
        meanwhile()
        time.sleep(POLL_SECONDS)


# --- how far it is ---


class Stalled(BankError):
    """What was waited for did not come. ``left`` is how much of it was missing at the end."""

    def __init__(self, sentence: str, left: int) -> None:
        super().__init__(sentence)
        self.left = left


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: at most ``seconds_max``, and at most ``stalled_seconds`` in which nothing moves.

    Servers may be away for ``outage_seconds`` at a time.
    """

    seconds_max: float = math.inf
    stalled_seconds: float = math.inf
    outage_seconds: float = 0.0
    poll_seconds: float = POLL_SECONDS


def follow(
    ask: Callable[[], int],
    patience: Patience,
    *,
    most: int = 0,
    check: Callable[[], None] = lambda: None,
    what: str = "transfers are pending",
) -> Iterator[int]:
    """Yield what ``ask`` returns, every now and then, until it is no more than ``most``.

    It is stalled when the number has not changed for too long. Raises Stalled when the patience is over; what ``check``
    raises, which is called every second and looks after the processes; and what ``ask`` raises when a server is away
    for too long. ``what`` goes into the sentence of Stalled.
    """
    began = moved_at = check_at = answered_at = time.monotonic()
    before, cost = -1, 0.0
    while True:
        asked_at = time.monotonic()
        try:
            left = ask()
        except LOST_SERVER:
            if time.monotonic() - answered_at > patience.outage_seconds:
                raise
            time.sleep(patience.poll_seconds)
            continue
        answered_at = time.monotonic()
        # The cheaper of the last two: one that a server held up says nothing about the load.
        cost_before, cost = cost, answered_at - asked_at
        yield left
        if left <= most:
            return
        now = time.monotonic()
        if left != before:
            before, moved_at = left, now
        if now - began > patience.seconds_max:
            raise Stalled(f"after {patience.seconds_max:g} s, {what} still", left)
        if now - moved_at > patience.stalled_seconds:
            raise Stalled(f"{left} {what}, and nothing has moved for {now - moved_at:.0f} s: is a worker up?", left)
        if now > check_at:
            check()
            check_at = time.monotonic() + CHECK_SECONDS
        time.sleep(max(patience.poll_seconds, min(cost_before, cost) / ASKING_SHARE))


def wait(
    ask: Callable[[], int],
    patience: Patience,
    *,
    most: int = 0,
    check: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda left: None,
    what: str = "transfers are pending",
) -> int:
    """Wait until no more than ``most`` are left, and return how many are. Raises what ``follow`` raises.

    ``progress`` is called with how many are left, every now and then.
    """
    left = 0
    for left in follow(ask, patience, most=most, check=check, what=what):
        progress(left)
    return left


def count_pending(database: Database) -> int:
    """Return how many of the bank's transfers have no outcome yet."""
    return _ask(database, "SELECT count(*) FROM transfers WHERE status = 'pending'")


def withdraw_pending(database: Database) -> int:
    """Take back the transfers that nobody has begun, and return how many: workers drop a message without a transfer.

    One that is being applied is locked, and stays.
    """
    with database.transaction() as transaction:
        gone = transaction.execute(
            "DELETE FROM transfers USING"
            " (SELECT id FROM transfers WHERE status = 'pending' FOR UPDATE SKIP LOCKED) AS idle"
            " WHERE transfers.id = idle.id"
        )
        return gone.rowcount


def any_pending(database: Database) -> int:
    """Return 1 if one of the bank's transfers has no outcome yet, else 0.

    It looks for the first one, and costs the same however many there are.
    """
    return _ask(database, "SELECT count(*) FROM (SELECT FROM transfers WHERE status = 'pending' LIMIT 1) AS first")


def _ask(database: Database, question: str) -> int:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return int(connection.execute(text(question)).scalar_one())
