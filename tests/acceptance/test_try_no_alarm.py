"""Correct programs with sequences, uuids, clocks, upserts, triggers and cascades: none of them is called broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bankrun.servers.places import Place
from bankrun.trials.trial import ask, open_server, put_on_trial

pytestmark = pytest.mark.long

SCHEMA = """
CREATE SEQUENCE ticket;
CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO counter VALUES (1, 0), (2, 0);
CREATE TABLE person (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE, code text,
    key uuid DEFAULT gen_random_uuid(), made timestamptz DEFAULT now(),
    seen timestamp(0) DEFAULT now(), day date DEFAULT current_date
);
CREATE TABLE friend (
    a bigint REFERENCES person, b bigint REFERENCES person, since timestamptz DEFAULT clock_timestamp()
);
CREATE TABLE log (id serial PRIMARY KEY, what text, who bigint, at timestamptz);
CREATE TABLE visits (page text PRIMARY KEY, n int NOT NULL, last timestamptz);
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent VALUES (1), (2);
CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
INSERT INTO child (parent) VALUES (1), (1), (2), (2);
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO log (what, who, at) VALUES (TG_OP || ' ' || NEW.email || ' as #' || NEW.id, NEW.id, clock_timestamp());
    RETURN NEW;
END $$;
CREATE TRIGGER stamp AFTER INSERT OR UPDATE ON person FOR EACH ROW EXECUTE FUNCTION stamp();
"""
PROGRAMS = """
import datetime, os, random, secrets, time, uuid
import psycopg


def session():
    return psycopg.connect(os.environ["DATABASE_URL"])

def join(email):
    with session() as c:
        (person,) = c.execute("INSERT INTO person (email) VALUES (%s) RETURNING id", [email]).fetchone()
    print(f"welcome, {email}: you are number {person}")
    return {"id": person, "email": email}

def join_with_code(email):
    with session() as c:
        code = random.randint(1, 6)
        c.execute("INSERT INTO person (email, code) VALUES (%s, %s)", [email, str(code)])

def join_with_token(email):
    with session() as c:
        token = secrets.token_hex(16)
        insert = "INSERT INTO person (email, code) VALUES (%s, %s) RETURNING code"
        return c.execute(insert, [email, token]).fetchone()[0]

def join_with_uuid(email):
    with session() as c:
        key = uuid.uuid4()
        c.execute("INSERT INTO person (email, key) VALUES (%s, %s)", [email, key])
        return key

def join_and_befriend(email):
    with session() as c:
        insert = "INSERT INTO person (email) VALUES (%s) RETURNING id"
        ids = [c.execute(insert, [email + end]).fetchone()[0] for end in "xy"]
        c.execute("INSERT INTO friend (a, b) VALUES (%s, %s)", ids)
        return ids[::-1]

def join_by_clock(email):
    with session() as c:
        now = datetime.datetime.now(datetime.UTC)
        c.execute("INSERT INTO person (email, made, code) VALUES (%s, %s, %s)", [email, now, str(int(time.time()))])
        return now

def visit(page):
    with session() as c:
        again = "ON CONFLICT (page) DO UPDATE SET n = visits.n + 1, last = now()"
        c.execute("INSERT INTO visits VALUES (%s, 1, now()) " + again, [page])

def upsert(email):
    with session() as c:
        c.execute("INSERT INTO person (email) VALUES (%s) ON CONFLICT (email) DO UPDATE SET code = 'again'", [email])

def add_one(which):
    with session() as c:
        return c.execute("UPDATE counter SET n = n + 1 WHERE id = %s RETURNING n", [which]).fetchone()[0]

def add_to_both():
    with session() as c:
        c.execute("UPDATE counter SET n = n + 1 WHERE id = 1")
        c.execute("UPDATE counter SET n = n + 1 WHERE id = 2")

def draw():
    with session() as c:
        number = c.execute("SELECT nextval('ticket')").fetchone()[0]
        c.execute("INSERT INTO log (what, who) VALUES ('ticket', %s)", [number])
        return number

def remove_parent(parent):
    with session() as c:
        return c.execute("DELETE FROM parent WHERE id = %s", [parent]).rowcount

def advisory(which):
    with session() as c:
        c.execute("SELECT pg_advisory_xact_lock(%s)", [which])
        (n,) = c.execute("SELECT n FROM counter WHERE id = %s", [which]).fetchone()
        c.execute("UPDATE counter SET n = %s WHERE id = %s", [n + 1, which])

def retries(which):
    while True:
        try:
            with session() as c:
                c.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
                (n,) = c.execute("SELECT n FROM counter WHERE id = %s", [which]).fetchone()
                c.execute("UPDATE counter SET n = %s WHERE id = %s", [n + 1, which])
            return
        except psycopg.errors.SerializationFailure:
            pass

def optimistic(which):
    while True:
        with session() as c:
            (n,) = c.execute("SELECT n FROM counter WHERE id = %s", [which]).fetchone()
            if c.execute("UPDATE counter SET n = %s WHERE id = %s AND n = %s", [n + 1, which, n]).rowcount:
                return

def reads():
    with session() as c:
        return c.execute("SELECT sum(n) FROM counter").fetchone()[0]
"""
PAIRS = [
    ("join('a')", "join('b')"),
    ("join_with_code('a')", "join_with_code('b')"),
    ("join_with_token('a')", "join_with_token('b')"),
    ("join_with_uuid('a')", "join_with_uuid('b')"),
    ("join_and_befriend('a')", "join_and_befriend('b')"),
    ("join_by_clock('a')", "join_by_clock('b')"),
    ("visit('/')", "visit('/')"),
    ("visit('/')", "visit('/other')"),
    ("upsert('a')", "upsert('a')"),
    ("upsert('a')", "join('b')"),
    ("add_one(1)", "add_one(1)"),
    ("add_one(1)", "add_one(2)"),
    ("add_to_both()", "add_to_both()"),
    ("draw()", "draw()"),
    ("remove_parent(1)", "remove_parent(1)"),
    ("remove_parent(1)", "remove_parent(2)"),
    ("advisory(1)", "advisory(1)"),
    ("retries(1)", "retries(1)"),
    ("optimistic(1)", "optimistic(1)"),
    ("add_to_both()", "reads()"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_server() as place:
        yield place


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_a_correct_pair_is_safe(server: Place, tmp_path: Path, pair: tuple[str, str]) -> None:
    (tmp_path / "schema.sql").write_text(SCHEMA)
    (tmp_path / "correct.py").write_text(PROGRAMS)
    texts = [f"{tmp_path / 'correct.py'}:{call}" for call in pair]
    found = put_on_trial(ask(texts, setup=str(tmp_path / "schema.sql"), instances="two"), place=server)
    assert found.verdict == "safe", "\n".join([*found.sentences, found.story])


def test_what_is_not_compared_is_named(server: Place, tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text(SCHEMA)
    (tmp_path / "correct.py").write_text(PROGRAMS)
    texts = [f"{tmp_path / 'correct.py'}:join_by_clock('{name}')" for name in "ab"]
    (sentence,) = put_on_trial(ask(texts, setup=str(tmp_path / "schema.sql"), instances="two"), place=server).sentences
    assert sentence.endswith("(not compared: person.code, person.seen)")
