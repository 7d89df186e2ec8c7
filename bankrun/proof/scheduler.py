"""Run a few transfers one step at a time, in an order that somebody chooses.

The transfers run the same teller and strategy as in a worker, each in a thread of its own with a connection of its own.
That connection stops before each statement that touches an account, and before each COMMIT and ROLLBACK, until the
scheduler lets it go on; a pace of our own does the same with guards and retries. What waits for a lock in Postgres is
asked of Postgres (``pg_blocking_pids``), never guessed with a sleep.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
from psycopg.pq import TransactionStatus

from bank import outside
from bank.errors import BankError, StrategyFault
from bank.orders import Order
from bank.outside import Borrowed
from bank.postgres.database import Database, Transaction, psql_url
from bank.receipts import Cost
from bank.settings import Settings
from bank.strategies import ChunkStrategy, Guard, Strategy
from bank.teller import Pace, Teller

DEADLOCK_TIMEOUT_MS = 2
"""A waiter looks for a deadlock once, this long after it began to wait (manual, 19.12). Once it has looked, in vain,
the one that closes a circle is the victim, every time: so a waiter is left alone for three times as long."""
RETRIES_MAX = 2
STEP_SECONDS_MAX = 10.0
CLOCK = "t"
"""The participant that is no transfer: time, in which a lease runs out."""

_TOUCHES = re.compile(r"\b(accounts|fences|LOCK TABLE)\b|advisory|ROLLBACK TO", re.IGNORECASE)
_LOCKS = re.compile(
    r"\b(UPDATE|INSERT INTO|DELETE FROM)\s+(accounts|fences)\b|\bFOR\s+(NO KEY\s+)?(UPDATE|SHARE)\b"
    r"|LOCK TABLE|advisory|ROLLBACK TO",
    re.IGNORECASE,
)
_TELLERS = re.compile(r"\b(UPDATE|FROM|INTO)\s+(transfers|entries)\b|SAVEPOINT", re.IGNORECASE)
_CLAIMS = re.compile(r"\b(UPDATE|FROM)\s+transfers\b", re.IGNORECASE)


class Abandoned(BaseException):
    """The rest of this execution is not needed: undo it."""


class Truncated(BankError):
    """A transfer was run again as often as the proof allows."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a transfer is about to do.

    Two steps commute unless both lock the same thing, or one shows what the other reads.
    """

    kind: str
    text: str
    locks: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    shows: frozenset[str] = frozenset()

    def depends_on(self, other: Step) -> bool:
        """Return whether the order of these two steps can make a difference."""
        return bool(self.locks & other.locks or self.shows & other.reads or self.reads & other.shows)


@dataclass(slots=True)
class Event:
    """A step that a participant took, what came of it, and what it did on its own account before its next one."""

    who: str
    kind: str
    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""
    waited_for: str = ""
    then: list[Event] = field(default_factory=list)


class Participant:
    """One transfer: a thread that stops before each step."""

    def __init__(self, name: str, scheduler: Scheduler) -> None:
        self.name = name
        self.scheduler = scheduler
        self.backend_pid = 0
        self.next: Step | None = None
        self.held: Guard | None = None
        self.guard_is_taken = False
        self.rests = False
        self.done = True
        self.thread: int | None = None
        self.hangs = False
        self.all_statements = False
        self.retries = 0
        self.locked: set[str] = set()
        self.read: set[str] = set()
        self.in_snapshot = False
        self.event = Event(name, "begin", "begins")
        self._go = threading.Semaphore(0)

    def reset(self) -> None:
        """Forget the last execution."""
        self.next = self.held = None
        self.guard_is_taken = self.rests = self.in_snapshot = False
        self.done, self.retries = False, 0
        self.locked.clear()
        self.read.clear()
        self.event = Event(self.name, "begin", "begins")

    def note(self, kind: str, text: str, parameters: object, result: str, step: Step | None) -> None:
        """Remember what happened: what came of the step that was chosen, or something that follows it.

        What comes once the execution was abandoned never happened: whoever was in the way has been rolled back.
        """
        text = " ".join(text.split())
        shown = dict(parameters) if isinstance(parameters, Mapping) else {}
        if self.scheduler.abandoned:
            if step is not None:
                self.event.text, self.event.parameters = text, shown
        elif step is None:
            self.event.then.append(Event(self.name, kind, text, shown, result))
        else:
            self.event.text, self.event.parameters, self.event.result = text, shown, result

    def stop_before(self, step: Step) -> None:
        """Wait until the scheduler chooses this step. Raises Abandoned if it never will."""
        with self.scheduler.changed:
            if self.scheduler.abandoned:
                raise Abandoned
            self.next = step
            self.scheduler.changed.notify_all()
        self._go.acquire()
        if self.scheduler.abandoned:
            raise Abandoned

    def go(self) -> None:
        """Let it take its step."""
        self.next = None
        self._go.release()

    @property
    def can_go(self) -> bool:
        """Whether choosing it would make something happen."""
        return self.next is not None and not self.guard_is_taken and not self.rests

    # What the connection reports.

    def statement(self, query: str, parameters: Mapping[str, Any] | None, isolation: object) -> Step | None:
        """Return the step that a statement is, or None if nobody can tell when it ran."""
        shared = self.scheduler.shared_transfers
        values = (parameters or {}).values()
        touched = {
            f"account {value}" for value in values if isinstance(value, int) and value in self.scheduler.accounts
        }
        claims = bool(shared and _CLAIMS.search(query))
        first_in_snapshot = isolation is not None and not self.in_snapshot
        is_tracked = isolation is psycopg.IsolationLevel.SERIALIZABLE and bool(touched)
        if not (_TOUCHES.search(query) or claims or first_in_snapshot or is_tracked):
            if not self.all_statements or _TELLERS.search(query):
                return None
            # A function, or a table of theirs: nobody can tell what it locks, so nothing commutes with it.
            self.locked |= self.scheduler.everything
            return Step("statement", " ".join(query.split()), locks=self.scheduler.everything)
        if not touched and (first_in_snapshot or not claims):
            touched = set(self.scheduler.everything)
        if claims:
            touched = touched | {"transfer"} if first_in_snapshot else {"transfer"}
        if "ROLLBACK TO" in query:
            touched = set(self.locked)
        text = " ".join(query.split())
        if isolation is not None:
            # What a snapshot sees is fixed by its first statement; what SERIALIZABLE makes of it, by all of them.
            self.in_snapshot = True
            self.locked |= touched
            return Step("statement", text, locks=frozenset(touched), reads=frozenset(touched))
        if claims or _LOCKS.search(query):
            self.locked |= touched
            return Step("statement", text, locks=frozenset(touched))
        self.read |= touched
        return Step("statement", text, reads=frozenset(touched))

    def end_of_transaction(self, kind: str) -> Step | None:
        """Return the step that a COMMIT or ROLLBACK is, or None if there is nothing that it could change."""
        locked, self.in_snapshot = frozenset(self.locked), False
        self.locked.clear()
        self.read.clear()
        return (
            Step(kind, kind.upper(), locks=locked, shows=locked if kind == "commit" else frozenset())
            if locked
            else None
        )


class WatchedCursor(psycopg.Cursor[Any]):
    """A cursor that stops before each statement that is a step, and tells what it found."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> WatchedCursor:
        """Run a statement when the scheduler says so."""
        participant = getattr(self.connection, "participant", None)
        if participant is None:
            super().execute(query, params, **options)
            return self
        step = participant.statement(str(query), params, self.connection.isolation_level)
        if step is not None:
            participant.stop_before(step)
        try:
            super().execute(query, params, **options)
        except psycopg.Error as error:
            participant.note("statement", str(query), params, f"fails with {error.sqlstate}", step)
            raise
        participant.note("statement", str(query), params, self._found(), step)
        return self

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """Run a statement for each set of parameters, as one step."""
        sets = list(params_seq)
        participant = getattr(self.connection, "participant", None)
        if participant is not None:
            together = {f"{key}_{number}": value for number, one in enumerate(sets) for key, value in one.items()}
            step = participant.statement(str(query), together, self.connection.isolation_level)
            if step is not None:
                participant.stop_before(step)
            participant.note("statement", str(query), together, f"{len(sets)} times", step)
        super().executemany(query, sets, **options)

    def _found(self) -> str:
        if self.description is None:
            return f"{self.rowcount} rows"
        rows = self.fetchall()
        self.scroll(0, "absolute") if rows else None
        return "; ".join(", ".join(_shown(value) for value in row) for row in rows) or "no row"


def _shown(value: object) -> str:
    return "∅" if value is None else value.strftime("now") if hasattr(value, "strftime") else str(value)


class WatchedConnection(psycopg.Connection[Any]):
    """A connection that stops before the end of each transaction in which something was locked."""

    participant: Participant | None = None

    def commit(self) -> None:
        """COMMIT when the scheduler says so."""
        self._end("commit", super().commit)

    def rollback(self) -> None:
        """ROLLBACK when the scheduler says so."""
        self._end("rollback", super().rollback)

    def _end(self, kind: str, end: Callable[[], None]) -> None:
        participant = self.participant
        if (
            participant is None
            or self.info.transaction_status == TransactionStatus.IDLE
            or participant.scheduler.abandoned
        ):
            end()
            return
        step = participant.end_of_transaction(kind)
        if step is not None:
            participant.stop_before(step)
        try:
            end()
        except psycopg.Error as error:
            participant.note(kind, kind.upper(), {}, f"fails with {error.sqlstate}", step)
            raise
        participant.note(kind, kind.upper(), {}, "", step)


class ScheduledPace(Pace):
    """Guards and retries as steps."""

    def __init__(self, participant: Participant) -> None:
        self._participant = participant

    def enter(self, guard: Guard, timeout_seconds: float) -> None:
        """Try to take the guard each time the scheduler says so."""
        participant, step = self._participant, Step("enter", "enter the guard", locks=self._resource(guard))
        participant.stop_before(step)
        while not guard.try_enter():
            participant.guard_is_taken = True
            participant.stop_before(step)
        participant.held = guard
        participant.note("enter", "enters the guard", {}, "", step)

    def leave(self, guard: Guard) -> None:
        """Give the guard back when the scheduler says so."""
        participant, step = self._participant, Step("leave", "leave the guard", locks=self._resource(guard))
        try:
            participant.stop_before(step)
        finally:  # also when the rest is not needed: the guard may be one that outlives this execution
            guard.leave()
            participant.held = None
        participant.scheduler.guard_left()
        participant.note("leave", "leaves the guard", {}, "", step)

    def think(self, transaction: Transaction, seconds: float) -> None:
        """Take no time: how long it takes is the scheduler's choice."""

    def before_retry(self, seconds_max: float) -> None:
        """Rest until the other has taken a step. Raises Truncated after ``RETRIES_MAX`` retries."""
        participant = self._participant
        participant.scheduler.check_given_back(participant.name)
        if participant.retries >= RETRIES_MAX:
            raise Truncated
        participant.retries += 1
        participant.rests = True
        participant.note("retry", "starts over", {}, "", None)

    def _resource(self, guard: Guard) -> frozenset[str]:
        return frozenset({"guard"})


@dataclass(frozen=True, slots=True)
class Execution:
    """One way in which the transfers met: who took each step, what happened, and what the receipts say."""

    choices: str
    steps: tuple[tuple[str, Step], ...]
    events: tuple[Event, ...]
    receipts: tuple[Cost, ...]
    truncated: bool
    complete: bool

    @property
    def conflicts(self) -> int:
        """Return how many attempts failed."""
        return sum(sum(receipt.conflicts.values()) for receipt in self.receipts)

    @property
    def deadlocks(self) -> int:
        """Return how many attempts were a deadlock's victim."""
        return sum(receipt.conflicts["deadlocks"] for receipt in self.receipts)


Choose = Callable[[Mapping[str, Step], int], str | None]
"""Given who can go and with what, and how many steps were taken: whom to let go. None abandons the execution."""


class Scheduler:
    """Owns the participants' threads and connections. Use as a context manager."""

    def __init__(self, url: str, settings: Settings, names: Sequence[str]) -> None:
        self.changed = threading.Condition()
        self.abandoned = False
        self.accounts: frozenset[int] = frozenset()
        self.everything: frozenset[str] = frozenset()
        self.shared_transfers = False
        self.leases_expire = False
        self._events: list[Event] = []
        self._settings = settings
        self.participants = {name: Participant(name, self) for name in names}
        self._strategies: Mapping[str, Strategy] = {}
        self._databases = {name: self._database(url, name) for name in names}
        self._borrowed = {name: Borrowed(database.engine) for name, database in self._databases.items()}
        self._monitor = psycopg.connect(psql_url(url), autocommit=True, application_name="bankrun scheduler")
        self._settled_ms = 3 * self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(StrategyFault):
            self._abandon()
        for database in self._databases.values():
            database.close()
        self._monitor.close()

    def _connect(self) -> float:
        """Open the participants' connections, and return the deadlock timeout that they have, in milliseconds."""
        timeout_ms = 0.0
        for name, database in self._databases.items():
            self.participants[name].reset()
            with database.transaction() as transaction:
                for (seconds,) in transaction.execute(
                    "SELECT extract(epoch FROM current_setting('deadlock_timeout')::interval)"
                ):
                    timeout_ms = float(seconds) * 1000
            self.participants[name].done = True
        return timeout_ms

    def _database(self, url: str, name: str) -> Database:
        def connect(conninfo: str, **arguments: Any) -> WatchedConnection:
            connection = WatchedConnection.connect(conninfo, cursor_factory=WatchedCursor, autocommit=True, **arguments)
            connection.execute("SET synchronous_commit = off")
            with suppress(psycopg.errors.InsufficientPrivilege):  # without it a deadlock takes longer, that is all
                connection.execute(f"SET deadlock_timeout = '{DEADLOCK_TIMEOUT_MS}ms'")
            connection.autocommit = False
            connection.participant = self.participants[name]
            connection.participant.backend_pid = connection.info.backend_pid
            return connection

        return Database.for_instance(url, instance=name, threads=1, settings=self._settings, connect=connect)

    def run(
        self,
        messages: Mapping[str, Sequence[Order]],
        strategies: Mapping[str, Strategy],
        accounts: Sequence[int],
        choose: Choose,
        *,
        leases_expire: bool = False,
    ) -> Execution:
        """Run one execution to its end, or until ``choose`` gives up.

        Raises StrategyFault, with the place, if a strategy raises what is no outcome, hangs, or keeps a connection or a
        guard. After one that hangs, this scheduler is of no more use.
        """
        self.abandoned = False
        self._strategies = strategies
        self.accounts = frozenset(accounts)
        self.everything = frozenset(f"account {account}" for account in accounts)
        ids = [order.id for message in messages.values() for order in message]
        self.shared_transfers = len(set(ids)) < len(ids)
        self._events = []
        self.leases_expire = leases_expire
        futures: dict[str, Future[Cost]] = {}
        for name in messages:
            self.participants[name].reset()
            self.participants[name].all_statements = outside.recall(strategies[name].name) is not None
            self._events.append(self.participants[name].event)
        steps: list[tuple[str, Step]] = []
        try:
            for number, (name, message) in enumerate(messages.items(), start=1):
                # One after the other: they draw from the same sequences on the way to their first steps.
                futures[name] = self._begin(name, message, strategies[name])
                self._settle(list(messages)[:number])
            complete = self._schedule(list(messages), steps, choose)
        finally:
            self._abandon()
        receipts: list[Cost] = []
        truncated = False
        for future in futures.values():
            try:
                receipts.append(future.result(timeout=STEP_SECONDS_MAX))
            except Abandoned:
                complete = False
            except Truncated:
                truncated = True
        return Execution(
            "".join(name for name, _ in steps), tuple(steps), tuple(self._events), tuple(receipts), truncated, complete
        )

    def _begin(self, name: str, message: Sequence[Order], strategy: Strategy) -> Future[Cost]:
        """Start a participant, in a daemon thread: one that hangs must not keep the process from ending."""
        future: Future[Cost] = Future()

        def take_part() -> None:
            self.participants[name].thread = threading.get_ident()
            try:
                future.set_result(self._take_part(name, message, strategy))
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
                future.set_exception(error)

        threading.Thread(target=take_part, name=f"participant_{name}", daemon=True).start()
        return future

    def _take_part(self, name: str, message: Sequence[Order], strategy: Strategy) -> Cost:
        participant = self.participants[name]
        teller = Teller(
            self._databases[name],
            instance=name,
            guard_timeout_seconds=STEP_SECONDS_MAX,
            patience_seconds=STEP_SECONDS_MAX,
            pace=ScheduledPace(participant),
        )
        try:
            receipt = (
                teller.apply_all(message, strategy)
                if isinstance(strategy, ChunkStrategy)
                else teller.apply(message[0], strategy)
            )
            self.check_given_back(name)
            return receipt
        except (BankError, Abandoned):
            raise
        except (Exception, SystemExit) as error:
            raise outside.name_fault(strategy, error) from error
        finally:
            self._borrowed[name].take_back()
            with self.changed:
                participant.done, participant.next = True, None
                self.changed.notify_all()

    @property
    def is_spent(self) -> bool:
        """Whether a participant hangs: its thread cannot be used, or ended, any more."""
        return any(participant.hangs for participant in self.participants.values())

    def check_given_back(self, name: str) -> None:
        """Raise StrategyFault if the participant, in its thread, holds a connection that it should not."""
        fault = outside.take_back(self._strategies[name], self._borrowed[name])
        if fault is not None:
            raise fault

    def _schedule(self, names: Sequence[str], steps: list[tuple[str, Step]], choose: Choose) -> bool:
        expired: set[str] = set()
        while True:
            self._settle(names)
            able = self._able(names, expired)
            if not able:
                shut_out = [name for name in names if self.participants[name].guard_is_taken]
                if shut_out and not any(self.participants[name].held for name in names):
                    raise StrategyFault(
                        self._strategies[shut_out[0]].name,
                        "leaves its guard held: nobody is in it any more, and try_enter() still returns False",
                    )
                return all(self.participants[name].done for name in names)
            chosen = choose(able, len(steps))
            if chosen is None:
                return False
            step = able[chosen]
            if chosen == CLOCK:
                holder = self._lease_holder(names, expired)
                assert holder is not None
                expired.add(holder.name)
                holder.held.expire()  # type: ignore[union-attr]
                self.guard_left()
                self._events.append(Event(CLOCK, "expire", f"{holder.name}'s lease runs out"))
            else:
                participant = self.participants[chosen]
                before, participant.event = participant.event, Event(chosen, step.kind, step.text)
                event = participant.event
                participant.go()
                self._settle(names)
                if participant.guard_is_taken:
                    participant.event = before
                    continue  # nothing happened: the guard was not free. Somebody else must go first.
                if participant.next is None and not participant.done:
                    event.waited_for = ", ".join(name for name in names if name != chosen)
                self._events.append(event)
            steps.append((chosen, step))
            for name in names:
                if name != chosen:
                    self.participants[name].rests = False

    def _able(self, names: Sequence[str], expired: set[str]) -> dict[str, Step]:
        able = {name: self.participants[name].next for name in names if self.participants[name].can_go}
        if not able:
            # Each rests until another goes on: the first may.
            resting = [
                name for name in names if self.participants[name].rests and self.participants[name].next is not None
            ]
            for name in resting[:1]:
                self.participants[name].rests = False
                able[name] = self.participants[name].next
        if self._lease_holder(names, expired) is not None:
            able[CLOCK] = Step("expire", "the lease runs out", locks=frozenset({"guard"}))
        return {name: step for name, step in able.items() if step is not None}

    def _lease_holder(self, names: Sequence[str], expired: set[str]) -> Participant | None:
        if not self.leases_expire:
            return None
        for name in names:
            participant = self.participants[name]
            if not expired and hasattr(participant.held, "expire") and participant.locked | participant.read:
                return participant
        return None

    def guard_left(self) -> None:
        """Let those that wait for a guard try again."""
        for participant in self.participants.values():
            participant.guard_is_taken = False

    def _abandon(self) -> None:
        """Let every participant that has not finished undo what it did."""
        with self.changed:
            self.abandoned = True
            for participant in self.participants.values():
                if participant.next is not None:
                    participant.go()
        deadline = time.monotonic() + STEP_SECONDS_MAX
        with self.changed:
            while not all(participant.done or participant.hangs for participant in self.participants.values()):
                self.changed.wait(timeout=0.05)
                for participant in self.participants.values():
                    if participant.next is not None:
                        participant.go()
                if time.monotonic() > deadline:
                    raise self._hangs(self._running(list(self.participants)))

    # Who runs, who waits in Postgres, and for whom.

    def _settle(self, names: Sequence[str]) -> None:
        """Wait until every participant is done, stands before a step, or waits for one that does."""
        deadline = time.monotonic() + STEP_SECONDS_MAX
        wait_seconds = 0.002
        while True:
            with self.changed:
                self.changed.wait_for(lambda: not self._running(names), timeout=wait_seconds)
                running = self._running(names)
            if not running or self._all_wait(running):
                return
            if time.monotonic() > deadline:
                raise self._hangs(running)

    def _hangs(self, names: Sequence[str]) -> StrategyFault:
        """Say where a participant stands still, and end what it holds in Postgres."""
        participant, strategy = self.participants[names[0]], self._strategies[names[0]]
        where = outside.place_in(strategy, participant.thread)
        for name in names:
            self.participants[name].hangs = True
            self._monitor.execute("SELECT pg_terminate_backend(%s)", [self.participants[name].backend_pid])
        return StrategyFault(
            strategy.name,
            f"hangs: for {STEP_SECONDS_MAX:g} s it has stood in {where}, and waits for nobody in Postgres; "
            "a lock of its own that it waits for belongs into guard()",
        )

    def _running(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if not self.participants[name].done and self.participants[name].next is None]

    def _all_wait(self, running: Sequence[str]) -> bool:
        """Return whether each of them waits, and has for long enough, for somebody who stands before a step."""
        pids = [self.participants[name].backend_pid for name in running]
        rows = self._monitor.execute(
            """
            SELECT pid, pg_blocking_pids(pid),
                   coalesce(extract(epoch FROM clock_timestamp() - min(waitstart)) * 1000, 0)
            FROM pg_locks WHERE pid = ANY(%s) AND NOT granted GROUP BY pid
            """,
            [pids],
        ).fetchall()
        waiting = {pid: (set(blockers), age_ms) for pid, blockers, age_ms in rows if blockers}
        if len(waiting) < len(running):
            return False
        if any(age_ms < self._settled_ms for _, age_ms in waiting.values()):
            time.sleep(self._settled_ms / 2000)
            return False
        # Whoever waits, directly or not, for one that stands before a step, waits until that one goes on. If somebody
        # is left, they wait in a circle, and Postgres is about to choose its victim.
        stuck = {p.backend_pid for p in self.participants.values() if p.next is not None}
        while more := {pid for pid in waiting if pid not in stuck and waiting[pid][0] & stuck}:
            stuck |= more
        return set(waiting) <= stuck
