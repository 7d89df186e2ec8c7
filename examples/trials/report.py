"""A report reads two rows while money moves from one to the other."""

import os

import psycopg
from psycopg import IsolationLevel


def transfer(amount: int) -> None:
    """A transfer that is right by itself."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("UPDATE account SET balance = balance - %s WHERE id = 1", [amount])
        connection.execute("UPDATE account SET balance = balance + %s WHERE id = 2", [amount])


def total(isolation: str = "READ_COMMITTED") -> int:
    """Two statements see two moments, unless the transaction has one snapshot (REPEATABLE READ)."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.isolation_level = IsolationLevel[isolation]
        (first,) = connection.execute("SELECT balance FROM account WHERE id = 1").fetchone()
        (second,) = connection.execute("SELECT balance FROM account WHERE id = 2").fetchone()
        return first + second
