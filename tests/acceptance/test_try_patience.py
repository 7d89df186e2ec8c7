"""Who waits only so long, or asks only so often: what it does then is met."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bankrun.servers.embedded import private_postgres
from bankrun.servers.places import Place
from bankrun.servers.state_dir import default_state_dir
from bankrun.trials.case import CaseFound
from bankrun.trials.trial import ask, open_server, put_on_trial

SCHEMA = "CREATE TABLE stock (id int PRIMARY KEY, n int NOT NULL); INSERT INTO stock VALUES (1, 10);"
PROGRAMS = """
import os, psycopg
from psycopg.errors import LockNotAvailable, QueryCanceled

def session(**given):
    return psycopg.connect(os.environ["DATABASE_URL"], **given)

def sell(c, locking):
    c.execute("SELECT 1 FROM stock WHERE id = 1 " + locking)
    (n,) = c.execute("SELECT n FROM stock WHERE id = 1").fetchone()
    c.execute("UPDATE stock SET n = %s WHERE id = 1", [n - 1])

def ask(times, otherwise):
    with session(autocommit=True) as c:
        for number in range(times):
            try:
                with c.transaction():
                    return sell(c, "FOR UPDATE NOWAIT")
            except LockNotAvailable:
                if number == times - 1 and otherwise == "raise":
                    raise
        sell(c, "")

def ask_for_ever():
    while True:
        try:
            with session() as c:
                return sell(c, "FOR UPDATE NOWAIT")
        except LockNotAvailable:
            pass

def wait(setting, otherwise):
    with session(options=f"-c {setting}") as c:
        try:
            sell(c, "FOR UPDATE")
        except (LockNotAvailable, QueryCanceled):
            if otherwise == "raise":
                raise
            c.rollback()
            sell(c, "")

def wait_in_a_transaction():
    with session() as c:
        c.execute("SET LOCAL lock_timeout = '5s'")
        c.execute("DO $$BEGIN PERFORM FROM stock FOR UPDATE; EXCEPTION WHEN lock_not_available THEN NULL; END$$")
        sell(c, "")

def wait_thrice():
    with session(options="-c lock_timeout=30s -c statement_timeout=5s") as c:
        for _ in range(3):
            try:
                return sell(c, "FOR UPDATE")
            except QueryCanceled:
                c.rollback()
        c.execute("SET statement_timeout = 0")
        sell(c, "")

def wait_without_and_with():
    with session() as c:
        c.execute("SELECT 1 FROM stock WHERE id = 1 FOR UPDATE")
    wait("lock_timeout=5s", "go on")

def give_up_by_savepoint():
    with session() as c:
        before = c.execute("SHOW lock_timeout").fetchone()[0]
        c.execute("SET lock_timeout = '5s'")
        c.execute("SAVEPOINT s")
        try:
            c.execute("SELECT 1 FROM stock WHERE id = 1 FOR UPDATE")
        except LockNotAvailable:
            c.execute("ROLLBACK TO s")
        assert c.execute("SHOW lock_timeout").fetchone()[0] == "5s"
        c.execute(f"SET lock_timeout = '{before}'")
        sell(c, "FOR UPDATE")

def hold_it_for_longer_than_the_other_waits():
    with session() as c:
        sell(c, "FOR UPDATE")

def wait_twice():
    with session() as c:
        c.execute("SAVEPOINT before")
        c.execute("SET lock_timeout = '2s'")
        try:
            sell(c, "FOR UPDATE")
        except LockNotAvailable:
            c.execute("ROLLBACK TO before")
            (told,) = c.execute("SHOW lock_timeout").fetchone()
            sell(c, "FOR UPDATE")
            return told
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_server() as place:
        yield place


def try_(server: Place, folder: Path, *programs: str, instances: str = "two") -> CaseFound:
    (folder / "patience.py").write_text(PROGRAMS)
    (folder / "schema.sql").write_text(SCHEMA)
    words = [str(folder / f"patience.py:{program}") for program in programs]
    (found,) = put_on_trial(ask(words, setup=str(folder / "schema.sql"), instances=instances), place=server).cases
    return found


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        pytest.param("ask(3, 'go on')", "broken", marks=LONG),
        ("ask(40, 'go on')", "broken"),
        pytest.param("ask(3, 'raise')", "needs retry", marks=LONG),
        pytest.param("wait('lock_timeout=5s', 'go on')", "broken", marks=LONG),
        pytest.param("wait('lock_timeout=5s', 'raise')", "needs retry", marks=LONG),
        pytest.param("wait('statement_timeout=1min', 'go on')", "broken", marks=LONG),
        pytest.param("wait('statement_timeout=1min', 'raise')", "needs retry", marks=LONG),
        pytest.param("wait('lock_timeout=0', 'go on')", "safe", marks=LONG),
        pytest.param("wait('lock_timeout=2h', 'go on')", "safe", marks=LONG),
        pytest.param("wait_in_a_transaction()", "broken", marks=LONG),
        pytest.param("wait_thrice()", "broken", marks=LONG),
        pytest.param("wait_without_and_with()", "broken", marks=LONG),
        pytest.param("give_up_by_savepoint()", "safe", marks=LONG),
    ],
)
def test_what_comes_after_patience_is_met(server: Place, tmp_path: Path, program: str, verdict: str) -> None:
    found = try_(server, tmp_path, program)
    assert found.verdict == verdict, (found.reason, found.story)
    assert found.complete, found.reason


@LONG
@pytest.mark.parametrize("program", ["ask(40, 'go on')", "wait('lock_timeout=5s', 'go on')"])
def test_in_one_process_too(server: Place, tmp_path: Path, program: str) -> None:
    assert try_(server, tmp_path, program, instances="same").verdict == "broken"


@LONG
def test_on_a_given_server_too(tmp_path: Path) -> None:
    state = Path(os.environ["BANKRUN_STATE_DIR"]) if "BANKRUN_STATE_DIR" in os.environ else default_state_dir()
    with private_postgres(state, {}) as one:
        given = Place(str(one.host), one.port, one.user, "", "postgres", is_ours=False)
        found = try_(given, tmp_path, "wait('lock_timeout=5s', 'go on')")
    assert found.verdict == "broken", found.reason


def test_a_wait_that_ran_out_is_told_and_can_be_shown_again(server: Place, tmp_path: Path) -> None:
    found = try_(server, tmp_path, "wait('lock_timeout=5s', 'go on')")
    assert "t" in found.shortest
    assert "its lock_timeout runs out" in found.story
    assert "55P03: canceling statement due to lock timeout" in found.story


@LONG
def test_a_session_keeps_the_time_that_it_was_given(server: Place, tmp_path: Path) -> None:
    found = try_(server, tmp_path, "hold_it_for_longer_than_the_other_waits()", "wait_twice()")
    assert found.verdict == "broken"
    assert found.difference == "B returns '0'; serially it ends well"  # which is Postgres' own, and not ours


@LONG
def test_who_asks_for_ever_is_followed_for_a_while_and_that_is_said(server: Place, tmp_path: Path) -> None:
    found = try_(server, tmp_path, "ask_for_ever()")
    assert (found.verdict, found.complete) == ("safe", True)
    assert found.reason == "complete up to 2 conflicts of each; who had more was followed alone from there"
