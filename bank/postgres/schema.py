"""The schema: made, emptied and dropped only where our marker is found; who may use it, and how many connections."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.schema import CreateColumn

from bank.errors import CannotStart, NotReady, Occupied
from bank.postgres import models, poolers, roles, versions
from bank.postgres.catalog import note_as_made
from bank.postgres.database import BALANCE_CHECK, Database
from bank.settings import without_password

LAB_CONNECTIONS = 8  # the lab's own: audit, progress, its advisory lock, and a user's psql
LAB_LOCK_KEY = 0x62616E6B  # "bank": one lab at a time per database
MARKER = "bankrun:1:"


def open_for_lab(url: str) -> Database:
    """Connect as the lab does, and check that this is a server and a schema that bankrun may use.

    Raises CannotStart, and leaves everything as it was, if there is no server, if it is older than Postgres 15, if a
    pooler in between will not do, or if it holds a schema of our name that we did not make; NotReady if the server may
    only be starting.
    """
    database = Database(url, connections_max=LAB_CONNECTIONS, application_name="bankrun lab", options={})
    try:
        with database.engine.connect() as connection:
            version = versions.version_of(connection)
            if version < versions.OLDEST:
                raise CannotStart(
                    f"{without_password(url)} is Postgres {versions.tell(version)}: "
                    f"bankrun needs {versions.OLDEST // 10_000} or newer"
                )
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
    why = lines[0].rpartition("failed: ")[2].strip() if lines else "no answer"
    return why + next((hint for said, hint in OF_POOLERS.items() if said in why), "")


OF_POOLERS = {
    **dict.fromkeys(
        poolers.REFUSALS,
        "; take the options out of the address, or let the pooler in between ignore them (pgbouncer: "
        "ignore_startup_parameters = options)",
    ),
    "query_wait_timeout": "; the pooler in between has no session free: allow it more (pgbouncer: default_pool_size)",
}
"""What to do where a pooler does not let us in."""


def _marker(connection: Connection) -> str | None:
    return connection.execute(
        text(
            "SELECT coalesce(pg_catalog.obj_description(oid, 'pg_namespace'), '')"
            " FROM pg_catalog.pg_namespace WHERE nspname = :name"
        ),
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
    """Make the schema and its tables: those that are missing, since an older bankrun may have made the others.

    The workers' role, if there is one, gets its rights. Raises CannotStart if our own role has too few for this.
    """
    with database.engine.begin() as connection:
        if _refuse_strangers(connection, database.url) is None:
            roles.check_may_create(connection, database.url)
            _make(connection, f"{MARKER}{uuid.uuid4()}")
        roles.check_owner(connection, database.url)
        models.metadata.create_all(connection)
        _add_columns(connection)
        roles.grant_to_workers(connection)


def _make(connection: Connection, marker: str) -> None:
    """Make the schema and its tables, and note in a comment what they look like."""
    connection.exec_driver_sql(f"CREATE SCHEMA {models.SCHEMA}")
    connection.exec_driver_sql(f"COMMENT ON SCHEMA {models.SCHEMA} IS '{marker}'")
    models.metadata.create_all(connection)
    note_as_made(connection)


def renew_schema(database: Database) -> None:
    """Make our schema anew, empty, with the identity that it had: nothing that a strategy made is left in it.

    Raises CannotStart if it is not ours, or if our role may not make schemas.
    """
    with database.engine.begin() as connection:
        marker = _refuse_strangers(connection, database.url)
        if marker is None:
            raise CannotStart(f"{without_password(database.url)} holds no bank yet")
        roles.check_may_create(connection, database.url)
        _drop(connection, database.url)
        _make(connection, marker)
        roles.grant_to_workers(connection)


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
            _drop(connection, database.url)


def _drop(connection: Connection, url: str) -> None:
    """Drop the schema, which is ours. Raises CannotStart if a table elsewhere, with its rows, would go with it."""
    heirs = connection.execute(text(HEIRS), {"schema": models.SCHEMA}).scalars().all()
    if heirs:
        raise CannotStart(
            f"{without_password(url)}: {', '.join(heirs)} inherits from a table of bankrun, and would be dropped with "
            "it: it was left untouched; end that (ALTER TABLE … NO INHERIT), or use another database"
        )
    connection.exec_driver_sql(f"DROP SCHEMA {models.SCHEMA} CASCADE")


HEIRS = """
    SELECT heir_schema.nspname || '.' || heir.relname
    FROM pg_catalog.pg_inherits
    JOIN pg_catalog.pg_class parent ON parent.oid = inhparent JOIN pg_catalog.pg_class heir ON heir.oid = inhrelid
    JOIN pg_catalog.pg_namespace schema ON schema.oid = parent.relnamespace
    JOIN pg_catalog.pg_namespace heir_schema ON heir_schema.oid = heir.relnamespace
    WHERE schema.nspname = :schema AND heir.relnamespace <> parent.relnamespace ORDER BY 1
"""
"""Tables in other schemas that inherit from ours."""


def open_bank(database: Database, *, accounts: int, opening: int, constraint: bool = False) -> None:
    """Empty the bank and open ``accounts`` accounts, numbered from 1, with ``opening`` minor units each."""
    with database.engine.begin() as connection:
        if not _refuse_strangers(connection, database.url):
            raise CannotStart(f"{without_password(database.url)} holds no bank yet")
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        reset_bank(driver, range(1, accounts + 1), opening)
        table = f"{models.SCHEMA}.accounts"
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {BALANCE_CHECK}")
        if constraint:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {BALANCE_CHECK} CHECK (balance >= 0)")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        tables = ", ".join(f"{models.SCHEMA}.{name}" for name in ("accounts", "transfers", "entries"))
        connection.exec_driver_sql(f"ANALYZE {tables}")


def reset_bank(connection: psycopg.Connection[Any], accounts: Iterable[int], opening: int) -> None:
    """Empty every table, begin every sequence anew and open the accounts, in the connection's transaction.

    Raises CannotStart, and empties nothing, unless the schema has our marker. Only ours are emptied: neither a table of
    the same name in another schema, nor one that inherits from ours.
    """
    marked = connection.execute(MARKED, {"schema": models.SCHEMA, "marker": MARKER}).fetchone()
    if marked != (True,):
        raise CannotStart(f"the schema {models.SCHEMA!r} there was not made by bankrun: it was left untouched")
    # In the order in which reconcilers and tellers lock them: one still at work would otherwise deadlock with this.
    names = ("runs", "transfers", "accounts", "entries", "fences")
    connection.execute(f"TRUNCATE {', '.join(f'ONLY {models.SCHEMA}.{name}' for name in names)}".encode())
    for sequence in ("entry_ids", "entry_seq", "fence_tokens"):
        connection.execute("SELECT pg_catalog.setval(%s::regclass, 1, false)", [f"{models.SCHEMA}.{sequence}"])
    connection.execute(
        f"INSERT INTO {models.SCHEMA}.accounts (id, opening, balance) SELECT unnest(%s::int[]), %s, %s".encode(),
        [list(accounts), opening, opening],
    )


MARKED: LiteralString = """
    SELECT pg_catalog.starts_with(pg_catalog.obj_description(oid, 'pg_namespace'), %(marker)s)
    FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s
"""


@contextmanager
def only_lab(database: Database) -> Iterator[None]:
    """Hold the database's advisory lock for the block. Raises Occupied if another lab holds it."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LAB_LOCK_KEY}).scalar_one():
            raise Occupied(
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
            " + coalesce(current_setting('reserved_connections', true), '0')::int"  # came with 16
        ).one()
    needed = instances * (threads + 1) + LAB_CONNECTIONS
    sum_ = (
        f"{instances} instances x ({threads} threads + 1 reconciler) + {LAB_CONNECTIONS} for the lab"
        f" = {needed} connections"
    )
    free = f"Postgres gives {maximum} - {reserved} reserved = {maximum - reserved}"
    if database.is_pooled:
        free += ", and the pooler in between has to allow as many"
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
