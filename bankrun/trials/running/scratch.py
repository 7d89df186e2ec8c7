"""The database that a trial runs on: made for it, set up by the user's file, and dropped at the end.

By default on a Postgres of its own; on a given server beside the user's databases. There a session holds a lock as long
as the trial runs: a marked database whose lock is free was left by a trial that was killed, and the next one drops it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from bankrun.errors import CannotStart
from bankrun.own_sessions import pin_session
from bankrun.schedule import roll_back_prepared
from bankrun.servers import binaries
from bankrun.servers.embedded import private_postgres
from bankrun.trials.judging.values import Windows
from bankrun.trials.running.addresses import Address
from bankrun.trials.running.programs import Call, Script

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

PREFIX = "bankrun_trial_"
TEMPLATE_SUFFIX = "_as_it_was"
MARKER = "a scratch database of bankrun try"
SETUP_SECONDS_MAX = 120.0
VERSION_MIN = 150_000
WINDOW = 10_000
"""How many ids each sequence may draw in all runs; the second half is for the second run of a serial order."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server that trials may use: ``database`` is where one connects to make another."""

    host: str
    port: int
    user: str
    password: str
    database: str
    is_ours: bool
    log: Path | None = None

    def connect(self, database: str | None = None) -> Connection:
        """Open a session of ours, in autocommit mode. Raises CannotStart, in a sentence without a password."""
        try:
            connection = psycopg.connect(
                host=self.host,
                port=self.port,
                user=self.user or None,
                password=self.password or None,
                dbname=database or self.database,
                autocommit=True,
                application_name="bankrun try",
                connect_timeout=10,
            )
            pin_session(connection)
            return connection
        except psycopg.Error as error:
            raise CannotStart(f"{self.host}:{self.port} cannot be used: {_first_line(error)}") from error


@contextmanager
def open_place(state_dir: Path | None, settings: Mapping[str, str]) -> Iterator[Place]:
    """Start a server of our own with these settings for the block."""
    with private_postgres(state_dir, settings) as server:
        yield Place(str(server.host), int(server.port), server.user, "", "postgres", is_ours=True, log=server.log)


def read_place(url: str) -> Place:
    """Return the server that a URL names. Raises CannotStart for what is no URL of a Postgres, or needs TLS."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise CannotStart("--database-url is postgresql://user@host:port/database")
    try:
        given = conninfo_to_dict(f"postgresql://{rest}")
    except psycopg.Error as error:
        raise CannotStart(f"--database-url cannot be read: {_first_line(error)}") from error
    if str(given.get("sslmode", "")) in ("require", "verify-ca", "verify-full"):
        raise CannotStart(
            "--database-url asks for TLS: steps are read from the connection, so it must be plain; "
            "leave --database-url out (a private server is started), or reach the server through a tunnel"
        )
    port = str(given.get("port") or os.environ.get("PGPORT") or 5432)
    if not re.fullmatch("[0-9]{1,5}", port):
        raise CannotStart(f"--database-url names the port {port!r}, which is no number of one")
    host = str(given.get("host") or os.environ.get("PGHOST") or "127.0.0.1")
    user = str(given.get("user") or os.environ.get("PGUSER") or "")
    return Place(
        host,
        int(port),
        user,
        str(given.get("password") or os.environ.get("PGPASSWORD") or ""),
        str(given.get("dbname") or user or "postgres"),
        is_ours=False,
    )


@contextmanager
def scratch_database(place: Place) -> Iterator[Address]:
    """Make an empty, marked database for the block, and drop it after it. Drops what killed trials left.

    Raises CannotStart if the server is too old, or the role may not create databases.
    """
    with place.connect() as keeper:
        if keeper.info.server_version < VERSION_MIN:
            raise CannotStart(
                f"this server is Postgres {keeper.info.server_version // 10_000}: trials need 15 or newer"
            )
        sweep(place, keeper)
        name = PREFIX + secrets.token_hex(6)
        _lock(keeper, name)
        try:
            keeper.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
            mark(keeper, name)
        except psycopg.Error as error:
            raise CannotStart(f"no database can be made for the trial: {_first_line(error)}") from error
        try:
            yield Address(place.host, place.port, place.user or keeper.info.user, name, place.password)
        finally:
            if keeper.closed:
                with place.connect() as another:
                    drop(another, name)
            else:
                drop(keeper, name)


def mark(keeper: Connection, name: str) -> None:
    """Say of a database that it is ours to drop."""
    keeper.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(MARKER)))


def drop(keeper: Connection, name: str) -> None:
    """Drop a database and the template that was made of it."""
    for one in (name + TEMPLATE_SUFFIX, name):
        keeper.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(one)))


def sweep(place: Place, keeper: Connection) -> list[str]:
    """Drop what trials that were killed left, and return its names; what is in use, or has no marker, stays."""
    marked = {
        name.removesuffix(TEMPLATE_SUFFIX)
        for (name,) in keeper.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
            " AND shobj_description(oid, 'pg_database') = %s AND pg_has_role(datdba, 'USAGE')",
            [PREFIX, MARKER],
        )
    }
    left = []
    for name in sorted(marked):
        if keeper.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name]).fetchone() == (True,):
            if keeper.execute("SELECT 1 FROM pg_prepared_xacts WHERE database = %s", [name]).fetchone():
                with place.connect(name) as inside:
                    roll_back_prepared(inside)
            drop(keeper, name)
            keeper.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [name])
            left.append(name)
    return left


def _lock(keeper: Connection, name: str) -> None:
    keeper.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])


def set_up(address: Address, setup: Call | Script | None, templates: Mapping[str, str]) -> None:
    """Build the schema and the data. Raises CannotStart with the first error."""
    if isinstance(setup, Script):
        _run_script(address, setup)
    elif setup is not None:
        _run_function(address, setup, templates)


def psql_argv() -> list[str]:
    """Return the embedded psql, told to stop at the first error and to read no file of the user's."""
    return [str(binaries.find_binaries().postgres / "bin" / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]


def _run_script(address: Address, script: Script) -> None:
    process = _run([*psql_argv(), "-o", os.devnull, "-f", str(script.file)], address, {}, str(script.file.parent))
    if process.returncode:
        errors = [line for line in process.stderr.splitlines() if "ERROR" in line or "error" in line]
        why = (errors or process.stderr.splitlines() or ["psql failed"])[0]
        # psql: "psql:/a/b/schema.sql:3: ERROR:  why"
        why = why.replace(f"psql:{script.file}:", f"{script.name}:")
        raise CannotStart(f"the set-up failed: {why}")


def _run_function(address: Address, call: Call, templates: Mapping[str, str]) -> None:
    given = json.dumps([list(call.arguments), dict(call.keywords)])
    argv = [
        sys.executable,
        "-P",
        "-m",
        "bankrun.trials.running.participant",
        str(call.file),
        call.function,
        given,
        "-1",
    ]
    process = _run(argv, address, templates, str(Path.cwd()))
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.strip()]
        raise CannotStart(f"the set-up {call.name} failed: {lines[-1] if lines else f'exit {process.returncode}'}")


def _run(
    argv: list[str], address: Address, templates: Mapping[str, str], directory: str
) -> subprocess.CompletedProcess[str]:
    try:
        with tempfile.TemporaryFile("w+", errors="replace") as complained:
            process = subprocess.run(
                argv,
                env={**os.environ, **address.environment(templates)},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complained,
                timeout=SETUP_SECONDS_MAX,
                check=False,
            )
            complained.seek(0)
            return subprocess.CompletedProcess(argv, process.returncode, "", complained.read(100_000))
    except subprocess.TimeoutExpired as error:
        raise CannotStart(f"the set-up did not end within {SETUP_SECONDS_MAX:g} s") from error


def spread_sequences(connection: Connection) -> Windows:
    """Give each sequence a range of its own, so that it is known of an id who drew it; return the ranges.

    A sequence that runs backwards, or whose type has no room, stays as it is.
    """
    found = connection.execute(
        "SELECT schemaname, sequencename, coalesce(last_value, 0), increment_by, max_value, cycle FROM pg_sequences"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2"
    ).fetchall()
    begin = (max((last for _, _, last, *_ in found), default=0) // WINDOW + 1) * WINDOW
    ranges = []
    for schema, name, last, increment, largest, cycles in found:
        if increment < 1 or cycles:
            continue
        size = WINDOW if begin + WINDOW <= largest else WINDOW // 10
        start = begin if begin + size <= largest else last
        if start + size > largest:
            continue
        ranges.append(range(start + 1, start + size))
        _set_sequence(connection, schema, name, start + 1)
        begin = max(begin, start) + size
    return Windows(tuple(ranges))


def move_sequences(connection: Connection, windows: Windows) -> None:
    """Let each sequence draw from the second half of its range."""
    halves = {one.start: one.start + len(one) // 2 for one in windows.ranges}
    for schema, name, last in connection.execute(
        "SELECT schemaname, sequencename, coalesce(last_value, start_value) FROM pg_sequences"
    ).fetchall():
        for start, half in halves.items():
            if start <= last < half:
                _set_sequence(connection, schema, name, half)


def _set_sequence(connection: Connection, schema: str, name: str, value: int) -> None:
    # is_called: the next one drawn is value + increment; the value itself is never seen.
    connection.execute("SELECT setval(%s::regclass, %s)", [sql.Identifier(schema, name).as_string(connection), value])


def primary_keys(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Return the columns of each table's primary key, by the table's qualified name."""
    rows = connection.execute(
        "SELECT n.nspname || '.' || c.relname, array_agg(a.attname::text ORDER BY k.n) FROM pg_constraint p"
        " JOIN pg_class c ON c.oid = p.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace,"
        " LATERAL unnest(p.conkey) WITH ORDINALITY k(attnum, n), pg_attribute a"
        " WHERE p.contype = 'p' AND a.attrelid = c.oid AND a.attnum = k.attnum GROUP BY 1"
    )
    return {table: tuple(columns) for table, columns in rows.fetchall()}


def columns(connection: Connection) -> frozenset[str]:
    """Return the columns of all tables, as ``table.column``; the schema is named unless it is public."""
    rows = connection.execute(
        "SELECT CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || c.relname || '.' || a.attname"
        " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped"
        " AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
    )
    return frozenset(name for (name,) in rows.fetchall())


def set_isolation(connection: Connection, database: str, isolation: str) -> None:
    """Make this the isolation of transactions that do not name one."""
    connection.execute(
        sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(
            sql.Identifier(database), sql.Literal(isolation)
        )
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
