"""Postgres as the bank uses it: one engine, one schema of our own, and transactions whose failures have a name."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, create_engine, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateColumn
from sqlmodel import Session

from bank import models
from bank.errors import (
    BankError,
    CannotStart,
    Conflict,
    InsufficientFunds,
    NotReady,
    OutcomeUnknown,
    Unavailable,
)
from bank.orders import Posting
from bank.settings import Settings, without_password
from bank.watchdog import Watchdog

POSTGRES_MIN = 180_000  # RETURNING old.… and new.… came with 18
LAB_CONNECTIONS = 8  # the lab's own: audit, progress, its advisory lock, and a user's psql
LAB_LOCK_KEY = 0x62616E6B  # "bank": one lab at a time per database
MARKER = "bankrun:1:"
POOL_TIMEOUT_SECONDS = 5
BACKSLASH = chr(92)

ISOLATION_LEVELS = {
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
"""What the server answers while it has no resources, or is a standby, or while somebody changes its schema or rights:
not the transfer's fault, so it is tried again (manual, appendix A)."""


class Database:
    """One process' access to the bank: a pool of ``connections_max`` connections and not one more."""

    def __init__(
        self,
        url: str,
        *,
        connections_max: int,
        application_name: str,
        options: Mapping[str, object],
        transaction_seconds_max: float | None = None,
        connect: Callable[..., psycopg.Connection[Any]] = psycopg.Connection.connect,
    ) -> None:
        self.url = url
        self._watchdog = None if transaction_seconds_max is None else Watchdog(transaction_seconds_max)
        everywhere = {"search_path": models.SCHEMA, "default_transaction_isolation": "read committed", **options}
        arguments = {
            "application_name": application_name,
            "connect_timeout": 10,
            "options": " ".join(
                f"-c {name}={str(value).replace(' ', BACKSLASH + ' ')}" for name, value in everywhere.items()
            ),
        }
        self.engine: Engine = create_engine(
            url,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_reset_on_return=None,  # every transaction here ends with a COMMIT or a ROLLBACK of its own
            creator=lambda: connect(psql_url(url), **arguments),
        )

    @classmethod
    def for_instance(
        cls,
        url: str,
        *,
        instance: str,
        threads: int,
        settings: Settings,
        connect: Callable[..., psycopg.Connection[Any]] = psycopg.Connection.connect,
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
        )

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        if self._watchdog is not None:
            self._watchdog.close()

    @contextmanager
    def transaction(self, isolation: str = "READ COMMITTED") -> Iterator[Transaction]:
        """Run one transaction: COMMIT at the end of the block, ROLLBACK if it raises.

        Raises Conflict where another transaction was in the way and running the whole block again is right;
        OutcomeUnknown where the connection died, at COMMIT or before, or was shut because the block took too long;
        Unavailable where the server cannot do it now; InsufficientFunds where the database's own CHECK refused a
        balance.
        """
        # The pool's own connection, not an SQLAlchemy one around it: that would cost a tenth of a transfer.
        try:
            pooled = self.engine.raw_connection()
        except PoolTimeout as error:
            raise OutcomeUnknown(f"no connection was free: {error}") from error
        except psycopg.OperationalError as error:
            raise OutcomeUnknown(f"no connection: {first_line(error)}") from error
        transaction = Transaction(self.engine, pooled, isolation)
        ticket = None if self._watchdog is None else self._watchdog.watch(transaction.raw)
        try:
            yield transaction
            transaction.commit()
        except BaseException as error:
            named = _named(error)
            try:
                transaction.raw.rollback()
            except psycopg.Error as lost:
                if isinstance(error, Exception):  # an interruption stays one
                    named = named or OutcomeUnknown(f"the connection died: {first_line(lost)}")
            self._release(ticket)
            if (transaction.is_lost or transaction.holds_session_locks) and pooled.is_valid:
                pooled.invalidate()
            if named is not None:
                raise named from error
            raise
        finally:
            self._release(ticket)
            pooled.close()

    def _release(self, ticket: int | None) -> None:
        if self._watchdog is not None and ticket is not None:
            self._watchdog.release(ticket)


class Transaction:
    """One database transaction, as a strategy sees it.

    ``statements_seconds`` is the time its statements took, waiting for locks included, ``commit_seconds`` that of the
    COMMIT; ``prepared`` is what the strategy's ``prepare`` returned. ``holds_session_locks`` says that a ROLLBACK would
    not free everything: if the transaction fails, its connection is closed.
    """

    def __init__(self, engine: Engine, pooled: PoolProxiedConnection, isolation: str) -> None:
        self._engine = engine
        self._pooled = pooled
        driver = pooled.driver_connection
        assert isinstance(driver, psycopg.Connection)
        self.raw: psycopg.Connection[tuple[Any, ...]] = driver
        level = ISOLATION_LEVELS[isolation]
        if self.raw.isolation_level is not level:
            self.raw.isolation_level = level
        self._cursor = self.raw.cursor()
        self.statements_seconds = 0.0
        self.commit_seconds = 0.0
        self.think: Callable[[], None] = lambda: None
        self.prepared: object = None
        self.holds_session_locks = False

    def execute(
        self, sql: LiteralString, parameters: Mapping[str, Any] | None = None
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run one statement with bound parameters, ``%(name)s``. Its rows are gone when the next one is run."""
        started = time.perf_counter()
        try:
            return self._cursor.execute(sql, parameters)
        finally:
            self.statements_seconds += time.perf_counter() - started

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of this block among the statements: for those that do not go through ``execute``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.statements_seconds += time.perf_counter() - started

    def commit(self) -> None:
        """End it with a COMMIT. For the block in ``Database.transaction``, which calls it."""
        started = time.perf_counter()
        try:
            self.raw.commit()
        finally:
            self.commit_seconds += time.perf_counter() - started

    def record(self, postings: tuple[Posting, Posting], transfer_id: uuid.UUID) -> None:
        """Write the entries. Call it after the accounts were written, never before: it draws their ``seq``."""
        self.execute(RECORD, _both(postings, transfer_id))

    def post_locked(self, postings: tuple[Posting, Posting], transfer_id: uuid.UUID) -> None:
        """Write both accounts and both entries in one statement.

        Only for accounts whose rows this transaction has locked: the order in which the statement writes them is not
        defined. An entry is inserted, and draws its ``seq``, after its account was written (manual, section 7.8.4).
        """
        self.execute(POST_LOCKED, _both(postings, transfer_id))

    def orm_session(self) -> Session:
        """Return an ORM session inside this transaction. Flush it; the commit stays with the teller."""
        connection = Connection(self._engine, connection=self._pooled)
        connection.begin()  # a session that began the transaction itself would roll it back when it closes
        return Session(bind=connection, autoflush=False, expire_on_commit=False, join_transaction_mode="rollback_only")

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone."""
        return self.raw.closed or self.raw.info.transaction_status == TransactionStatus.UNKNOWN


RECORD: LiteralString = """
    INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
    VALUES (%(id_1)s, %(transfer)s, %(account_1)s, %(delta_1)s, %(before_1)s, %(after_1)s, %(previous_1)s, %(read_1)s),
           (%(id_2)s, %(transfer)s, %(account_2)s, %(delta_2)s, %(before_2)s, %(after_2)s, %(previous_2)s, %(read_2)s)
"""
POST_LOCKED: LiteralString = """
    WITH posting (id, account_id, delta, before, after, previous_entry, read_at) AS (VALUES
        (%(id_1)s::bigint, %(account_1)s::int, %(delta_1)s::bigint, %(before_1)s::bigint, %(after_1)s::bigint,
         %(previous_1)s::bigint, %(read_1)s::timestamptz),
        (%(id_2)s, %(account_2)s, %(delta_2)s, %(before_2)s, %(after_2)s, %(previous_2)s, %(read_2)s)
    ), written AS (
        UPDATE accounts SET balance = posting.after, last_entry = posting.id
        FROM posting WHERE accounts.id = posting.account_id RETURNING posting.*
    )
    INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
    SELECT id, %(transfer)s, account_id, delta, before, after, previous_entry, read_at FROM written
"""


def _both(postings: tuple[Posting, Posting], transfer_id: uuid.UUID) -> dict[str, object]:
    parameters: dict[str, object] = {"transfer": transfer_id}
    for number, posting in enumerate(postings, start=1):
        parameters |= {
            f"id_{number}": posting.entry_id,
            f"account_{number}": posting.account_id,
            f"delta_{number}": posting.delta,
            f"before_{number}": posting.before,
            f"after_{number}": posting.after,
            f"previous_{number}": posting.previous_entry,
            f"read_{number}": posting.read_at,
        }
    return parameters


def _named(error: BaseException) -> BankError | None:
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


# --- The schema: made, emptied and dropped only where our marker is found -------------------------------------------

BALANCE_CHECK = "balance_is_not_negative"


def open_for_lab(url: str) -> Database:
    """Connect as the lab does, and check that this is a server and a schema that bankrun may use.

    Raises CannotStart, and leaves everything as it was, if there is no server, if it is older than Postgres 18, or if
    it holds a schema of our name that we did not make; NotReady if the server may only be starting.
    """
    database = Database(url, connections_max=LAB_CONNECTIONS, application_name="bankrun lab", options={})
    try:
        with database.engine.connect() as connection:
            version = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
            if int(version) < POSTGRES_MIN:
                name = connection.exec_driver_sql("SHOW server_version").scalar_one()
                raise CannotStart(f"{without_password(url)} is Postgres {name}: bankrun needs 18 or newer")
            _refuse_strangers(connection, url)
    except OperationalError as error:
        database.close()
        why = _why_no_connection(error)
        # A FATAL is the server's own answer: waiting helps only where it says that it is starting or stopping.
        final = why.startswith("FATAL") and not any(word in why for word in ("starting up", "shutting down", "not yet"))
        raise (CannotStart if final else NotReady)(f"no Postgres at {without_password(url)}: {why}") from error
    except BaseException:
        database.close()
        raise
    return database


def _why_no_connection(error: OperationalError) -> str:
    """Return the reason alone: the driver's message repeats the address once for each it tried."""
    lines = [line for line in str(error.orig).splitlines() if line.strip()]
    return lines[0].rpartition("failed: ")[2].strip() if lines else "no answer"


def _marker(connection: Connection) -> str | None:
    return connection.execute(
        text("SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_namespace WHERE nspname = :name"),
        {"name": models.SCHEMA},
    ).scalar_one_or_none()


def _refuse_strangers(connection: Connection, url: str) -> str | None:
    marker = _marker(connection)
    if marker is not None and not marker.startswith(MARKER):
        raise CannotStart(
            f"{without_password(url)} holds a schema {models.SCHEMA!r} that bankrun did not make: "
            "it was left untouched; use another database"
        )
    return marker


def bank_id(database: Database) -> str | None:
    """Return the identity given to this bank when its schema was made, or None if it has no schema yet."""
    with database.engine.connect() as connection:
        marker = _refuse_strangers(connection, database.url)
    return None if marker is None else marker.removeprefix(MARKER)


def create_schema(database: Database) -> None:
    """Make the schema and its tables: those that are missing, since an older bankrun may have made the others."""
    with database.engine.begin() as connection:
        if _refuse_strangers(connection, database.url) is None:
            connection.exec_driver_sql(f"CREATE SCHEMA {models.SCHEMA}")
            connection.exec_driver_sql(f"COMMENT ON SCHEMA {models.SCHEMA} IS '{MARKER}{uuid.uuid4()}'")
        models.metadata.create_all(connection)
        _add_columns(connection)


def _add_columns(connection: Connection) -> None:
    """Add the columns that tables of an older bankrun lack. Nothing is locked where there is nothing to add."""
    for table in models.metadata.sorted_tables:
        there = {column["name"] for column in inspect(connection).get_columns(table.name, schema=models.SCHEMA)}
        for column in table.columns:
            if column.name not in there:
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {models.SCHEMA}.{table.name} ADD COLUMN {definition}")


def drop_schema(database: Database) -> None:
    """Drop the schema with everything in it, if it is ours."""
    with database.engine.begin() as connection:
        if _refuse_strangers(connection, database.url) is not None:
            connection.exec_driver_sql(f"DROP SCHEMA {models.SCHEMA} CASCADE")


def open_bank(database: Database, *, accounts: int, opening: int, constraint: bool = False) -> None:
    """Empty the bank and open ``accounts`` accounts, numbered from 1, with ``opening`` minor units each."""
    with database.engine.begin() as connection:
        if not _refuse_strangers(connection, database.url):
            raise CannotStart(f"{without_password(database.url)} holds no bank yet")
        # In the order in which a teller locks them: one that is still at work would otherwise deadlock with this.
        connection.exec_driver_sql("TRUNCATE transfers, accounts, entries, fences, runs")
        connection.exec_driver_sql("ALTER SEQUENCE entry_ids RESTART")
        connection.exec_driver_sql("ALTER SEQUENCE entry_seq RESTART")
        connection.exec_driver_sql("ALTER SEQUENCE fence_tokens RESTART")
        connection.exec_driver_sql(f"ALTER TABLE accounts DROP CONSTRAINT IF EXISTS {BALANCE_CHECK}")
        if constraint:
            connection.exec_driver_sql(f"ALTER TABLE accounts ADD CONSTRAINT {BALANCE_CHECK} CHECK (balance >= 0)")
        connection.execute(
            text(
                "INSERT INTO accounts (id, opening, balance)"
                " SELECT id, CAST(:opening AS bigint), CAST(:opening AS bigint)"
                " FROM generate_series(1, :accounts) AS id"
            ),
            {"opening": opening, "accounts": accounts},
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE accounts, transfers, entries")


@contextmanager
def only_lab(database: Database) -> Iterator[None]:
    """Hold the database's advisory lock for the block. Raises CannotStart if another lab holds it."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LAB_LOCK_KEY}).scalar_one():
            raise CannotStart(
                f"another bankrun is using {without_password(database.url)}: "
                "wait for it, or give this one another database"
            )
        try:
            yield
        finally:
            with suppress(DBAPIError):  # a server that is gone has given the lock back
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LAB_LOCK_KEY})


def check_connection_budget(database: Database, *, instances: int, threads: int) -> str:
    """Return the arithmetic of the connections that will be needed. Raises CannotStart if the server has too few."""
    with database.engine.connect() as connection:
        maximum, reserved = connection.exec_driver_sql(
            "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
            " + current_setting('reserved_connections')::int"
        ).one()
    needed = instances * (threads + 1) + LAB_CONNECTIONS
    sum_ = (
        f"{instances} instances x ({threads} threads + 1 reconciler) + {LAB_CONNECTIONS} for the lab"
        f" = {needed} connections"
    )
    free = f"Postgres gives {maximum} - {reserved} reserved = {maximum - reserved}"
    if needed > maximum - reserved:
        raise CannotStart(f"{sum_}, but {free}: use fewer instances or threads, or raise max_connections")
    return f"{sum_}; {free}"


def server_settings(database: Database, names: Sequence[str]) -> dict[str, str]:
    """Return some of the server's settings, by name; those that it does not know are left out."""
    with database.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(:names)"), {"names": list(names)}
        )
        return {str(name): str(value) for name, value in rows}


def psql_url(url: str) -> str:
    """Return the address as psql and pgbench take it."""
    parsed: URL = make_url(url)
    return parsed.set(drivername="postgresql").render_as_string(hide_password=False)
