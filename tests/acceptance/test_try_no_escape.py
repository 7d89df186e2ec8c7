"""Wrong programs that once passed, and right ones that once ended a trial: numbers, names, draws, views, children."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bankrun.errors import BankrunError
from bankrun.servers.places import Place
from bankrun.trials.running.programs import Command
from bankrun.trials.trial import Question, ask, open_server, put_on_trial

pytestmark = pytest.mark.long

SCHEMA = """
CREATE SEQUENCE ticket;
CREATE TABLE point (id int PRIMARY KEY, x jsonb DEFAULT '{}', y int NOT NULL, z numeric NOT NULL);
INSERT INTO point (id, y, z) VALUES (1, 0, 0.0000001);
CREATE TABLE log (id serial PRIMARY KEY, what text);
CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM log;
CREATE TABLE other (id int PRIMARY KEY, n int NOT NULL, at float8 NOT NULL DEFAULT 0);
INSERT INTO other VALUES (1, 0), (2, 100), (3, 100);
CREATE PROCEDURE first_two_then_three() LANGUAGE plpgsql AS $$ BEGIN
    UPDATE other SET n = n - 10 WHERE id = 2; COMMIT;
    UPDATE other SET n = n + 10 WHERE id = 3; COMMIT; END $$;
"""
PROGRAMS = """
import os
import time
import psycopg

def session(**given):
    return psycopg.connect(os.environ["DATABASE_URL"], **given)

def read_and_write():
    with session() as c:
        (y,) = c.execute("SELECT y FROM point").fetchone()
        c.execute("UPDATE point SET y = %s", [y + 1])

def add():
    with session(autocommit=True) as c:
        c.execute("UPDATE point SET y = y + 1")
    return [1e-7, 1e22, float("inf")]

def draw_two():
    with session(autocommit=True) as c:
        one, two = (c.execute("SELECT nextval('ticket')").fetchone()[0] for _ in range(2))
    return two - one

def look_at_the_sequence():
    with session(autocommit=True) as c:
        drawn = c.execute("SELECT nextval('ticket')").fetchone()[0]
        (last,) = c.execute("SELECT pg_sequence_last_value('ticket'::regclass)").fetchone()
    return "alone" if last == drawn else "not alone"

def lock_by_hash(amount):
    with session() as c:
        c.execute("SELECT pg_advisory_xact_lock(%s)", [hash("account 2")])
        (n,) = c.execute("SELECT n FROM other WHERE id = 2").fetchone()
        c.execute("UPDATE other SET n = %s WHERE id = 2", [n - amount])

def add_a_schema():
    with session() as c:
        c.execute("CREATE SCHEMA tenant_b")
        c.execute("UPDATE other SET n = n + 1 WHERE id = 1")

def count_schemas():
    with session() as c:
        (schemas,) = c.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tenant%'").fetchone()
        (n,) = c.execute("SELECT n FROM other WHERE id = 1").fetchone()
    return [schemas, n]

def let_all_read():
    with session() as c:
        c.execute("GRANT SELECT ON other TO PUBLIC")
        c.execute("UPDATE other SET n = 95 WHERE id = 2")

def ask_who_may_read():
    with session() as c:
        (may,) = c.execute("SELECT has_table_privilege('pg_monitor', 'other', 'SELECT')").fetchone()
        (n,) = c.execute("SELECT n FROM other WHERE id = 2").fetchone()
    return [may, n]

def only_read():
    with session() as c:
        return c.execute("SELECT n FROM other WHERE id = 2").fetchone()[0]

def have_it_alone():
    with session() as c:
        try:
            c.execute("LOCK TABLE other IN ACCESS EXCLUSIVE MODE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            return "busy"
        c.execute("UPDATE other SET n = 0 WHERE id = 2")
        return "done"

def put():
    now = time.time()
    with session() as c:
        c.execute("UPDATE other SET n = n + 50, at = %s WHERE id = 2", [now])

def take_what_is_older():
    now = time.time()
    with session() as c:
        c.execute("UPDATE other SET n = 0 WHERE id = 2 AND at < %s", [now])

def call_what_commits():
    with session(autocommit=True) as c:
        c.execute("CALL first_two_then_three()")

def roll_back_inside():
    with session(autocommit=True) as c:
        c.execute("DO $$ BEGIN PERFORM n FROM other FOR UPDATE; ROLLBACK; UPDATE other SET n = 1 WHERE id = 2; END $$")

def count_at_once(what):
    with session() as c:
        c.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        c.execute("INSERT INTO log (what) VALUES (%s)", [what])
        c.execute("REFRESH MATERIALIZED VIEW total")
"""
CHILD = """
import subprocess, sys

subprocess.run([sys.executable, "-c", "import psycopg, os; "
    "c = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True); c.execute('UPDATE point SET y = y + 1')"])
"""
Ask = Callable[..., Question]


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_server() as place:
        yield place


@pytest.fixture
def question(tmp_path: Path) -> Ask:
    (tmp_path / "schema.sql").write_text(SCHEMA)
    (tmp_path / "programs.py").write_text(PROGRAMS)
    (tmp_path / "child.py").write_text(CHILD)

    def make(*programs: str | Command) -> Question:
        texts = [f"{tmp_path / 'programs.py'}:{one}" if isinstance(one, str) else one for one in programs]
        return ask(texts, setup=str(tmp_path / "schema.sql"), instances="two")

    return make


@pytest.mark.parametrize(
    "programs",
    [
        ["read_and_write()"],
        ["draw_two()"],
        ["look_at_the_sequence()"],
        ["count_at_once('a')", "count_at_once('b')"],
        ["lock_by_hash(1)", "lock_by_hash(2)"],
        ["add_a_schema()", "count_schemas()"],
        ["let_all_read()", "ask_who_may_read()"],
        ["only_read()", "have_it_alone()"],
        ["put()", "take_what_is_older()"],
    ],
    ids=lambda programs: programs[0].partition("(")[0],
)
def test_it_is_broken(server: Place, question: Ask, programs: list[str]) -> None:
    found = put_on_trial(question(*programs), place=server)
    assert found.verdict == "broken", found.sentences


@pytest.mark.parametrize("program", ["call_what_commits()", "roll_back_inside()"])
def test_what_ends_a_transaction_inside_gets_no_verdict(server: Place, question: Ask, program: str) -> None:
    with pytest.raises(BankrunError, match=r"^(CALL|DO) of a procedure that commits inside"):
        put_on_trial(question(program, "only_read()"), place=server)


def test_numbers_with_exponents_are_numbers(server: Place, question: Ask) -> None:
    assert put_on_trial(question("add()"), place=server).verdict == "safe"


def test_what_a_program_starts_is_waited_for(server: Place, question: Ask, tmp_path: Path) -> None:
    command = Command((sys.executable, str(tmp_path / "child.py")))
    found = put_on_trial(question(command), place=server)
    assert found.verdict == "safe", found.sentences
