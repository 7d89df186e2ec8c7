"""A user's code is called: with a time limit, and with a name for what comes of it that is no outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

import psycopg
from pydantic import SecretStr

from bank.errors import BankError, StrategyFault
from bank.orders import Order
from bank.outside.exits import ProcessExit
from bank.outside.places import find_place, home_of, stack_of, stack_of_thread
from bank.postgres.database import Database
from bank.postgres.roles import grant_installed
from bank.settings import Settings
from bank.strategies import STRATEGIES
from bank.strategies.base import Guard, Lease, Strategy
from bank.strategies.redis_lock import redis_url

CALL_SECONDS_MAX = 10.0

T = TypeVar("T")


class StillAtIt(Exception):
    """A call into the user's code does not come back."""


def call_in_time(call: Callable[[], T], home: str) -> T:
    """Return what the user's code returns, and raise what it raises; StillAtIt, with the place, if it takes too long.

    The call runs in a daemon thread: one that never ends must not keep us from ending.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, SystemExit too, it is the code's
            future.set_exception(error)

    thread = threading.Thread(target=run, name=f"call of {home}", daemon=True)
    thread.start()
    try:
        return future.result(CALL_SECONDS_MAX)
    except FutureTimeout:
        if future.done():
            raise  # its own
        where = find_place(stack_of_thread(thread.ident), home)
        raise StillAtIt(f"hangs: for {CALL_SECONDS_MAX:g} s it has stood in {where}") from None


def call(strategy: Strategy | type[Strategy], to_do: Callable[[], T]) -> T:
    """Do something with a strategy; return what comes of it. Raises StrategyFault for what is no outcome."""
    try:
        return call_in_time(to_do, home_of(strategy))
    except StillAtIt as error:
        raise StrategyFault(strategy.name, str(error)) from None
    except BankError:
        raise
    except (Exception, SystemExit) as error:
        raise name_fault(strategy, error) from error


def open_strategy(strategy: type[Strategy], settings: Settings) -> Strategy:
    """Return the object that one instance uses. Raises StrategyFault if it cannot be made."""
    if settings.broker_url is not None:  # as redis-py takes it, which is what a strategy does with it
        url = redis_url(settings.broker_url.get_secret_value())
        settings = settings.model_copy(update={"broker_url": SecretStr(url)})
    if strategy in STRATEGIES.values():
        return strategy.open(settings)
    made = call(strategy, lambda: strategy.open(settings))
    if not isinstance(made, strategy):
        raise StrategyFault(strategy.name, f"makes {with_article(made)} in open(), and not an object of its own class")
    return made


def close_strategy(strategy: Strategy) -> None:
    """Close an object. Raises StrategyFault if it raises, or does not end."""
    if type(strategy) in STRATEGIES.values():
        strategy.close()
    else:
        call(strategy, strategy.close)


def install(strategy: type[Strategy], database: Database) -> None:
    """Let it make what it needs in the bank's schema, for workers to use. Raises StrategyFault if that fails."""

    def make() -> None:
        with database.transaction() as transaction:
            strategy.install(transaction)
            grant_installed(transaction.raw)

    if strategy.install.__func__ is not Strategy.install.__func__:  # type: ignore[attr-defined]
        call(strategy, make)


def check_guard(strategy: Strategy, order: Order) -> Guard | None:
    """Return its guard. Raises StrategyFault if that is no guard, or no lease where it says what a pause does to it."""
    guard: Guard | None = call(strategy, lambda: strategy.guard(order))
    if guard is None:
        return None
    protocols = (Guard,) if strategy.survives_pause is None else (Guard, Lease)
    wanted = [name for protocol in protocols for name in vars(protocol) if not name.startswith("_")]
    missing = [name for name in wanted if not callable(getattr(guard, name, None))]
    if missing:
        hint = ": wrap it, as in ThreadGuard(lock)" if hasattr(guard, "acquire") else ""
        raise StrategyFault(
            strategy.name, f"returns {with_article(guard)} as its guard, without {' and '.join(missing)}{hint}"
        )
    return guard


GIVEN_UP = (
    "after a statement that failed Postgres takes no other: what is to be caught belongs into "
    "`with transaction.savepoint():`"
)


def name_fault(strategy: Strategy | type[Strategy], error: BaseException) -> StrategyFault:
    """Return what to say of a strategy from which something came that is no outcome of a transfer."""
    place = find_place(stack_of(error.__traceback__), home_of(strategy))
    advice = f"; {GIVEN_UP}" if isinstance(error, psycopg.errors.InFailedSqlTransaction) else ""
    return StrategyFault(strategy.name, f"{tell_what(error)} ({place}){advice}")


def place_in(strategy: Strategy, thread: int | None) -> str:
    """Return where a thread stands that runs a strategy: in the user's code if there is any on its stack."""
    return find_place(stack_of_thread(thread), home_of(strategy))


def with_article(value: object) -> str:
    """Return what a value is, as in ``an int``."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def tell_what(error: BaseException) -> str:
    """Return what code does from which an error comes, as in ``raises KeyError: 3``."""
    if isinstance(error, ProcessExit):
        return f"calls os._exit({error.code})"
    return f"raises {describe_error(error)}"


def describe_error(error: BaseException) -> str:
    """Return an error's class and the first line of what it says."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
