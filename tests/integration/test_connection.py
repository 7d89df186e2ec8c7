"""The instances' way to Postgres: the same answers and the same errors as through the driver's cursors."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from bank.errors import OutcomeUnknown
from bank.postgres.connection import STATEMENTS_MAX, LeanConnection
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
    prepare_with_run(lean, "SELECT %(word)s::text, 'kept'")
    prepare_with_a_cursor(lean)
    lean.rollback()
    assert lean.run("SELECT %(word)s::text, 'kept'", {"word": "still"}).fetchone() == ("still", "kept")
    lean.rollback()


def test_statements_that_were_deallocated_are_prepared_anew_by_the_next_attempt(lean: LeanConnection) -> None:
    prepare_with_run(lean, "SELECT %(word)s::text")
    lean.run("SAVEPOINT before")
    prepare_with_a_cursor(lean)
    lean.execute("ROLLBACK TO SAVEPOINT before")  # psycopg sends DEALLOCATE ALL with the next statement
    lean.execute("SELECT 1")
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        lean.run("SELECT %(word)s::text", {"word": "lost"})
    lean.rollback()
    assert lean.run("SELECT %(word)s::text", {"word": "found"}).fetchone() == ("found",)
    lean.rollback()


def prepare_with_run(connection: LeanConnection, query: str) -> None:
    """Run a statement until the connection keeps it prepared."""
    for _ in range(2):
        assert connection.run(query, {"word": "prepared"}).fetchone() is not None
    assert query in {text for text, _ in connection._statements}


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("SELECT %s::int, %s, '%%'", (1, "two")),
        ("SELECT %s::int", [1]),
        ("SELECT %(a)s::int, %(b)s, %(a)s::int", {"a": 1, "b": "two", "c": 3}),
        (b"SELECT 1, '%'", None),
        ("SELECT '100%%'", None),
        (sql.SQL("SELECT {} FROM {}").format(sql.SQL("1"), sql.Identifier("pg_class")), None),
        (sql.SQL("SELECT {}, %(b)s").format(sql.Literal("it's")), {"b": "2"}),
        ("", None),
    ],
)
def test_what_a_cursor_takes_is_taken_and_answered_alike(lean: LeanConnection, query: Any, parameters: Any) -> None:
    for _ in range(3):  # as it is, then prepared, then known
        ours, theirs = lean.run(query, parameters), lean.execute(query, parameters)
        if theirs.description is None:
            assert ours.description is None
            with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
                ours.fetchall()
            continue
        assert ours.description is not None
        assert [(one.name, one.type_code) for one in ours.description] == [
            (one.name, one.type_code) for one in theirs.description
        ]
        assert (ours.fetchone(), ours.fetchmany(2), list(ours)) == (
            theirs.fetchone(),
            theirs.fetchmany(2),
            list(theirs),
        )
        assert ours.rowcount == theirs.rowcount
    lean.rollback()


def test_several_statements_without_parameters_are_run_together_any_number_of_times(lean: LeanConnection) -> None:
    for number in range(3):
        rows = lean.run("CREATE TEMPORARY TABLE both_run (n int) ON COMMIT DROP; SELECT 7")
        assert rows.fetchall() == [(7,)], number
        lean.rollback()


@pytest.mark.parametrize(
    ("query", "parameters"), [("SELECT %s, %s", (1,)), ("SELECT %(a)s", {}), ("SELECT %(a)s", (1,))]
)
def test_a_parameter_that_is_missing_is_named_before_anything_is_sent(
    lean: LeanConnection, query: str, parameters: Any
) -> None:
    with pytest.raises(psycopg.ProgrammingError, match="no parameter for a placeholder"):
        lean.run(query, parameters)
    assert lean.run("SELECT 1").fetchone() == (1,)
    lean.rollback()


def test_only_so_many_statements_stay_prepared_and_the_latest_are_kept(lean: LeanConnection) -> None:
    for number in range(2 * STATEMENTS_MAX):
        for _ in range(2):
            assert lean.run(f"SELECT %(n)s::int + {number}", {"n": 1}).fetchone() == (number + 1,)
    kept = lean.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'lean_%'").fetchone()
    assert kept == (STATEMENTS_MAX,)
    lean.rollback()


def test_texts_that_never_repeat_leave_nothing_behind(lean: LeanConnection) -> None:
    """As values in f-strings make them: 20,000 of them once took 130 MB in each backend."""

    def bytes_used() -> int:
        row = lean.execute("SELECT sum(used_bytes)::bigint FROM pg_backend_memory_contexts").fetchone()
        assert row is not None
        return int(row[0])

    def run(numbers: range) -> None:
        for number in numbers:
            lean.run(f"SELECT {number}")
            lean.run(f"SELECT {number} + %(n)s", {"n": number})
            if number % 1_000 == 0:
                lean.commit()

    run(range(500))
    before = bytes_used()
    run(range(500, 20_500))
    lean.commit()
    assert bytes_used() < before + 200_000
    assert len(lean._seen_once) <= STATEMENTS_MAX
    assert len(lean._statements) <= STATEMENTS_MAX


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
