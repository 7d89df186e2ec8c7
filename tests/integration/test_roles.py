"""What the workers' role can do, and what it cannot; which roles a lab can work with."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import make_url

from bank.audit import audit
from bank.errors import CannotStart
from bank.postgres.database import Database, psql_url
from bank.postgres.models import metadata
from bank.postgres.roles import (
    LAB_ROLE,
    RIGHTS,
    SEQUENCES,
    WORKER_ROLE,
    check_own_role,
    check_readable,
    check_worker_roles,
    excess,
    missing,
    set_up_server,
)
from bank.postgres.schema import create_schema, drop_schema, open_bank, open_for_lab
from tests.integration.conftest import BranchMaker, balances, order
from workers.submission import Submission, accept

NOT_FOR_WORKERS = [
    "CREATE TABLE mine (id int)",
    "CREATE TABLE public.mine (id int)",
    "CREATE TEMPORARY TABLE mine (id int)",
    "CREATE SCHEMA mine",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE accounts DROP COLUMN opening",
    "ALTER TABLE accounts DISABLE TRIGGER ALL",
    "ALTER SEQUENCE entry_seq RESTART",
    "SELECT setval('entry_seq', 1)",
    "DROP TABLE entries",
    "DROP SCHEMA bankrun CASCADE",
    "TRUNCATE entries",
    "DELETE FROM entries",
    "DELETE FROM accounts",
    "DELETE FROM transfers",
    "UPDATE entries SET delta = 0",
    "UPDATE transfers SET amount = 1",
    "UPDATE transfers SET strategy = 'none'",
    "UPDATE runs SET queue = 'mine'",
    "INSERT INTO transfers (id, debit, credit, amount, strategy) VALUES (gen_random_uuid(), 1, 2, 1, 'none')",
    "INSERT INTO accounts (id, opening, balance) VALUES (99, 1, 1)",
    "INSERT INTO entries (id, seq) VALUES (1, 1)",
    "SET ROLE bankrun",
    "ALTER ROLE bankrun_worker SUPERUSER",
    "ALTER SYSTEM SET fsync = off",
    "SELECT value FROM elsewhere.secret",
    "SELECT rolpassword FROM pg_authid",
    "SELECT pg_read_file('postgresql.conf')",
    "COPY accounts TO PROGRAM 'cat'",
]


@pytest.fixture
def worker(bank: Database, worker_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session of the workers' role, beside a schema that is not ours."""
    with bank.engine.begin() as owner:
        owner.exec_driver_sql("CREATE SCHEMA elsewhere")
        owner.exec_driver_sql("CREATE TABLE elsewhere.secret AS SELECT 42 AS value")
    with psycopg.connect(psql_url(worker_url), autocommit=True) as connection:
        yield connection
    with bank.engine.begin() as owner:
        owner.exec_driver_sql("DROP SCHEMA elsewhere CASCADE")


def test_the_workers_role_can_do_what_transfers_take_and_nothing_else(
    bank: Database, worker: psycopg.Connection[tuple[object, ...]]
) -> None:
    accept(bank, [order(1, 1, 2, 10)], Submission("test", "none", "test"), forgettable=True)
    assert worker.execute("SELECT current_user, current_setting('search_path')").fetchone() == (WORKER_ROLE, "bankrun")
    for statement in NOT_FOR_WORKERS:
        try:
            worker.execute(statement)
        except InsufficientPrivilege:
            continue
        pytest.fail(f"it may: {statement}")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(worker.info.dsn, dbname="postgres")
    assert balances(bank) == [100, 100, 100]
    with bank.engine.connect() as connection:
        assert missing(connection, WORKER_ROLE) == []
        assert excess(connection, WORKER_ROLE) == []
        assert excess(connection, "bankrun") == ["is a superuser", "owns the schema bankrun"]


def test_instances_in_these_tests_have_the_workers_role(branch: BranchMaker, bank: Database) -> None:
    with branch("row-lock").database.transaction() as transaction:
        assert transaction.execute("SELECT current_user").fetchone() == (WORKER_ROLE,)
    check_worker_roles(bank)


def test_every_table_and_sequence_is_decided_upon() -> None:
    assert {table.name for table in metadata.sorted_tables} == RIGHTS.keys()
    assert set(SEQUENCES) == {name.rpartition(".")[2] for name in metadata._sequences}
    for table in metadata.sorted_tables:
        columns = {column for granted in RIGHTS[table.name].values() for column in granted}
        assert columns <= {column.name for column in table.columns}


# ---- servers on which the lab is no superuser


@pytest.fixture
def other(database: Database) -> Iterator[str]:
    """The address of an empty database on the same server, as its superuser."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE other")
        yield make_url(database.url).set(database="other").render_as_string(hide_password=False)
        connection.exec_driver_sql("DROP DATABASE other WITH (FORCE)")
        for role in (LAB_ROLE, "somebody"):
            found = connection.exec_driver_sql(f"SELECT FROM pg_roles WHERE rolname = '{role}'").rowcount
            if found:
                connection.exec_driver_sql(f"DROP OWNED BY {role}")
                connection.exec_driver_sql(f"DROP ROLE {role}")


def as_role(url: str, role: str) -> str:
    """Return the address with another user in it."""
    return make_url(url).set(username=role).render_as_string(hide_password=False)


def statements(url: str, *texts: str) -> None:
    """Run statements as the superuser."""
    with psycopg.connect(psql_url(url), autocommit=True) as connection:
        for one in texts:
            connection.execute(one.encode())


def test_a_bank_from_before_there_were_roles_becomes_the_labs_and_stays_whole(other: str) -> None:
    superuser = open_for_lab(other)
    create_schema(superuser)
    open_bank(superuser, accounts=3, opening=100)
    statements(
        other,
        "ALTER TABLE bankrun.transfers DROP COLUMN redeliveries",
        "DROP TABLE bankrun.runs",
        f"REVOKE ALL ON ALL TABLES IN SCHEMA bankrun FROM {WORKER_ROLE}",
    )
    for _ in range(2):
        with psycopg.connect(psql_url(other), autocommit=True) as connection:
            set_up_server(connection, worker_password="one", lab_password="two")
    worker = open_for_lab(as_role(other, WORKER_ROLE))
    with worker.engine.connect() as connection:
        assert "UPDATE on transfers" in missing(connection, WORKER_ROLE)
        assert missing(connection, LAB_ROLE) == []
    check_own_role(worker)  # it waits for the lab, which grants the rest
    lab = open_for_lab(as_role(other, LAB_ROLE))
    create_schema(lab)
    assert audit(lab).accounts == 3
    open_bank(lab, accounts=2, opening=100, constraint=True)
    with lab.engine.connect() as connection:
        powers = connection.exec_driver_sql(
            f"SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = '{LAB_ROLE}'"
        ).one()
        assert powers == (False, False, False)
        assert excess(connection, WORKER_ROLE) == missing(connection, WORKER_ROLE) == []
    drop_schema(lab)
    for database in (worker, lab, superuser):
        database.close()


def test_a_role_that_may_not_make_the_schema_is_one_sentence(other: str) -> None:
    statements(other, "CREATE ROLE somebody LOGIN")
    database = open_for_lab(as_role(other, "somebody"))
    with pytest.raises(CannotStart, match=r"GRANT CREATE ON DATABASE other TO somebody$"):
        create_schema(database)
    database.close()


def test_a_role_without_rights_on_our_schema_is_one_sentence_each_time(other: str) -> None:
    owner = open_for_lab(other)
    create_schema(owner)
    statements(other, "CREATE ROLE somebody LOGIN")
    database = open_for_lab(as_role(other, "somebody"))
    with pytest.raises(CannotStart, match="belongs to the role bankrun, and somebody is no member of it"):
        create_schema(database)
    with pytest.raises(CannotStart, match=r"the role somebody lacks USAGE on schema bankrun, SELECT on accounts"):
        check_readable(database)
    with pytest.raises(CannotStart, match=r"workers log in as somebody, which lacks .* GRANT bankrun_worker TO somebo"):
        check_own_role(database)
    statements(other, f"GRANT {WORKER_ROLE} TO somebody")
    check_own_role(database)
    check_readable(database)
    for one in (owner, database):
        one.close()


def test_workers_that_run_without_rights_are_named_before_anything_is_sent_to_them(other: str) -> None:
    owner = open_for_lab(other)
    create_schema(owner)
    statements(other, "CREATE ROLE somebody LOGIN")
    worker = Database(as_role(other, "somebody"), connections_max=1, application_name="bankrun w7", options={})
    with worker.engine.connect(), pytest.raises(CannotStart, match="workers log in as somebody, which lacks"):
        check_worker_roles(owner)
    for one in (owner, worker):
        one.close()


def test_one_role_for_everything_works_whatever_it_is_called(other: str) -> None:
    statements(other, "CREATE ROLE somebody LOGIN", "GRANT CREATE ON DATABASE other TO somebody")
    database = open_for_lab(as_role(other, "somebody"))
    create_schema(database)
    check_own_role(database)
    with database.engine.connect() as connection:
        assert "owns the schema bankrun" in excess(connection, "somebody")
    database.close()
