"""Which Postgres can do what: the one place where a server's version decides between two forms of our SQL.

Servers from 15 on will do. What came later has a form for older ones too; both stand where they are used, and ``can``
chooses. Numbers are Postgres' own (manual, server_version_num): 15.4 is 150004.
"""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import Connection

OLDEST = 150_000
"""Below it there is no GRANT SET ON PARAMETER, and no ``STRATEGY file_copy`` for a database."""

INPUT_IS_VALID = 160_000
"""pg_input_is_valid(): whether a text can be read as a type, without an error."""
MAINTAIN = 170_000
"""The right to VACUUM, ANALYZE, CLUSTER and LOCK a table that belongs to another role."""
RETURNING_OLD = 180_000
"""``RETURNING old.…, new.…``: what an UPDATE found, beside what it left."""
UUIDV7 = 180_000
"""uuidv7(): ids that rise with time."""


def can(connection: Connection | psycopg.Connection[Any], what: int) -> bool:
    """Whether a connection's server has what came with a version; nothing is asked for that."""
    return version_of(connection) >= what


def version_of(connection: Connection | psycopg.Connection[Any]) -> int:
    """Return the version of a connection's server, as it said when the session was opened."""
    driver = connection.connection.driver_connection if isinstance(connection, Connection) else connection
    assert isinstance(driver, psycopg.Connection)
    return driver.info.server_version


def tell(version: int) -> str:
    """Return a version as people write it."""
    return f"{version // 10_000}.{version % 10_000}"


def choose_new_id(connection: psycopg.Connection[Any]) -> str:
    """Return the SQL of a new id: one that rises with time where there is such a function, else a random one."""
    return "uuidv7()" if can(connection, UUIDV7) else "gen_random_uuid()"
