"""Postgres as the bank uses it: one engine in a process, and transactions whose failures have a name."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, PoolProxiedConnection, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session

from bank.errors import (
    BankError,
    CannotStart,
    Conflict,
    InsufficientFunds,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from bank.ledger import POST, RECORD, legs
from bank.orders import Posting
from bank.postgres import poolers, presets
from bank.postgres.connection import LeanConnection, Parameters, Query, Rows
from bank.postgres.watchdog import Watchdog
from bank.settings import Settings, as_libpq

BALANCE_CHECK = "balance_is_not_negative"
POOL_TIMEOUT_SECONDS = 5

Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
ISOLATION_LEVELS: dict[Isolation, psycopg.IsolationLevel | None] = {
    "READ COMMITTED": None,  # what the session's own settings say
    "REPEATABLE READ": psycopg.IsolationLevel.REPEATABLE_READ,
    "SERIALIZABLE": psycopg.IsolationLevel.SERIALIZABLE,
}

CONFLICTS = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55P03": "lock not available",
    "57014": "statement timeout",
}
"""The SQLSTATEs after which the whole transaction is run again (manual, section 13.5 and appendix A)."""

TIMED_OUT = ("25P03", "25P04", "57P05")
"""The server ended the session because it was idle, or its transaction took too long."""

UNAVAILABLE_CLASSES = ("53", "58")
UNAVAILABLE = ("25006", "42501", "42P01", "3F000")
"""What the server answers while it has no resources, or is a standby, or while its schema or rights are being changed:
not the transfer's fault, so it is tried again (manual, appendix A)."""


class Database:
    """One process' access to the bank: a pool of ``connections_max`` connections and not one more.

    A session has what ``bank.postgres.presets`` pins, and ``options``. ``trusts_options`` is for a server of our own
    that is reached directly: what the start-up packet asks for is so there, and is not asked about.
    """

    def __init__(
        self,
        url: str,
        *,
        connections_max: int,
        application_name: str,
        options: Mapping[str, object],
        transaction_seconds_max: float | None = None,
        connect: Callable[..., psycopg.Connection[Any]] = psycopg.Connection.connect,
        one_for_each_thread: bool = False,
        trusts_options: bool = False,
    ) -> None:
        self.url = url
        self.set_after_connecting: frozenset[str] = frozenset()
        """What a new session did not have although it was asked for: presets, where a pooler drops our options."""
        self.is_pooled = False
        """Whether a pooler stands between us and Postgres; known once a session was opened."""
        self._sends_options = True
        self._pooler_lock = threading.Lock()
        self._settings = {**presets.PINNED, **{name: str(value) for name, value in options.items()}}
        self._application_name = application_name
        self._connect = connect
        self._trusts_options = trusts_options
        self._one_for_each_thread = one_for_each_thread
        self._held = threading.local()
        self._watchdog = None if transaction_seconds_max is None else Watchdog(transaction_seconds_max)
        self.engine: Engine = create_engine(
            url,
            pool_size=connections_max,
            max_overflow=0,
            pool_use_lifo=True,  # the session that was used last is the one whose memory is still in a cache
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_reset_on_return=None,  # every transaction here ends with a COMMIT or a ROLLBACK of its own
            creator=self._open_session,
        )

    def _open_session(self) -> psycopg.Connection[Any]:
        """Open a session in which everything is as we depend on it, in one round trip more than it takes to log in.

        Raises CannotStart where something on the way keeps no sessions, or takes no settings.
        """
        connection = self._log_in()
        if self._trusts_options:
            return connection
        ticket = None if self._watchdog is None else self._watchdog.watch(connection)
        try:
            pinned = presets.pin(connection, self._settings)
            self.set_after_connecting |= pinned.changed
            if poolers.stands_between(connection, pinned.backend_pid):
                self._take_over(connection)
        except BaseException:
            self._release(ticket)
            connection.close()
            raise
        self._release(ticket)
        return connection

    def _log_in(self) -> psycopg.Connection[Any]:
        """Open a connection that asks for our settings; or for none, where a pooler does not let it in otherwise."""
        address, asks = psql_url(self.url), self._sends_options
        arguments = presets.connect_arguments(address, self._settings, self._application_name, with_options=asks)
        try:
            return self._connect(address, **arguments)
        except psycopg.OperationalError as error:
            if not (asks and poolers.refuses_options(error)):
                raise
        self._sends_options = False
        return self._log_in()

    def _take_over(self, connection: psycopg.Connection[Any]) -> None:
        """Make a pooler's session ours: whoever had it before may have left statements, locks or settings in it."""
        with self._pooler_lock:
            if not self.is_pooled:
                poolers.check_keeps_sessions(connection, self._log_in)
                self.is_pooled = True
        connection.autocommit = True
        psycopg.Cursor(connection).execute("DISCARD ALL")
        presets.pin(connection, {**self._settings, "application_name": self._application_name})

    @classmethod
    def for_instance(
        cls,
        url: str,
        *,
        instance: str,
        threads: int,
        settings: Settings,
        connect: Callable[..., psycopg.Connection[Any]] = LeanConnection.connect,
        trusts_options: bool = False,
    ) -> Database:
        """Return a worker instance's access: a connection for each thread, and no wait without an end."""
        return cls(
            url,
            connections_max=threads,
            application_name=f"bankrun {instance}",
            options={
                "lock_timeout": settings.lock_timeout_ms,
                "statement_timeout": settings.lock_timeout_ms * 2,
                "idle_in_transaction_session_timeout": settings.idle_timeout_ms,
                # On a table of a few rows Postgres prefers a sequential scan, and under SERIALIZABLE that is a
                # predicate lock on the whole table: transfers that share no account would conflict (section 13.2.3).
                "enable_seqscan": "off",
            },
            transaction_seconds_max=settings.attempt_timeout_ms / 1000,
            connect=connect,
            one_for_each_thread=True,
            trusts_options=trusts_options,
        )

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        if self._watchdog is not None:
            self._watchdog.close()

    @contextmanager
    def transaction(self, isolation: Isolation = "READ COMMITTED") -> Iterator[Transaction]:
        """Run one transaction: COMMIT at the end of the block, ROLLBACK if it raises.

        Raises Conflict where another transaction was in the way and running the whole block again is right;
        OutcomeUnknown where the connection died, at COMMIT or before, or was shut because the block took too long;
        Unavailable where the server cannot do it now; InsufficientFunds where the database's own CHECK refused a
        balance.
        """
        if self._one_for_each_thread and getattr(self._held, "is_open", False):
            raise SecondConnection("it wants a second connection, and holds one: there is one for each thread")
        # The pool's own connection, not an SQLAlchemy one around it: that would cost a tenth of a transfer.
        try:
            pooled = self.engine.raw_connection()
        except PoolTimeout as error:
            raise OutcomeUnknown(f"no connection was free: {error}") from error
        except psycopg.OperationalError as error:
            raise OutcomeUnknown(f"no connection: {first_line(error)}") from error
        except CannotStart as error:
            raise Unavailable(str(error)) from error
        transaction = Transaction(self.engine, pooled, isolation)
        ticket = None if self._watchdog is None else self._watchdog.watch(transaction.raw)
        self._held.is_open = True
        try:
            yield transaction
            transaction.commit()
        except BaseException as error:
            named = name_error(error)
            try:
                transaction.raw.rollback()
            except psycopg.Error as lost:
                if isinstance(error, Exception):  # an interruption stays one
                    named = named or OutcomeUnknown(f"the connection died: {first_line(lost)}")
            self._release(ticket)
            if (transaction.is_lost or transaction.closes_if_it_fails) and pooled.is_valid:
                pooled.invalidate()
            if named is not None:
                raise named from error
            raise
        finally:
            self._held.is_open = False
            self._release(ticket)
            pooled.close()

    def _release(self, ticket: int | None) -> None:
        if self._watchdog is not None and ticket is not None:
            self._watchdog.release(ticket)


class SecondConnection(RuntimeError):
    """A thread that holds a connection asks for another: two such threads would wait for each other."""


class MoveSession(Session):
    """The ORM session of a move. It cannot commit: what is claimed, moved and journalled is one transaction."""

    def commit(self) -> None:
        """Raise RuntimeError: doing nothing here would be a surprise later."""
        raise RuntimeError("the commit is the teller's, after the move: use flush()")


class Transaction:
    """One database transaction, as a strategy sees it.

    ``statements_seconds`` is the time its statements took, waiting for locks included, ``commit_seconds`` that of the
    COMMIT. ``raw`` is the driver's connection.
    """

    def __init__(self, engine: Engine, pooled: PoolProxiedConnection, isolation: Isolation) -> None:
        self._engine = engine
        self._pooled = pooled
        driver = pooled.driver_connection
        assert isinstance(driver, psycopg.Connection)
        self.raw: psycopg.Connection[tuple[Any, ...]] = driver
        level = ISOLATION_LEVELS[isolation]
        if self.raw.isolation_level is not level:
            self.raw.isolation_level = level
        self._run = driver.run if isinstance(driver, LeanConnection) else driver.cursor().execute
        self._run_alone = driver.run_as_is if isinstance(driver, LeanConnection) else self._run
        self.statements_seconds = 0.0
        self.commit_seconds = 0.0
        self._closes_if_it_fails = False

    def execute(self, query: Query, parameters: Parameters | None = None) -> psycopg.Cursor[tuple[Any, ...]] | Rows:
        """Run one statement with bound parameters, ``%(name)s`` or ``%s``; without any, it may be several.

        Its rows are gone when the next one is run.
        """
        started = time.perf_counter()
        try:
            return self._run(query, parameters)
        finally:
            self.statements_seconds += time.perf_counter() - started

    def execute_alone(
        self, query: Query, parameters: Parameters | None = None
    ) -> psycopg.Cursor[tuple[Any, ...]] | Rows:
        """Run the first statement of the block, which is to be committed at once, without BEGIN and COMMIT around it.

        Where the connection cannot do that, the block's end commits it. Its isolation is READ COMMITTED.
        """
        with self.timed():
            return self._run_alone(query, parameters)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of this block among the statements: for those that do not go through ``execute``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.statements_seconds += time.perf_counter() - started

    def commit(self) -> None:
        """End it with a COMMIT. For the block in ``Database.transaction``, which calls it.

        Raises InFailedSqlTransaction where a statement failed and its error went no further: Postgres would answer the
        COMMIT with a ROLLBACK, and no error (manual, COMMIT).
        """
        if self.raw.pgconn.transaction_status == TransactionStatus.INERROR:
            raise pg.InFailedSqlTransaction(
                "a statement failed and its error was caught: a COMMIT would undo everything"
            )
        started = time.perf_counter()
        try:
            self.raw.commit()
        finally:
            self.commit_seconds += time.perf_counter() - started

    def record(self, postings: tuple[Posting, Posting], transfer_id: uuid.UUID) -> None:
        """Write the entries. Call it after the accounts were written, never before: it draws their ``seq``."""
        self.execute(RECORD, legs(postings, transfer_id))

    def post_locked(self, postings: tuple[Posting, Posting], transfer_id: uuid.UUID) -> None:
        """Write both accounts and both entries in one statement.

        Only for accounts whose rows this transaction has locked: the order in which the statement writes them is not
        defined. An entry is inserted, and draws its ``seq``, after its account was written (manual, section 7.8.4).
        """
        self.execute(POST, legs(postings, transfer_id))

    def orm_session(self) -> Session:
        """Return an ORM session inside this transaction. Flush it; the commit stays with the teller."""
        connection = Connection(self._engine, connection=self._pooled)
        connection.begin()  # a session that began the transaction itself would roll it back when it closes
        return MoveSession(
            bind=connection, autoflush=False, expire_on_commit=False, join_transaction_mode="rollback_only"
        )

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what the block wrote if it raises Refused: a refusal is committed, and what came before it with it."""
        self.execute("SAVEPOINT move")
        try:
            yield
        except Refused:
            self.execute("ROLLBACK TO SAVEPOINT move")
            raise

    def close_if_it_fails(self) -> None:
        """Close the connection if the transaction fails: for what a ROLLBACK does not free, as a session's locks."""
        self._closes_if_it_fails = True

    @property
    def closes_if_it_fails(self) -> bool:
        """Whether the connection goes down with the transaction."""
        return self._closes_if_it_fails

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone."""
        return self.raw.closed or self.raw.info.transaction_status == TransactionStatus.UNKNOWN


def name_error(error: BaseException) -> BankError | None:
    """Return what a driver's error means to the bank, or None if it means nothing special."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return None
    if cause.sqlstate in CONFLICTS:
        return Conflict(f"{CONFLICTS[cause.sqlstate]}: {first_line(cause)}", sqlstate=cause.sqlstate)
    if isinstance(cause, pg.CheckViolation) and cause.diag.constraint_name == BALANCE_CHECK:
        return InsufficientFunds(f"the database's CHECK refused it: {first_line(cause)}")
    if cause.sqlstate is not None and (cause.sqlstate[:2] in UNAVAILABLE_CLASSES or cause.sqlstate in UNAVAILABLE):
        return Unavailable(f"Postgres cannot do it now: {first_line(cause)}")
    if isinstance(cause, psycopg.OperationalError) or cause.sqlstate in TIMED_OUT:
        return OutcomeUnknown(f"the connection died: {first_line(cause)}")
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message: what a sentence can hold."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def psql_url(url: str) -> str:
    """Return the address as psql and pgbench take it."""
    return as_libpq(make_url(url))
