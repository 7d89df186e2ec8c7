"""The database that a trial runs on: made for it, set up by the user's file, and dropped at the end.

By default on a Postgres of its own; on a given server beside the user's databases (``bankrun.servers.places``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from psycopg import sql

from bankrun.errors import CannotStart
from bankrun.schedule.server import tune_database
from bankrun.servers import binaries
from bankrun.servers.embedded import private_postgres
from bankrun.servers.places import Connection, Place, open_keeper, own_place, scratch_copy
from bankrun.trials.judging.values import Windows
from bankrun.trials.running.addresses import Address
from bankrun.trials.running.programs import Call, Script

SETUP_SECONDS_MAX = 120.0
WINDOW = 10_000
"""How many ids each sequence may draw in all runs; the second half is for the second run of a serial order."""


@contextmanager
def open_place(state_dir: Path | None, settings: Mapping[str, str]) -> Iterator[Place]:
    """Start a server of our own with these settings for the block."""
    with private_postgres(state_dir, settings) as server:
        yield own_place(server)


@contextmanager
def scratch_database(place: Place) -> Iterator[Address]:
    """Make an empty, marked database for the block, and drop it after it. Drops what killed trials left.

    Raises CannotStart if the server is too old, or a pooler, or if the role may not create databases.
    """
    with open_keeper(place) as keeper, scratch_copy(place, keeper) as name:
        if not place.is_ours:
            tune_database(keeper, name)
        yield Address(place.host, place.port, place.user or keeper.info.user, name, place.password)


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
