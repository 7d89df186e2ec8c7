"""Programs for the tests of the engine. Each knows nothing of it but the address that it is given."""

from __future__ import annotations

import os
import threading
from typing import Any

import psycopg

from bankrun.schedule import Control

READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE = 2, 3, 4
SETUP = """
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO account SELECT i, 100 FROM generate_series(1, 8) i;
CREATE TABLE doctor (name text PRIMARY KEY, on_call bool NOT NULL);
INSERT INTO doctor VALUES ('ann', true), ('bob', true);
CREATE TABLE loose (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text);
CREATE TABLE uniq (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE);
CREATE TABLE "Order" ("Id" int PRIMARY KEY, "Left" int); INSERT INTO "Order" VALUES (1, 100);
CREATE TABLE job (id int PRIMARY KEY, taken_by text); INSERT INTO job VALUES (1), (2);
CREATE TABLE child (id int PRIMARY KEY, account int REFERENCES account (id));
CREATE TABLE audited (id int PRIMARY KEY, v int); INSERT INTO audited VALUES (1, 0), (2, 0);
CREATE TABLE total (id int PRIMARY KEY, v int); INSERT INTO total VALUES (1, 0);
CREATE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN UPDATE total SET v = (SELECT sum(a.v) FROM audited a); RETURN NULL; END $$;
CREATE TRIGGER add_up AFTER UPDATE ON audited FOR EACH STATEMENT EXECUTE FUNCTION add_up();
CREATE FUNCTION take(n int, amount int) RETURNS void LANGUAGE plpgsql AS
  $$ DECLARE b int; BEGIN SELECT balance INTO b FROM account WHERE id = n;
     UPDATE account SET balance = b - amount WHERE id = n; END $$;
CREATE FUNCTION set_or_not(n int, b int) RETURNS void LANGUAGE plpgsql AS
  $$ BEGIN UPDATE account SET balance = b WHERE id = n; EXCEPTION WHEN check_violation THEN NULL; END $$;
CREATE FUNCTION lock_and_read(n int) RETURNS int LANGUAGE plpgsql STABLE AS
  $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN (SELECT balance FROM account WHERE id = n); END $$;
"""


def connect(control: Control, isolation: int = READ_COMMITTED, *, autocommit: bool = False) -> Any:
    """Open a connection as a program would."""
    connection = psycopg.connect(control.url, autocommit=autocommit)
    if not autocommit:
        connection.isolation_level = psycopg.IsolationLevel(isolation)
    return connection


def transfer(control: Control, a: int, b: int, amount: int) -> None:
    """Read, change, write."""
    with connect(control) as c:
        x = c.execute("SELECT balance FROM account WHERE id = %s", (a,)).fetchone()[0]
        y = c.execute("SELECT balance FROM account WHERE id = %s", (b,)).fetchone()[0]
        c.execute("UPDATE account SET balance = %s WHERE id = %s", (x - amount, a))
        c.execute("UPDATE account SET balance = %s WHERE id = %s", (y + amount, b))


def transfer_locked(control: Control, a: int, b: int, amount: int) -> None:
    """Lock in order, then change."""
    with connect(control) as c:
        x = {}
        for i in sorted((a, b)):
            x[i] = c.execute("SELECT balance FROM account WHERE id = %s FOR UPDATE", (i,)).fetchone()[0]
        c.execute("UPDATE account SET balance = %s WHERE id = %s", (x[a] - amount, a))
        c.execute("UPDATE account SET balance = %s WHERE id = %s", (x[b] + amount, b))


def in_two_sessions(control: Control, first: str, second: str) -> None:
    """Run a statement in a transaction, and meanwhile one that commits itself in another session."""
    with connect(control) as c, connect(control, autocommit=True) as other:
        c.execute(first)
        other.execute(second)


def run(control: Control, isolation: int, *statements: str) -> list[Any]:
    """Run statements in one transaction; 0 for autocommit. Returns what they returned."""
    seen: list[Any] = []
    with connect(control, isolation, autocommit=not isolation) as c:
        for statement in statements:
            cursor = c.execute(statement)
            seen.append(cursor.fetchall() if cursor.description else cursor.rowcount)
    return seen


def off_call(control: Control, name: str, isolation: int) -> None:
    """Write skew (Berenson et al., 1995)."""
    with connect(control, isolation) as c:
        if c.execute("SELECT count(*) FROM doctor WHERE on_call").fetchone()[0] > 1:
            c.execute("UPDATE doctor SET on_call = false WHERE name = %s", (name,))


def check_insert(control: Control, table: str, email: str) -> str:
    """Look, then insert."""
    with connect(control) as c:
        if c.execute(f"SELECT 1 FROM {table} WHERE email = %s", (email,)).fetchone() is None:
            c.execute(f"INSERT INTO {table} (email) VALUES (%s)", (email,))
            return "inserted"
        return "exists"


def insert_not_exists(control: Control, email: str) -> None:
    """One statement, in autocommit mode, without a constraint."""
    with connect(control, autocommit=True) as c:
        c.execute(
            "INSERT INTO loose (email) SELECT %s WHERE NOT EXISTS (SELECT 1 FROM loose WHERE email = %s)",
            (email, email),
        )


LOCK = threading.Lock()


def guarded(control: Control, amount: int, *, lease: bool = False) -> None:
    """Read and write inside a guard that is announced."""
    lock: threading.Lock = control.share("lock", threading.Lock)
    held = [True]

    def expire() -> None:
        held[0] = False
        lock.release()

    def leave() -> None:
        if held[0]:
            lock.release()

    control.enter("guard", lambda: lock.acquire(blocking=False), expire=expire if lease else None)
    try:
        with connect(control) as c:
            x = c.execute("SELECT balance FROM account WHERE id = 1").fetchone()[0]
            c.execute("UPDATE account SET balance = %s WHERE id = 1", (x - amount,))
    finally:
        control.leave("guard", leave)


def guarded_by_lease(control: Control, amount: int) -> None:
    """The same, with a guard that can run out."""
    guarded(control, amount, lease=True)


def versioned(control: Control, amount: int) -> int:
    """Optimistic: again after a conflict."""
    attempts = 0
    with connect(control, autocommit=True) as c:
        while True:
            attempts += 1
            x = c.execute("SELECT balance FROM account WHERE id = 1").fetchone()[0]
            found = c.execute("UPDATE account SET balance = %s WHERE id = 1 AND balance = %s", (x - amount, x)).rowcount
            if found:
                return attempts
            control.rest("the version moved")


def plain_transfer(a: int, b: int, amount: int) -> None:
    """Without a control: what a user's function looks like."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as c:
        x = c.execute("SELECT balance FROM account WHERE id = %s", (a,)).fetchone()[0]  # type: ignore[index]
        y = c.execute("SELECT balance FROM account WHERE id = %s", (b,)).fetchone()[0]  # type: ignore[index]
        c.execute("UPDATE account SET balance = %s WHERE id = %s", (x - amount, a))
        c.execute("UPDATE account SET balance = %s WHERE id = %s", (y + amount, b))
    print("done")  # noqa: T201


def spin(control: Control) -> None:
    """Never end."""
    with connect(control, autocommit=True) as c:
        while True:
            c.execute("UPDATE account SET balance = balance WHERE id = 1")


_POOL: list[psycopg.Connection[Any]] = []


def threaded_transfer(a: int, b: int, amount: int, *, locked: bool = False) -> None:
    """What a user's function looks like that runs in two threads of one process, with connections that are pooled."""
    with LOCK if locked else threading.Lock():
        connection = _POOL.pop() if _POOL else psycopg.connect(os.environ["DATABASE_URL"])
        with connection.transaction():
            x = connection.execute("SELECT balance FROM account WHERE id = %s", (a,)).fetchone()[0]  # type: ignore[index]
            y = connection.execute("SELECT balance FROM account WHERE id = %s", (b,)).fetchone()[0]  # type: ignore[index]
            connection.execute("UPDATE account SET balance = %s WHERE id = %s", (x - amount, a))
            connection.execute("UPDATE account SET balance = %s WHERE id = %s", (y + amount, b))
        _POOL.append(connection)


def threaded_locked(a: int, b: int, amount: int) -> None:
    """The same under a lock of this process."""
    threaded_transfer(a, b, amount, locked=True)


def change_at_import(table: str) -> None:
    """Ask Postgres in the process that participants are forked from: no step, and undone."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute(f"CREATE TABLE {table} (a int)")
        connection.execute("UPDATE account SET balance = 0")


def tell_environment(_: Control, name: str) -> str:
    """Return a variable, having asked Postgres at the address that the environment has."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("SELECT FROM account")
    return os.environ[name]
