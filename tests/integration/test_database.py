"""Which servers and schemas bankrun uses, and which it refuses untouched."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest
from sqlalchemy import make_url

from bank.errors import CannotStart, Conflict, OutcomeUnknown
from bank.postgres import versions
from bank.postgres.database import Database
from bank.postgres.schema import (
    bank_id,
    check_connection_budget,
    create_schema,
    drop_schema,
    only_lab,
    open_bank,
    open_for_lab,
)
from bank.settings import Settings
from tests.waiting import wait_until


@pytest.fixture
def other_url(database: Database) -> Iterator[str]:
    """The address of a second, empty database on the same server."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE other")
    yield make_url(database.url).set(database="other").render_as_string(hide_password=False)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("DROP DATABASE other WITH (FORCE)")


def test_a_schema_of_our_name_that_we_did_not_make_is_refused_and_left_alone(other_url: str) -> None:
    other = Database(other_url, connections_max=1, application_name="test", options={})
    with other.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA bankrun")
        connection.exec_driver_sql("CREATE TABLE bankrun.precious AS SELECT 42 AS value")
    for use in (
        lambda: open_for_lab(other_url),
        lambda: create_schema(other),
        lambda: open_bank(other, accounts=2, opening=1),
        lambda: drop_schema(other),
    ):
        with pytest.raises(CannotStart, match="that bankrun did not make"):
            use()
    with other.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT value FROM bankrun.precious").scalar_one() == 42
    other.close()


def test_a_schema_of_ours_is_made_once_keeps_its_identity_and_can_be_dropped(other_url: str) -> None:
    other = open_for_lab(other_url)
    assert bank_id(other) is None
    create_schema(other)
    made = bank_id(other)
    create_schema(other)
    assert made == bank_id(other) is not None
    drop_schema(other)
    assert bank_id(other) is None
    other.close()


def test_a_server_that_is_too_old_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "OLDEST", 990_000)
    with pytest.raises(CannotStart, match=r"is Postgres 18\.\d+: bankrun needs 99 or newer"):
        open_for_lab(database.url)


def test_a_wrong_password_is_one_sentence_that_does_not_repeat_it(database: Database) -> None:
    parsed = make_url(database.url).set(username="nobody-knows-me", password="hunter2")
    with pytest.raises(CannotStart, match="no Postgres at") as refusal:
        open_for_lab(parsed.render_as_string(hide_password=False))
    assert "\n" not in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    assert "nobody-knows-me" in str(refusal.value)


def test_more_connections_than_the_server_gives_are_refused_with_the_arithmetic(database: Database) -> None:
    enough = check_connection_budget(database, instances=3, threads=8)
    assert "3 instances x (8 threads + 1 reconciler) + 8 for the lab = 35" in enough
    with pytest.raises(CannotStart, match=r"8 instances x \(64 threads .* for the lab = 528 .*Postgres gives 200 - 3"):
        check_connection_budget(database, instances=8, threads=64)


def test_there_is_one_lab_at_a_time(database: Database) -> None:
    with only_lab(database), pytest.raises(CannotStart, match="another bankrun is using"), only_lab(database):
        pass
    with only_lab(database):
        pass


def lock_account(database: Database) -> None:
    with database.transaction() as transaction:
        transaction.execute("SELECT 1 FROM accounts WHERE id = 1 FOR UPDATE")


def test_a_lock_that_is_not_free_in_time_is_a_conflict(database: Database, bank: Database, settings: Settings) -> None:
    hurried = settings.model_copy(update={"lock_timeout_ms": 50})
    second = Database.for_instance(database.url, instance="second", threads=1, settings=hurried)
    with database.transaction() as holder:
        holder.execute("SELECT 1 FROM accounts WHERE id = 1 FOR UPDATE")
        with pytest.raises(Conflict) as conflict:
            lock_account(second)
    assert conflict.value.sqlstate == "55P03"
    second.close()


def test_a_connection_that_dies_leaves_an_unknown_outcome_and_the_next_transaction_works(
    database: Database, settings: Settings
) -> None:
    one = Database.for_instance(database.url, instance="one", threads=1, settings=settings)

    def lose_the_connection() -> None:
        with one.transaction() as transaction:
            pid = transaction.raw.info.backend_pid
            with database.transaction() as killer:
                killer.execute("SELECT pg_terminate_backend(%(pid)s)", {"pid": pid})
            transaction.execute("SELECT 1")

    with pytest.raises(OutcomeUnknown):
        lose_the_connection()
    with one.transaction() as transaction:
        assert transaction.execute("SELECT 1").fetchone() == (1,)
    one.close()


def test_a_failed_transaction_leaves_no_trace(database: Database, bank: Database) -> None:

    def fail() -> None:
        with database.transaction() as transaction:
            transaction.execute("UPDATE accounts SET balance = 0")
            transaction.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        fail()
    with database.transaction() as transaction:
        assert transaction.execute("SELECT sum(balance) FROM accounts").fetchone() == (300,)


def test_a_reconciler_that_is_at_work_makes_a_new_bank_wait_and_nothing_deadlocks(
    database: Database, bank: Database
) -> None:
    def waits() -> bool:
        with database.transaction() as transaction:
            row = transaction.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            return row == (1,)

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as reading:
            reading.execute("SELECT count(*) FROM runs")
            opened = pool.submit(open_bank, database, accounts=2, opening=1)
            assert wait_until(waits, 5)
            reading.execute("SELECT count(*) FROM transfers")
        opened.result(timeout=5)


def test_an_error_that_was_caught_on_the_way_cannot_end_in_a_commit(database: Database) -> None:
    def swallow() -> None:
        with database.transaction() as transaction, suppress(psycopg.Error):
            transaction.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="its error was caught"):
        swallow()
    with database.transaction() as transaction:
        assert transaction.execute("SELECT 1").fetchone() == (1,)
