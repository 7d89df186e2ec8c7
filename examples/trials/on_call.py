"""One doctor must stay on call. Each looks, sees two, and leaves (write skew)."""

import os

import psycopg
from psycopg import IsolationLevel


def leave(name: str, isolation: str = "READ_COMMITTED") -> str:
    """Leave, if there is another. Only SERIALIZABLE sees that what was read has changed; then one is to try again."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.isolation_level = IsolationLevel[isolation]
        (count,) = connection.execute("SELECT count(*) FROM doctor WHERE on_call").fetchone()
        if count < 2:
            return "stays"
        connection.execute("UPDATE doctor SET on_call = false WHERE name = %s", [name])
        return "leaves"


def leave_locked(name: str) -> str:
    """All who are on call are locked first, in one order: the second counts after the first has left."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("SELECT name FROM doctor ORDER BY name FOR UPDATE")
        (count,) = connection.execute("SELECT count(*) FROM doctor WHERE on_call").fetchone()
        if count < 2:
            return "stays"
        connection.execute("UPDATE doctor SET on_call = false WHERE name = %s", [name])
        return "leaves"
