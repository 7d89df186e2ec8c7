"""What leaves no plan, no lock or no key behind is met all the same; and right programs of such kinds are safe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bankrun.errors import BankrunError, CannotStart
from bankrun.servers.embedded import private_postgres
from bankrun.servers.places import Place
from bankrun.servers.state_dir import default_state_dir
from bankrun.trials.trial import Question, ask, open_server, put_on_trial

pytestmark = pytest.mark.long

SCHEMA = """
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0));
INSERT INTO account VALUES (1, 50), (2, 0);
CREATE TABLE tried (id serial PRIMARY KEY, what text);
CREATE FUNCTION withdraw(which int, amount int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tried (what) VALUES ('withdraw');
    BEGIN
        UPDATE account SET balance = balance - amount WHERE id = which;
        RETURN true;
    EXCEPTION WHEN check_violation THEN RETURN false;
    END;
END $$;
CREATE TABLE seat (name text PRIMARY KEY, guest text);
INSERT INTO seat VALUES ('window', 'early');
CREATE FUNCTION book(which text, who text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tried (what) VALUES ('book');
    BEGIN
        INSERT INTO seat VALUES (which, who);
        RETURN true;
    EXCEPTION WHEN unique_violation THEN RETURN false;
    END;
END $$;
CREATE FUNCTION once_a_night() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_lock(7) THEN RETURN 'skipped'; END IF;
    INSERT INTO tried (what) VALUES ('interest');
    PERFORM pg_advisory_unlock(7);
    RETURN 'ran';
END $$;
CREATE FUNCTION once_a_night_and_all() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_lock(7) THEN RETURN 'skipped'; END IF;
    INSERT INTO tried (what) VALUES ('interest');
    PERFORM pg_advisory_unlock_all();
    RETURN 'ran';
END $$;
CREATE TABLE event (name text NOT NULL, day int NOT NULL, PRIMARY KEY (name, day)) PARTITION BY LIST (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1);
CREATE TABLE event_2 PARTITION OF event FOR VALUES IN (2);
INSERT INTO event VALUES ('a', 1), ('b', 1);
CREATE PROCEDURE charge(which int, fee int) LANGUAGE plpgsql AS $$
DECLARE had int;
BEGIN
    SELECT balance INTO had FROM account WHERE id = which FOR UPDATE;
    INSERT INTO tried (what) VALUES ('charge');
    COMMIT;
    UPDATE account SET balance = had - fee WHERE id = which;
END $$;
CREATE TABLE member (email text NOT NULL, name text NOT NULL);
CREATE UNIQUE INDEX ON member (email) INCLUDE (name);
CREATE TABLE level (email numeric PRIMARY KEY, name text NOT NULL);
CREATE TABLE commitments (id int PRIMARY KEY, rollbacks int NOT NULL);
INSERT INTO commitments VALUES (1, 0);
CREATE TABLE posting (id bigserial, account int NOT NULL REFERENCES account, month int, PRIMARY KEY (id, month))
    PARTITION BY LIST (month);
CREATE TABLE posting_1 PARTITION OF posting FOR VALUES IN (1);
INSERT INTO posting (account, month) VALUES (1, 1);
CREATE SEQUENCE ticket;
CREATE FUNCTION draw_a_ticket() RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE drawn bigint;
BEGIN drawn := nextval('ticket'); RETURN drawn; END $$;
CREATE FUNCTION lock_and_add_up() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN PERFORM pg_advisory_lock(7); RETURN (SELECT sum(balance) FROM account); END $$;
"""
APPEND_ONLY = """
CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'append only'; END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tried FOR EACH STATEMENT EXECUTE FUNCTION forbid();
ALTER TABLE tried ENABLE ALWAYS TRIGGER append_only;
"""
PROGRAMS = """
import os
import psycopg

row = None

def session(**given):
    return psycopg.connect(os.environ["DATABASE_URL"], **given)

def sweep():
    with session() as c:
        (there,) = c.execute("SELECT balance FROM account WHERE id = 1").fetchone()
        if not c.execute("SELECT withdraw(1, 100)").fetchone()[0]:
            c.execute("UPDATE account SET balance = balance - %s WHERE id = 1", [there])
        c.execute("UPDATE account SET balance = balance + %s WHERE id = 2", [min(there, 100)])

def deposit():
    with session(autocommit=True) as c:
        c.execute("UPDATE account SET balance = balance + 100 WHERE id = 1")

def ask_for_the_seat():
    with session() as c:
        taken = c.execute("SELECT guest FROM seat WHERE name = 'window'").fetchone()
        c.execute("SELECT book('window', 'late')")
        if taken:
            c.execute("INSERT INTO tried (what) VALUES ('asked')")

def leave_the_seat():
    with session(autocommit=True) as c:
        c.execute("DELETE FROM seat WHERE name = 'window'")

def do_the_night(function):
    with session(autocommit=True) as c:
        return c.execute(f"SELECT {function}()").fetchone()[0]

def maintain():
    with session(autocommit=True) as c:
        c.execute("SELECT pg_advisory_lock(7)")
        c.execute("UPDATE commitments SET rollbacks = 1")
        c.execute("SELECT pg_advisory_unlock(7)")

def load():
    with session() as c:
        for name in "ab":
            c.execute("INSERT INTO event VALUES (%s, 1) ON CONFLICT DO NOTHING", [name])

def purge():
    with session(autocommit=True) as c:
        c.execute("DELETE FROM event WHERE name IN ('a', 'b')")

def charge_all():
    with session(autocommit=True) as c:
        c.execute("DO $$ BEGIN FOR one IN 1..2 LOOP CALL charge(one, 0); END LOOP; END $$")

def charge_quietly():
    with session(autocommit=True) as c:
        c.execute("SET client_min_messages = warning")
        c.execute("CALL charge(1, 5)")

def join(table, *keys):
    with session() as c:
        for key in keys:
            if not c.execute(f"SELECT 1 FROM {table} WHERE email = %s", [key]).fetchone():
                c.execute(f"INSERT INTO {table} VALUES (%s, 'by hand')", [key])

def import_one(table, key):
    with session(autocommit=True) as c:
        try:
            c.execute(f"INSERT INTO {table} VALUES (%s, 'from a list')", [key])
        except psycopg.errors.UniqueViolation:
            return "there already"

def export():
    with session() as c:
        (total,) = c.execute("SELECT sum(balance) FROM account").fetchone()
        c.execute("SELECT now()")
        with c.cursor().copy("COPY account TO STDOUT") as copy:
            return [int(total), sorted(list(one) for one in copy.rows())]

def keep_it_in_a_variable(account):
    global row
    with session() as c:
        row = c.execute("SELECT id, balance FROM account WHERE id = %s FOR UPDATE", [account]).fetchone()
        c.execute("SELECT 1 FROM account WHERE id = %s", [account])
        c.execute("UPDATE account SET balance = %s WHERE id = %s", [row[1] + 7, row[0]])

def keep_it_to_itself(account):
    with session() as c:
        own = c.execute("SELECT id, balance FROM account WHERE id = %s FOR UPDATE", [account]).fetchone()
        c.execute("SELECT 1 FROM account WHERE id = %s", [account])
        c.execute("UPDATE account SET balance = %s WHERE id = %s", [own[1] + 7, own[0]])

def count_commitments():
    with session(autocommit=True) as c:
        c.execute("DO $$ BEGIN UPDATE commitments SET rollbacks = rollbacks + 1; END $$")

def post():
    with session() as c:
        c.execute("UPDATE account SET balance = balance + 1 WHERE id = 1")
        c.execute("INSERT INTO posting (account, month) VALUES (1, 1)")

def note():
    with session() as c:
        c.execute("UPDATE account SET balance = balance + 1 WHERE id = 1")
        c.execute("INSERT INTO tried (what) VALUES ('note')")

def move_under_a_lock():
    with session(autocommit=True) as c:
        c.execute("SELECT pg_advisory_lock(7)")
        c.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
        c.execute("UPDATE account SET balance = balance + 10 WHERE id = 2")
        c.execute("SELECT pg_advisory_unlock(7)")

def add_up_in_an_old_snapshot():
    with session() as c:
        c.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        c.execute("SELECT pg_advisory_lock(7)")
        (total,) = c.execute("SELECT sum(balance) FROM account").fetchone()
        c.commit()
        c.autocommit = True
        c.execute("SELECT pg_advisory_unlock(7)")
        return int(total)

def add_up_in_a_stable_function():
    with session(autocommit=True) as c:
        (total,) = c.execute("SELECT lock_and_add_up()").fetchone()
        c.execute("SELECT pg_advisory_unlock(7)")
        return int(total)

def draw_beside_a_row(draw):
    with session() as c:
        one, two = (c.execute(f"SELECT {draw}, balance FROM account WHERE id = 1").fetchone()[0] for _ in range(2))
        return two - one

def set_the_sequence():
    with session(autocommit=True) as c:
        c.execute("SELECT setval('tried_id_seq', max(id) + 9998) FROM account")

def try_thrice():
    with session() as c:
        for _ in range(3):
            c.execute("INSERT INTO tried (what) VALUES ('thrice')")

def look_at_the_sequence():
    with session(autocommit=True) as c:
        (drawn,) = c.execute("SELECT nextval('ticket')").fetchone()
        (last,) = c.execute("SELECT last_value FROM pg_sequences WHERE sequencename = 'ticket'").fetchone()
    return last == drawn

def share_then_own():
    with session() as c:
        c.execute("SELECT pg_advisory_xact_lock_shared(7)")
        c.execute("SELECT pg_advisory_xact_lock(7), balance FROM account WHERE id = 2")
        c.execute("UPDATE account SET balance = balance + 1 WHERE id = 1")

def send_in_one(between):
    with session(autocommit=True) as c:
        c.execute("BEGIN; UPDATE account SET balance = balance - 10 WHERE id = 1;" + between +
                  "UPDATE account SET balance = balance + 10 WHERE id = 2; COMMIT")

def add_up():
    with session(autocommit=True) as c:
        return int(c.execute("SELECT sum(balance) FROM account").fetchone()[0])

def send_one_in_a_block():
    with session(autocommit=True) as c:
        c.execute("BEGIN; UPDATE account SET balance = balance - 10 WHERE id = 1; COMMIT")

def write_a_large_object():
    with session() as c:
        c.execute("SELECT lo_put(lo, 0, '1') FROM file")

def look_in_peace():
    with session() as c:
        c.isolation_level, c.read_only, c.deferrable = psycopg.IsolationLevel.SERIALIZABLE, True, True
        return [c.execute("SELECT balance FROM account WHERE id = %s", [one]).fetchone()[0] for one in (1, 2)]

def move():
    with session() as c:
        c.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        c.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
        c.execute("UPDATE account SET balance = balance + 10 WHERE id = 2")
"""
Ask = Callable[..., Question]


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_server() as place:
        yield place


@pytest.fixture
def question(tmp_path: Path) -> Ask:
    (tmp_path / "programs.py").write_text(PROGRAMS)

    def make(*programs: str, instances: str = "two", besides: str = "") -> Question:
        (tmp_path / "schema.sql").write_text(SCHEMA + besides)
        texts = [f"{tmp_path / 'programs.py'}:{one}" for one in programs]
        return ask(texts, setup=str(tmp_path / "schema.sql"), instances=instances)

    return make


@pytest.mark.parametrize(
    ("programs", "verdict"),
    [
        (["sweep()", "deposit()"], "broken"),
        (["ask_for_the_seat()", "leave_the_seat()"], "broken"),
        (["do_the_night('once_a_night')", "maintain()"], "broken"),
        (["do_the_night('once_a_night_and_all')", "maintain()"], "broken"),
        (["load()", "purge()"], "broken"),
        (["join('member', 'z@x', 'a@x')", "import_one('member', 'a@x')"], "error"),
        (["join('level', '7', '1.0')", "import_one('level', '1')"], "error"),
        (["export()", "deposit()"], "broken"),
        # Their snapshots are taken before they wait.
        (["add_up_in_an_old_snapshot()", "move_under_a_lock()"], "broken"),
        (["add_up_in_a_stable_function()", "move_under_a_lock()"], "broken"),
        # They touch a table, too, and what else they touch is in no table.
        (["draw_beside_a_row('draw_a_ticket()')"], "broken"),
        (["set_the_sequence()", "try_thrice()"], "broken"),
        (["look_at_the_sequence()"], "broken"),
        (["share_then_own()"], "needs retry"),
    ],
    ids=lambda given: given[0].partition("(")[0] if isinstance(given, list) else "",
)
def test_what_leaves_no_trace_is_seen(server: Place, question: Ask, programs: list[str], verdict: str) -> None:
    found = put_on_trial(question(*programs), place=server)
    assert found.verdict == verdict, found.sentences


def test_a_large_object_that_is_written_gets_no_verdict(server: Place, question: Ask) -> None:
    file = "CREATE TABLE file AS SELECT lo_from_bytea(0, '0') AS lo;"
    with pytest.raises(CannotStart, match=r"^large objects are made, written or removed"):
        put_on_trial(question("write_a_large_object()", "add_up()", besides=file), place=server)


def test_several_statements_in_one_message_are_not_called_safe(server: Place, question: Ask) -> None:
    found = put_on_trial(question("send_in_one('COMMIT; BEGIN;')", "add_up()"), place=server)
    assert found.verdict == "inconclusive"
    assert found.sentences[0].startswith("inconclusive: A sends several statements in one message, between which")
    assert put_on_trial(question("send_one_in_a_block()", "add_up()"), place=server).verdict == "safe"


def test_what_commits_inside_gets_no_verdict_in_a_session_that_keeps_quiet(server: Place, question: Ask) -> None:
    with pytest.raises(BankrunError, match=r"^CALL where client_min_messages is set"):
        put_on_trial(question("charge_quietly()", "deposit()"), place=server)


def test_a_function_that_keeps_quiet_hides_nothing(server: Place, question: Ask) -> None:
    quiet = "ALTER FUNCTION withdraw SET client_min_messages = warning"
    found = put_on_trial(question("sweep()", "deposit()", besides=quiet), place=server)
    assert found.verdict == "broken", found.sentences


def test_a_lock_that_is_given_back_inside_is_met_on_a_given_server(question: Ask) -> None:
    state = Path(os.environ["BANKRUN_STATE_DIR"]) if "BANKRUN_STATE_DIR" in os.environ else default_state_dir()
    with private_postgres(state, {}) as one:
        given = Place(str(one.host), one.port, one.user, "", "postgres", is_ours=False)
        found = put_on_trial(question("do_the_night('once_a_night')", "maintain()"), place=given)
    assert found.verdict == "broken", found.sentences


@pytest.mark.parametrize(("program", "verdict"), [("variable", "broken"), ("", "safe")])
def test_what_threads_remember_in_common_is_met(server: Place, question: Ask, program: str, verdict: str) -> None:
    name = "keep_it_in_a_variable" if program else "keep_it_to_itself"
    found = put_on_trial(question(f"{name}(1)", f"{name}(2)", instances="same"), place=server)
    assert found.verdict == verdict, found.sentences


def test_a_block_that_calls_what_commits_gets_no_verdict(server: Place, question: Ask) -> None:
    with pytest.raises(BankrunError, match=r"^DO of a procedure that commits inside"):
        put_on_trial(question("charge_all()", "deposit()"), place=server)


@pytest.mark.parametrize(
    ("programs", "besides"),
    [
        (["count_commitments()"], ""),  # the words are in names
        (["post()"], ""),  # a partitioned table refers to the account
        (["note()"], APPEND_ONLY),  # a trigger that fires whoever restores the table
        (["look_in_peace()", "move()"], ""),  # it waits for a safe snapshot, which is no lock
    ],
    ids=["names", "partitions", "append only", "deferrable"],
)
def test_what_is_right_is_safe(server: Place, question: Ask, programs: list[str], besides: str) -> None:
    found = put_on_trial(question(*programs, besides=besides), place=server)
    assert found.verdict == "safe", found.sentences
