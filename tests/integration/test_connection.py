"""The instances' way to Postgres: the same answers and the same errors as through the driver's cursors."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest

from bank.errors import OutcomeUnknown
from bank.postgres.connection import LeanConnection
from bank.postgres.database import Database, psql_url
from tests.integration.conftest import BranchMaker


@pytest.fixture(scope="module")
def lean(database: Database) -> Iterator[LeanConnection]:
    """A connection of the kind that an instance has."""
    with LeanConnection.connect(psql_url(database.url)) as connection:
        yield connection


@pytest.mark.parametrize(
    "value",
    [
        *(
            0,
            -7,
            2**31 - 1,
            2**31,
            -(2**31) - 1,
            2**62,
            1.5,
            True,
            "a'b%\\ü",
            UUID(int=7),
            datetime(2026, 1, 2, tzinfo=UTC),
        ),
        *([1, 2, None], ["a,b", '"', None], [UUID(int=7)]),
    ],
)
def test_a_value_comes_back_as_it_does_from_a_cursor(lean: LeanConnection, value: Any) -> None:
    query: LiteralString = "SELECT %(value)s AS value, %(none)s::int AS none, '100%%' AS percent, %(value)s AS again"
    parameters = {"value": value, "none": None}
    for _ in range(2):  # prepared by the first
        assert lean.run(query, parameters).fetchall() == lean.execute(query, parameters).fetchall()
    lean.rollback()


def test_rows_are_counted_as_a_cursor_counts_them(lean: LeanConnection) -> None:
    lean.run("CREATE TEMPORARY TABLE counted (n int) ON COMMIT DROP")
    statements: tuple[LiteralString, ...] = (
        "INSERT INTO counted SELECT generate_series(1, 5)",
        "UPDATE counted SET n = 0 WHERE n > 3",
        "UPDATE counted SET n = 0 WHERE n > 3 RETURNING n",
        "SELECT n FROM counted",
    )
    counts = [lean.run(statement).rowcount for statement in statements]
    assert counts == [5, 2, 0, 5]
    lean.rollback()


def test_the_isolation_level_is_that_of_the_transaction(lean: LeanConnection) -> None:
    lean.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert lean.run("SHOW transaction_isolation").fetchone() == ("repeatable read",)
    lean.commit()
    lean.isolation_level = None
    assert lean.run("SHOW transaction_isolation").fetchone() == ("read committed",)
    lean.commit()


def test_an_error_is_the_drivers_with_its_sqlstate_and_the_constraint(lean: LeanConnection) -> None:
    lean.run("CREATE TEMPORARY TABLE checked (n int CONSTRAINT positive CHECK (n > 0)) ON COMMIT DROP")
    with pytest.raises(psycopg.errors.CheckViolation) as raised:
        lean.run("INSERT INTO checked VALUES (%(n)s)", {"n": -1})
    assert (raised.value.sqlstate, raised.value.diag.constraint_name) == ("23514", "positive")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        lean.run("SELECT 1")
    lean.rollback()
    assert list(lean.run("SELECT 1")) == [(1,)]
    lean.commit()


def test_a_rollback_after_cursors_that_prepare_leaves_our_statements(lean: LeanConnection) -> None:
    assert lean.run("SELECT 'kept'").fetchone() == ("kept",)
    prepare_with_a_cursor(lean)
    lean.rollback()
    assert lean.run("SELECT 'kept'").fetchone() == ("kept",)
    lean.rollback()


def test_statements_that_were_deallocated_are_prepared_anew_by_the_next_attempt(lean: LeanConnection) -> None:
    assert lean.run("SELECT 'lost'").fetchone() == ("lost",)
    lean.run("SAVEPOINT before")
    prepare_with_a_cursor(lean)
    lean.execute("ROLLBACK TO SAVEPOINT before")  # psycopg sends DEALLOCATE ALL with the next statement
    lean.execute("SELECT 1")
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        lean.run("SELECT 'lost'")
    lean.rollback()
    assert lean.run("SELECT 'lost'").fetchone() == ("lost",)
    lean.rollback()


def prepare_with_a_cursor(connection: LeanConnection) -> None:
    """Run a statement by a cursor until that has prepared it."""
    assert connection.prepare_threshold is not None
    for _ in range(connection.prepare_threshold + 1):
        connection.execute("SELECT 'by a cursor'")
    ours = connection.execute("SELECT FROM pg_prepared_statements WHERE statement LIKE '%by a cursor%'")
    assert ours.rowcount == 1


def test_a_connection_that_dies_under_a_statement_leaves_the_outcome_unknown(
    branch: BranchMaker, database: Database
) -> None:
    one = branch("row-lock", threads=1)

    def die() -> None:
        with one.database.transaction() as transaction:
            assert isinstance(transaction.raw, LeanConnection)
            with database.transaction() as other:
                pid = transaction.raw.info.backend_pid
                other.execute("SELECT pg_terminate_backend(%(pid)s, 5000)", {"pid": pid})
            transaction.execute("SELECT 1")

    with pytest.raises(OutcomeUnknown):
        die()
    with one.database.transaction() as transaction:
        assert transaction.execute("SELECT 1").fetchone() == (1,)
