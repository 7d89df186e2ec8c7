"""A user's strategy shows that it can be used at all: some transfers, one after the other, before anything is sent."""

from __future__ import annotations

import gc
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from uuid import UUID

import psycopg

from bank import outside
from bank.errors import StrategyFault, Transient
from bank.orders import Order
from bank.outside.calling import StillAtIt, call, call_in_time
from bank.outside.places import home_of
from bank.postgres.connection import LeanConnection, Parameters, Query, Rows
from bank.postgres.database import Database
from bank.postgres.models import APPLIED, REFUSED, STATUSES
from bank.postgres.schema import reset_bank
from bank.settings import Settings
from bank.strategies import STRATEGIES, Strategy
from bank.strategies.base import Guard
from bank.teller import Pace, Teller
from workers.submission import Submission, accept

ORDERS = (Order(UUID(int=1), 101, 102, 10), Order(UUID(int=2), 101, 102, 5))
ACCOUNTS = (101, 102, 103)
OPENING = 100
GUARD_SECONDS_MAX = 2.0
PATIENCE_SECONDS = 0.2
END_SECONDS_MAX = 2.0
POLL_SECONDS = 0.01
Hold = Callable[[Guard], bool]
TRIES = 5
ENTER_SECONDS = 0.05


def rehearse(database: Database, settings: Settings, names: Iterable[str], hold: Hold | None = None) -> None:
    """Let strategies from outside show that they can be used at all: each runs some transfers, one after the other.

    It happens on the bank, which is emptied. Raises StrategyFault, and says what is wrong: also with a strategy that
    does not apply what could be, takes a transfer for another of the same amount, or lets an empty account pay. What
    became of the money is not looked at. Our own always can. ``hold`` takes a guard so that it does not run out; with
    it, whether a guard keeps out is looked at.
    """
    for name in dict.fromkeys(names):
        if name not in STRATEGIES:
            _rehearse(database, settings, outside.strategy_named(name), hold)


def _rehearse(database: Database, settings: Settings, strategy: type[Strategy], hold: Hold | None) -> None:
    outside.install(strategy, database)
    with database.transaction() as transaction:
        reset_bank(transaction.raw, ACCOUNTS, OPENING)
    accept(database, ORDERS, Submission("rehearsal", strategy.name, "rehearsal"), forgettable=True)
    instance = f"rehearsal {secrets.token_hex(4)}"
    theirs = f"bankrun {instance}, theirs"
    with _name_sessions(theirs):
        made = outside.open_strategy(strategy, settings)
        outside.check_guard(made, ORDERS[0])
        try:
            _apply_all(made, database, settings, instance)
            if hold is not None:
                _check_guard_keeps_out(made, ORDERS[0], hold)
        except StrategyFault:
            _end_sessions(database, f"bankrun {instance}")
            with suppress(StrategyFault):
                outside.close_strategy(made)
            raise
        outside.close_strategy(made)
    more = _count_sessions(database, theirs)
    if more:
        raise StrategyFault(strategy.name, f"leaks a connection of its own: {more} are open after its close()")


def _apply_all(strategy: Strategy, database: Database, settings: Settings, instance: str) -> None:
    own = Database.for_instance(
        database.url, instance=instance, threads=1, settings=settings, connect=NotingConnection.connect
    )
    borrowed = outside.Borrowed(own.engine)

    def check_given_back() -> None:
        fault = outside.take_back(strategy, borrowed)
        if fault is not None:
            raise fault

    teller = Teller(
        own,
        instance=instance,
        guard_timeout_seconds=GUARD_SECONDS_MAX,
        patience_seconds=PATIENCE_SECONDS,
        pace=RehearsalPace(check_given_back),
    )

    def apply(order: Order) -> str:
        try:
            return teller.apply(order, strategy).outcome
        except Transient as error:
            return _tell_why(error)
        finally:
            check_given_back()

    try:
        for order in ORDERS:
            outcome = _call(strategy, partial(apply, order))
            _check_guard_is_free(strategy, order)
            if outcome != APPLIED:
                why = outcome if outcome not in STATUSES else "they are refused, or left pending"
                raise StrategyFault(strategy.name, f"does not apply two transfers that could both be: {why}")
        _check_twin(strategy, database, apply)
        _check_funds(strategy, database, apply)
    finally:
        own.close()


def _check_twin(strategy: Strategy, database: Database, apply: Callable[[Order], str]) -> None:
    """Raise StrategyFault if a transfer is taken for another one of the same amount between the same accounts."""
    twin = replace(ORDERS[-1], id=UUID(int=3))
    before = _read_balance(database, twin.debit)
    outcome = _apply_one(strategy, database, apply, twin)
    if outcome == REFUSED or (outcome == APPLIED and _read_balance(database, twin.debit) == before):
        raise StrategyFault(
            strategy.name,
            f"takes a transfer of {twin.amount} from {twin.debit} to {twin.credit} for another one of the same amount "
            f"between the same accounts: it is {outcome}, and moves nothing",
        )


def _check_funds(strategy: Strategy, database: Database, apply: Callable[[Order], str]) -> None:
    """Raise StrategyFault if a whole balance cannot be paid, or more than it can."""
    held = _read_balance(database, ACCOUNTS[0])
    if _apply_one(strategy, database, apply, Order(UUID(int=4), *ACCOUNTS[:2], held)) == REFUSED:
        raise StrategyFault(strategy.name, f"refuses a transfer of all that an account holds, {held} of {held}")
    if _read_balance(database, ACCOUNTS[0]) != 0:
        return
    if _apply_one(strategy, database, apply, Order(UUID(int=5), *ACCOUNTS[:2], 1)) == APPLIED:
        raise StrategyFault(strategy.name, "lets an account pay 1 that holds 0")


def _apply_one(strategy: Strategy, database: Database, apply: Callable[[Order], str], order: Order) -> str:
    accept(database, [order], Submission("rehearsal", strategy.name, "rehearsal"), forgettable=True)
    return _call(strategy, partial(apply, order))


def _call(strategy: Strategy, apply: Callable[[], str]) -> str:
    """Return an outcome, or why there is none. Raises StrategyFault where a strategy fails or hangs."""
    try:
        return call_in_time(apply, home_of(strategy))
    except StillAtIt as error:
        raise StrategyFault(
            strategy.name,
            f"{error}, and waits for nobody in Postgres; a lock of its own that it waits for belongs into guard()",
        ) from None
    except StrategyFault:
        raise
    except (Exception, SystemExit) as error:
        raise outside.name_fault(strategy, error) from error


def _check_guard_is_free(strategy: Strategy, order: Order) -> None:
    guard = outside.check_guard(strategy, order)
    if guard is None:
        return
    if not call(strategy, guard.try_enter):
        raise StrategyFault(
            strategy.name, "leaves its guard held: nobody is in it any more, and try_enter() still returns False"
        )
    call(strategy, guard.leave)


def _check_guard_keeps_out(strategy: Strategy, order: Order, hold: Hold) -> None:
    guard = outside.check_guard(strategy, order)
    if guard is not None and call(strategy, partial(hold, guard)):
        try:
            _check_others_stay_out(strategy, order)
        finally:
            call(strategy, guard.leave)


def _check_others_stay_out(strategy: Strategy, order: Order) -> None:
    """Raise StrategyFault if a guard that refuses once lets others in all the same. It is held.

    The proof asks ``try_enter``, and not again until somebody leaves; workers ask ``enter``.
    """
    other = outside.check_guard(strategy, order)
    if other is None or call(strategy, other.try_enter):
        return  # whether it should have kept out is what the proof finds
    for _ in range(TRIES):
        if call(strategy, other.try_enter):
            raise StrategyFault(strategy.name, "has a guard whose try_enter() first refuses, and then lets a second in")
    try:
        call(strategy, lambda: other.enter(ENTER_SECONDS))
    except Transient:
        return
    raise StrategyFault(
        strategy.name,
        f"has a guard that is held, and whose enter({ENTER_SECONDS}) returns: it should raise NotAcquired",
    )


def _read_balance(database: Database, account: int) -> int:
    with database.transaction() as transaction:
        row = transaction.execute("SELECT balance FROM accounts WHERE id = %(id)s", {"id": account}).fetchone()
    assert row is not None
    return int(row[0])


class RehearsalPace(Pace):
    """The pace of a teller that has no other to wait for."""

    def __init__(self, check_given_back: Callable[[], None]) -> None:
        self._check_given_back = check_given_back

    def before_retry(self, seconds_max: float) -> None:
        """Go on soon, unless the attempt kept a connection: the next one would wait for it."""
        self._check_given_back()
        time.sleep(POLL_SECONDS)


class NotingConnection(LeanConnection):
    """A connection that adds to an error which statement it was."""

    def run_as_is(self, query: Query, parameters: Parameters | None = None) -> Rows:
        """Run a query."""
        try:
            return super().run_as_is(query, parameters)
        except psycopg.Error as error:
            error.add_note(f"{' '.join(self.as_text(query).split())} fails with {error.sqlstate}")
            raise


def _tell_why(error: BaseException) -> str:
    """Return which statement an error comes from, if from any, else what it says."""
    notes = getattr(error.__cause__, "__notes__", None)
    return str(notes[0]) if notes else str(error)


@contextmanager
def _name_sessions(name: str) -> Iterator[None]:
    """Give this name to each session of this process that is opened in the block without a name of its own.

    Ours all have names. libpq takes it from the environment (manual, section 32.15).
    """
    before = os.environ.get("PGAPPNAME")
    os.environ["PGAPPNAME"] = name
    try:
        yield
    finally:
        del os.environ["PGAPPNAME"]
        if before is not None:
            os.environ["PGAPPNAME"] = before


def _count_sessions(database: Database, name: str) -> int:
    """Return how many sessions of this name stay open. A session that was closed may take a moment to end."""
    gc.collect()  # what is no longer held is closed, also where it refers to itself
    deadline = time.monotonic() + END_SECONDS_MAX
    while True:
        with database.transaction() as transaction:
            row = transaction.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = %(name)s", {"name": name}
            ).fetchone()
        assert row is not None
        if not row[0] or time.monotonic() > deadline:
            return int(row[0])
        time.sleep(POLL_SECONDS)


def _end_sessions(database: Database, prefix: str) -> None:
    """End what a strategy that failed has open: one that hangs would keep its locks."""
    with database.transaction() as transaction:
        transaction.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, %(prefix)s)",
            {"prefix": prefix},
        )
