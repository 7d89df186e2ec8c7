"""Transactions that were prepared: they outlive their sessions, and keep their database from being dropped."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql


def roll_back_prepared(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Roll back the prepared transactions of the database that this is a connection to.

    That needs whoever prepared them, or a superuser (manual, ROLLBACK PREPARED).
    """
    found = connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()").fetchall()
    for (gid,) in found:
        connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
