"""Random pairs of small transactions."""

from __future__ import annotations

import random
from typing import Any

import psycopg

from bankrun.schedule import Control

SETUP = """
CREATE TABLE acc (id int PRIMARY KEY, bal int NOT NULL, tag text);
CREATE INDEX ON acc (tag);
INSERT INTO acc SELECT i, 100 * i, 't' || i FROM generate_series(1, 3) i;
CREATE TABLE kv (k int PRIMARY KEY, v int); INSERT INTO kv VALUES (1, 7);
CREATE TABLE child (acc int REFERENCES acc (id) ON DELETE CASCADE);
CREATE TABLE late (id int PRIMARY KEY, acc int REFERENCES acc (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE word (w text PRIMARY KEY, n int); INSERT INTO word VALUES ('a', 1), ('b', 1), ('c', 1);
CREATE TABLE pair (a int, b int, n int, PRIMARY KEY (a, b)); INSERT INTO pair VALUES (1, 1, 0), (2, 1, 0), (3, 1, 0);
CREATE TABLE watched (id int PRIMARY KEY, v int); INSERT INTO watched SELECT i, 0 FROM generate_series(1, 3) i;
CREATE TABLE total (id int PRIMARY KEY, v int); INSERT INTO total VALUES (1, 0);
CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY, v int);
INSERT INTO scratch SELECT i, 0 FROM generate_series(1, 3) i;
CREATE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN UPDATE total SET v = (SELECT sum(x.v) FROM watched x); RETURN NULL; END $$;
CREATE TRIGGER add_up AFTER UPDATE ON watched FOR EACH STATEMENT EXECUTE FUNCTION add_up();
CREATE FUNCTION take(n int) RETURNS int LANGUAGE plpgsql AS
  $$ DECLARE b int; BEGIN SELECT bal INTO b FROM acc WHERE id = n;
     UPDATE acc SET bal = b - 1 WHERE id = n; RETURN b; END $$;
CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW rich AS SELECT id, bal FROM acc WHERE bal >= 200;
"""
TOLD = {
    "redefine": "CREATE OR REPLACE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 2'",
    "answer": "SELECT answer()",
    "table nowait": "LOCK TABLE kv IN SHARE MODE NOWAIT",
}
"""Operations that are not chosen at random."""
MERGE = """MERGE INTO kv USING (SELECT {k} k) s ON kv.k = s.k WHEN MATCHED THEN UPDATE SET v = v + 10
WHEN NOT MATCHED THEN INSERT VALUES (s.k, 1)"""
OPERATIONS: dict[str, tuple[float, str]] = {
    "read": (4, "SELECT bal FROM acc WHERE id = {k}"),
    "sum": (1, "SELECT sum(bal), count(*) FROM acc"),
    "view": (0.7, "SELECT count(*) FROM rich"),
    "lock": (3, "SELECT bal FROM acc WHERE id = {k} FOR UPDATE"),
    "share": (1, "SELECT bal FROM acc WHERE id = {k} FOR SHARE"),
    "skip": (1.5, "SELECT id FROM acc WHERE id >= {k} ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"),
    "nowait": (0.7, "SELECT bal FROM acc WHERE id = {k} FOR UPDATE NOWAIT"),
    "add": (4, "UPDATE acc SET bal = bal + 1 WHERE id = {k}"),
    "double": (1, "UPDATE acc SET bal = bal * 2 WHERE id >= {k}"),
    "copy": (2, "UPDATE acc SET bal = (SELECT bal FROM acc WHERE id = {k}) WHERE id = {j}"),
    "retag": (1, "UPDATE acc SET tag = tag || 'x' WHERE id = {k}"),
    "by tag": (1, "SELECT id, bal FROM acc WHERE tag = 't{k}'"),
    "either": (0.7, "SELECT sum(bal) FROM acc WHERE id = {k} OR id = {j}"),
    "any": (0.7, "SELECT sum(bal) FROM acc WHERE id = ANY ('{{{k},{j}}}')"),
    "fool": (0.7, "SELECT count(*) FROM acc WHERE coalesce(id = {k}, false) = false AND bal > 150"),
    "upsert nothing": (1.5, "INSERT INTO kv VALUES ({k}, 5) ON CONFLICT DO NOTHING"),
    "upsert": (1.5, "INSERT INTO kv VALUES ({k}, 5) ON CONFLICT (k) DO UPDATE SET v = kv.v + 1"),
    "insert": (1, "INSERT INTO kv VALUES ({k}, 0)"),
    "merge": (1, MERGE),
    "delete": (2, "DELETE FROM kv WHERE k = {k}"),
    "count": (1, "SELECT count(*), sum(v) FROM kv"),
    "has": (2, "SELECT v FROM kv WHERE k = {k}"),
    "not exists": (1, "INSERT INTO kv SELECT 10 + {k}, 1 WHERE NOT EXISTS (SELECT 1 FROM kv WHERE k > 9)"),
    "move": (0.7, "UPDATE acc SET id = id + 10 WHERE id = {k}"),
    "moved": (0.7, "SELECT bal FROM acc WHERE id = {k} + 10"),
    "child": (1, "INSERT INTO child (acc) VALUES ({k})"),
    "late": (0.7, "INSERT INTO late VALUES ({k}, {j})"),
    "children": (0.5, "SELECT count(*) FROM child"),
    "kill": (0.7, "DELETE FROM acc WHERE id = {k}"),
    "word": (1, "UPDATE word SET n = n + 1 WHERE w = chr(96 + {k})"),
    "word read": (1, "SELECT n FROM word WHERE w = 'a'"),
    "pair": (1, "UPDATE pair SET n = n + 1 WHERE a = {k} AND b = 1"),
    "pair read": (1, "SELECT n FROM pair WHERE a = {k}"),
    "watched": (1, "UPDATE watched SET v = v + 1 WHERE id = {k}"),
    "total": (1, "SELECT v FROM total"),
    "scratch": (0.7, "UPDATE scratch SET v = v + 1 WHERE id = {k}"),
    "scratch read": (0.7, "SELECT v FROM scratch WHERE id = {k}"),
    "take": (1.5, "SELECT take({k})"),
    "advisory": (0.7, "SELECT pg_advisory_xact_lock({k})"),
    "try": (1.5, "SELECT pg_try_advisory_xact_lock({k})"),
    "table": (0.4, "LOCK TABLE kv IN SHARE MODE"),
    "do": (0.5, "DO $$ BEGIN PERFORM bal FROM acc WHERE id = {k}; UPDATE kv SET v = v + 1; END $$"),
    "commit": (1, "COMMIT"),
    "rollback": (0.4, "ROLLBACK"),
    "sub": (1.2, "SAVEPOINT"),
}


def generate(seed: int) -> dict[str, list[Any]]:
    """Return what A and B do: isolation (0 is autocommit) and a list of (operation, k, j)."""
    chosen = random.Random(seed)
    isolation = chosen.choice([2, 2, 2, 3, 4])
    programs: dict[str, list[Any]] = {}
    names, weights = list(OPERATIONS), [weight for weight, _ in OPERATIONS.values()]
    for name in "AB":
        level = 0 if chosen.random() < 0.2 else isolation if chosen.random() < 0.8 else 2
        count = chosen.randint(2, 3)
        programs[name] = [
            level,
            [(chosen.choices(names, weights)[0], chosen.randint(1, 3), chosen.randint(1, 3)) for _ in range(count)],
        ]
    return programs


def play(control: Control, isolation: int, operations: list[tuple[str, int, int]]) -> list[Any]:
    """Run them; return what was read."""
    seen: list[Any] = []
    with psycopg.connect(control.url, autocommit=not isolation) as c:
        if isolation:
            c.isolation_level = psycopg.IsolationLevel(isolation)
        for name, k, j in operations:
            _play_one(c, name, _text(name).format(k=k, j=j), seen, isolation, k)
    return seen


def _text(name: str) -> str:
    return TOLD[name] if name in TOLD else OPERATIONS[name][1]


def _play_one(c: Any, name: str, statement: str, seen: list[Any], isolation: int, k: int) -> None:
    if name == "commit":
        c.commit()
    elif name == "rollback":
        c.rollback()
    elif name == "sub":
        if isolation:
            c.execute("SAVEPOINT s")
            c.execute("UPDATE acc SET bal = bal + 5 WHERE id = %s", (k,))
            c.execute("ROLLBACK TO s")
    else:
        cursor = c.execute(statement)
        seen.append(cursor.fetchall() if cursor.description else cursor.rowcount)
