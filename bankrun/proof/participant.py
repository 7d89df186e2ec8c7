"""A transfer as a participant of the engine: a worker's teller, strategy and connection, in a process of an instance.

What Postgres is asked is a step without being announced. Announced are guards, the leases that some of them are, and
that an attempt is begun again after a conflict.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID

from sqlalchemy import make_url

from bank import outside
from bank.errors import BankError, StrategyFault
from bank.orders import Order
from bank.postgres.database import Database, Transaction
from bank.receipts import Cost
from bank.settings import Settings, read_settings
from bank.strategies import STRATEGIES
from bank.strategies.base import Guard, Lease, Strategy, ThreadGuard, takes_chunks
from bank.teller import Pace, Teller
from bankrun.proof.leases import Leases
from bankrun.schedule.cast.control import Control, TooManyRetries

logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # that a session was ended in mid-transaction is no news here
SECONDS_MAX = 60.0
"""More than any step takes: who waits longer is ended by the engine."""

SESSION_ENDS = "its transfer is over"
"""A note in the trace: what the session still holds then would be there for the next transfer."""


class Told(TypedDict):
    """What a participant returns: JSON."""

    conflicts: dict[str, int]
    leases: dict[str, int]


class Instance:
    """What the transfers of a process share in an execution: the strategy's object, made once, closed by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._strategy: Strategy | None = None

    def open(self, name: str, folder: str | None, settings: Settings) -> Strategy:
        """Return the strategy's object. A user's module is imported anew: what it remembers is of this execution."""
        with self._lock:
            if self._strategy is None:
                with outside.imported_anew(name, folder):
                    strategy = outside.user_strategy(name)
                self._strategy = outside.open_strategy(strategy, settings)
            self._users += 1
            return self._strategy

    def close(self) -> None:
        """Close the object with its last user."""
        with self._lock:
            self._users -= 1
            if not self._users and self._strategy is not None:
                strategy, self._strategy = self._strategy, None
                outside.close_strategy(strategy)


class AnnouncedPace(Pace):
    """Guards and retries as steps; how long thinking takes is the scheduler's choice."""

    def __init__(self, control: Control, leases: Leases, check_given_back: Callable[[], None]) -> None:
        self._control = control
        self._leases = leases
        self._check_given_back = check_given_back

    def enter(self, guard: Guard, timeout_seconds: float) -> None:
        """Try to take the guard each time the scheduler says so."""
        declared = guard.expire if isinstance(guard, Lease) else None
        self._control.enter(
            name_resource(guard),
            lambda: self._leases.try_enter(guard),
            expire=declared or self._leases.expire,
            runs_out=lambda: declared is not None or self._leases.has_found(),
            text="enters the guard",
        )

    def leave(self, guard: Guard) -> None:
        """Give the guard back when the scheduler says so."""
        self._leases.look_again()
        self._control.leave(name_resource(guard), guard.leave, text="leaves the guard")

    def think(self, transaction: Transaction, seconds: float) -> None:
        """Take no time."""

    def before_retry(self, seconds_max: float) -> None:
        """Rest until the other has taken a step. Raises TooManyRetries."""
        self._check_given_back()
        self._control.rest()


def name_resource(guard: Guard) -> str:
    """Return what others may wait for: any guard for any other, but thread locks only in their own process.

    What a user has made of a thread lock may reach further.
    """
    return f"guard in process {os.getpid()}" if type(guard) is ThreadGuard else "guard"


def apply(control: Control, name: str, folder: str | None, orders: Sequence[Sequence[Any]]) -> Told:
    """Apply one order, or a chunk of them, as a worker does.

    ``folder`` is where a user's module lies. Raises StrategyFault for what is no outcome.
    """
    if folder is not None:
        outside.make_importable([Path(folder)])
    url = make_url(control.url).set(drivername="postgresql+psycopg", username=os.environ["PGUSER"])
    message = [Order(UUID(one[0]), *one[1:]) for one in orders]
    instance: Instance = control.share("instance", Instance)
    settings = read_settings()
    strategy = instance.open(name, folder, settings)
    try:
        return _apply(control, strategy, message, url.render_as_string(hide_password=False), settings)
    finally:
        instance.close()


@cache
def open_database(url: str, name: str) -> tuple[Database, outside.Borrowed]:
    """Return a participant's access to the bank: as a worker's it is kept, and its sessions are not.

    What SQLAlchemy asks a server at its first connection is asked once, and is no step of every execution; nor is
    whether the private server has taken our options, which nothing between it and us could have dropped.
    """
    database = Database.for_instance(url, instance=name, threads=1, settings=read_settings(), trusts_options=True)
    return database, outside.Borrowed(database.engine)


def _apply(control: Control, strategy: Strategy, message: Sequence[Order], url: str, settings: Settings) -> Told:
    database, borrowed = open_database(url, control.name)

    def check_given_back() -> None:
        fault = outside.take_back(strategy, borrowed)
        if fault is not None:
            raise fault

    is_ours = type(strategy) in STRATEGIES.values()
    leases = Leases(None if is_ours else settings)
    teller = Teller(
        database,
        instance=control.name,
        guard_timeout_seconds=SECONDS_MAX,
        patience_seconds=SECONDS_MAX,
        pace=AnnouncedPace(control, leases, check_given_back),
    )
    try:
        if takes_chunks(strategy):
            cost: Cost = teller.apply_all(message, strategy)
        else:
            cost = teller.apply(message[0], strategy)
        check_given_back()
        if leases.late:
            keys = ", ".join(f"{key}, {milliseconds} ms" for key, milliseconds in leases.late.items())
            raise StrategyFault(
                strategy.name,
                f"gives a time to live to what it holds in Redis after it has entered its guard ({keys}): "
                "set it together with the key",
            )
        control.note(SESSION_ENDS)
        return Told(conflicts=dict(cost.conflicts), leases=leases.found)
    except (BankError, TooManyRetries):
        raise
    except (Exception, SystemExit) as error:
        raise outside.name_fault(strategy, error) from error
    finally:
        borrowed.take_back()
        leases.close()
        database.engine.dispose()
