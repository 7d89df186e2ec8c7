"""What a session depends on that is ours and knows no bank: the scheduler's, a trial's, that of who sets a server up.

The programs on trial have what their database, their role or they themselves say: these settings are not for them. Nor
are search_path and TimeZone here, since an invariant is asked as its author would.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

PINNED: Mapping[str, str] = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
}
"""What a database or a role may preset otherwise (manual, ALTER DATABASE, SET)."""

SINCE_17: Mapping[str, str] = {"transaction_timeout": "0"}


def pin_session(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Set these, in one round trip. For a connection in autocommit mode, as a superuser or anybody else."""
    wanted = {**PINNED, **(SINCE_17 if connection.info.server_version >= 170_000 else {})}
    connection.execute("; ".join(f"SET {name} = '{value}'" for name, value in wanted.items()).encode())


def is_direct(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether the backend that answers is the one that let us in: a pooler makes up the pid that it tells then."""
    return connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() == (connection.info.backend_pid,)
