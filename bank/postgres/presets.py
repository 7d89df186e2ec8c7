"""What a session of ours depends on, pinned when it is opened.

A server, a database or a role may preset nearly everything (manual, ALTER DATABASE and ALTER ROLE, SET), and so may
variables of libpq. We ask for ours with the start-up packet's ``options``, which is what a RESET goes back to. A pooler
may drop these, or refuse them, so that we leave them out; so one statement after connecting makes it so, and says what
was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, text

from bank.errors import CannotStart
from bank.postgres import models

CONNECT_SECONDS_MAX = 10
BACKSLASH = chr(92)

PINNED: Mapping[str, str] = {
    "search_path": models.SCHEMA,
    # What a transaction is that says nothing else.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # A worker has limits of its own; the lab waits, and can be interrupted.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    # How values are read and written: the driver knows dates as ISO writes them, and no others.
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",  # SQLAlchemy takes a quoted type for an unknown one
    # What is seen, and where tables are made.
    "row_security": "on",
    "default_table_access_method": "heap",
}
"""What every session has, unless it asks for something else: a worker for its timeouts."""

NOT_AT_STARTUP = ("transaction_timeout",)
"""Came with Postgres 17: an older server would end a session that asks for it."""

UNPINNED: Mapping[str, str] = {
    "synchronous_commit": "a crash could lose the last commits",
    "session_replication_role": "triggers and foreign keys do not work in such a session",
    "role": "its sessions have the rights of another role than the one that logs in",
}
"""What is the server's or its owner's choice, or takes a superuser: ``bankrun doctor`` names it."""

PIN = """
    SELECT pg_catalog.pg_backend_pid(), coalesce(pg_catalog.string_agg(name, ','), '') FROM (
        SELECT name, before, CASE WHEN before IS NOT NULL THEN pg_catalog.set_config(name, value, false) END AS after
        FROM (
            SELECT name, value, pg_catalog.current_setting(name, true) AS before
            FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[])) AS wanted (name, value)
            OFFSET 0
        ) AS asked OFFSET 0
    ) AS done WHERE before OPERATOR(pg_catalog.<>) after
"""
"""Sets each, and returns those that were otherwise, and who answers; what an older server does not know is left out.

Both values are as the server writes them. OFFSET 0 keeps the value before from being asked for after.
"""


def connect_arguments(
    address: str, wanted: Mapping[str, str], application_name: str, *, with_options: bool = True
) -> dict[str, Any]:
    """Return what to connect with, beside the address: its own ``options`` stay, and ours come after them."""
    own = str(conninfo_to_dict(address).get("options") or "")
    arguments: dict[str, Any] = {"application_name": application_name, "connect_timeout": CONNECT_SECONDS_MAX}
    return {**arguments, "options": f"{own} {as_options(wanted)}".strip()} if with_options else arguments


def as_options(wanted: Mapping[str, str] = PINNED) -> str:
    """Return settings as the start-up packet's ``options`` and PGOPTIONS have them."""
    return " ".join(
        f"-c {name}={value.replace(' ', BACKSLASH + ' ')}"
        for name, value in wanted.items()
        if name not in NOT_AT_STARTUP
    )


class Pinned(NamedTuple):
    """What was found when a session was pinned: the backend that answered, and the names of what was not as wanted."""

    backend_pid: int
    changed: frozenset[str]


def pin(connection: psycopg.Connection[Any], wanted: Mapping[str, str]) -> Pinned:
    """Set what is not as it is wanted, in one round trip.

    For a connection that was just opened. Raises CannotStart, in one sentence with the setting's name, if the server
    refuses one; psycopg.OperationalError if the connection is lost.
    """
    connection.autocommit = True
    try:
        # No cursor of the connection's own class: one that counts, or stops at, statements is not meant.
        row = psycopg.Cursor(connection).execute(PIN, [list(wanted), list(wanted.values())]).fetchone()
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        why = str(error).strip().partition("\n")[0]
        raise CannotStart(f"Postgres does not let a session have what bankrun depends on: {why}") from error
    connection.autocommit = False
    assert row is not None
    backend_pid, names = row
    return Pinned(backend_pid, frozenset(filter(None, _as_text(names).split(","))))


@dataclass(frozen=True, slots=True)
class Preset:
    """A setting that a database, a role, or one of both, presets. ``whose`` says which, in words."""

    name: str
    value: str
    whose: str


def find_presets(connection: Connection) -> list[Preset]:
    """Return what is preset for sessions in this database, of any role. A server's own configuration is not among it.

    Names are as this file writes them.
    """
    known = {name.lower(): name for name in (*PINNED, *UNPINNED)}
    rows = connection.execute(text(PRESETS), {"names": list(known)})
    return [Preset(known[str(name)], str(value), str(whose)) for name, value, whose in rows]


PRESETS = """
    SELECT lower(split_part(setting, '=', 1)), substr(setting, strpos(setting, '=') + 1),
           concat_ws(' in ', 'the role ' || r.rolname, 'the database ' || d.datname)
    FROM pg_catalog.pg_db_role_setting s CROSS JOIN unnest(setconfig) AS setting
    LEFT JOIN pg_catalog.pg_database d ON d.oid = setdatabase LEFT JOIN pg_catalog.pg_roles r ON r.oid = setrole
    WHERE (setdatabase = 0 OR datname = current_database()) AND lower(split_part(setting, '=', 1)) = ANY(:names)
    ORDER BY 3, 1
"""


def _as_text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode()  # bytes: the encoding was SQL_ASCII until now
