"""The engine on a real Postgres: every order of a few programs' steps, with pruning and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

SUPPORT = str(Path(__file__).parents[1] / "schedule_support")
sys.path.insert(0, SUPPORT)

import programs  # noqa: E402
from private_server import make_database, private_server  # noqa: E402

from bankrun.schedule import (  # noqa: E402
    Budget,
    Call,
    Command,
    Diverged,
    Engine,
    Execution,
    NotStarted,
    Server,
    Unsupported,
    Warmed,
    digest,
    explore,
    follow,
    replay,
)
from bankrun.schedule.restore import Keeper  # noqa: E402
from bankrun.schedule.server import tune_database  # noqa: E402

RC, RR, SER, AUTOCOMMIT = 2, 3, 4, 0
UPDATE = "UPDATE account SET balance = balance - 10 WHERE id = {}"
LOCK = "SELECT id FROM job WHERE taken_by IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with private_server() as found:
        yield found


@pytest.fixture(scope="module")
def database(server: Server) -> Server:
    return make_database(server, "app", programs.SETUP)


def calls(*programs_: Sequence[Any], **options: Any) -> list[Call]:
    return [
        Call(name, f"programs:{function}", arguments, path=[SUPPORT], **options)
        for name, (function, *arguments) in zip("ABC", programs_, strict=False)
    ]


def outcome(execution: Execution) -> tuple[object, ...]:
    ends = tuple((name, o.error, o.sqlstate, repr(o.result)) for name, o in execution.outcomes.items())
    return digest(execution.rows), ends, execution.stuck


class Found:
    """What an exploration found: every outcome and how often, and what each serial order gives."""

    def __init__(self, engine: Engine, *, pruned: bool = True, **options: Any) -> None:
        self.outcomes: Counter[tuple[object, ...]] = Counter()
        self.executions: list[Execution] = []

        def judge(execution: Execution) -> None:
            self.outcomes[outcome(execution)] += 1
            self.executions.append(execution)

        self.exploration = explore(engine, judge, pruned=pruned, **options)
        names = list(engine.names)
        self.serial = {digest(engine.execute(follow(""), order).rows) for order in (names, names[::-1])}

    @property
    def broken(self) -> int:
        """How many ended with all participants content, and rows that no serial order gives."""
        return sum(
            digest(x.rows) not in self.serial and not any(o.error for o in x.outcomes.values()) for x in self.executions
        )

    @property
    def errors(self) -> set[str | None]:
        return {o.sqlstate for x in self.executions for o in x.outcomes.values() if o.error}


TABLE: dict[str, tuple[list[Sequence[Any]], bool, set[str]]] = {
    # What each does, whether some order is broken, and the errors that callers get in some order.
    "read, change, write": ([("transfer", 1, 2, 10), ("transfer", 1, 3, 10)], True, set()),
    "on disjoint accounts": (
        [("run", RC, UPDATE.format(1), UPDATE.format(2)), ("run", RC, UPDATE.format(3), UPDATE.format(4))],
        False,
        set(),
    ),
    "locked in order": ([("transfer_locked", 1, 2, 10), ("transfer_locked", 1, 3, 10)], False, set()),
    "relative updates": ([("run", RC, UPDATE.format(1)), ("run", RC, UPDATE.format(1))], False, set()),
    "doctors, read committed": ([("off_call", "ann", RC), ("off_call", "bob", RC)], True, set()),
    "doctors, repeatable read": ([("off_call", "ann", RR), ("off_call", "bob", RR)], True, set()),
    "doctors, serializable": ([("off_call", "ann", SER), ("off_call", "bob", SER)], False, {"40001"}),
    "check and insert": ([("check_insert", "loose", "x"), ("check_insert", "loose", "x")], True, set()),
    "check and insert, unique": ([("check_insert", "uniq", "x"), ("check_insert", "uniq", "x")], False, {"23505"}),
    "INSERT WHERE NOT EXISTS": ([("insert_not_exists", "x"), ("insert_not_exists", "x")], True, set()),
    "opposite order": (
        [("run", RC, UPDATE.format(1), UPDATE.format(2)), ("run", RC, UPDATE.format(2), UPDATE.format(1))],
        False,
        {"40P01"},
    ),
    "SKIP LOCKED": ([("run", RC, LOCK), ("run", RC, LOCK)], False, set()),
    "NOWAIT": (
        [("run", RC, "SELECT 1 FROM account WHERE id = 1 FOR UPDATE NOWAIT")] * 2,
        False,
        {"55P03"},
    ),
    "advisory locks": ([("run", RC, "SELECT pg_advisory_xact_lock(7)", UPDATE.format(1))] * 2, False, set()),
    "a shared advisory lock made an exclusive one": (
        [
            (
                "run",
                RC,
                *(f"SELECT pg_advisory_xact_lock{kind}(id) FROM account WHERE id = 1" for kind in ("_shared", "")),
            )
        ]
        * 2,
        False,
        {"40P01"},
    ),
    "a snapshot that is older than the wait in it": (
        [
            ("in_two_sessions", "SELECT pg_advisory_lock(7)", "UPDATE account SET balance = 50 WHERE id = 1"),
            ("run", RC, "SELECT lock_and_read(1)", "SELECT balance FROM account WHERE id = 1"),
        ],
        False,
        set(),
    ),
    "a block with EXCEPTION in the second of two sessions": (
        [
            ("in_two_sessions", "INSERT INTO job VALUES (3)", "SELECT set_or_not(1, 50)"),
            ("run", RC, "SELECT balance FROM account WHERE id = 1"),
        ],
        False,
        set(),
    ),
    "a sequence that is set beside a table": (
        [
            ("run", RC, "SELECT setval('uniq_id_seq', 50) FROM account WHERE id = 1"),
            ("run", RC, "SELECT nextval('uniq_id_seq')"),
        ],
        False,
        set(),
    ),
    "failing try locks": (
        [("run", RC, "SELECT pg_try_advisory_xact_lock(7)"), ("run", RC, "SELECT pg_try_advisory_xact_lock(7)")],
        False,
        set(),
    ),
    "trigger": ([("run", RC, f"UPDATE audited SET v = v + 1 WHERE id = {i}") for i in (1, 2)], True, set()),
    "function": ([("run", RC, "SELECT take(1, 10)"), ("run", RC, "SELECT take(1, 5)")], True, set()),
    "foreign key": (
        [("run", RC, "INSERT INTO child VALUES (1, 5)"), ("run", RC, "DELETE FROM account WHERE id = 5")],
        False,
        {"23503"},
    ),
    "quoted names": (
        [("run", RC, 'UPDATE "Order" SET "Left" = (SELECT "Left" FROM "Order") - 1 WHERE "Id" = 1')] * 2,
        True,
        set(),
    ),
    "MERGE": (
        [("run", RC, "MERGE INTO job USING (SELECT 9 id) n ON job.id = n.id WHEN NOT MATCHED THEN INSERT VALUES (9)")]
        * 2,
        False,
        {"23505"},
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_pruning_loses_no_outcome_and_the_verdict_is_right(database: Server, name: str) -> None:
    programs_, is_broken, errors = TABLE[name]
    with Engine(database, calls(*programs_)) as engine:
        pruned, full = Found(engine), Found(engine, pruned=False)
    assert full.exploration.complete, full.exploration.reason
    assert pruned.exploration.complete, pruned.exploration.reason
    assert set(pruned.outcomes) == set(full.outcomes)
    assert bool(full.broken) == bool(pruned.broken) == is_broken
    assert pruned.errors == full.errors == errors
    assert pruned.exploration.executions <= full.exploration.executions


def test_the_naive_transfer_breaks_in_90_of_92_orders(database: Server) -> None:
    with Engine(database, calls(("transfer", 1, 2, 10), ("transfer", 1, 3, 10))) as engine:
        found = Found(engine, pruned=False)
    assert (found.exploration.executions, found.broken) == (92, 90)


def test_three_participants_come_to_the_same_outcomes(database: Server) -> None:
    three = [
        ("run", RC, UPDATE.format(1)),
        ("run", RC, UPDATE.format(1)),
        ("run", RC, "SELECT balance FROM account WHERE id = 1"),
    ]
    with Engine(database, calls(*three)) as engine:
        pruned, full = Found(engine), Found(engine, pruned=False)
    assert full.exploration.complete
    assert set(pruned.outcomes) == set(full.outcomes)


def test_twice_the_same_exploration_is_identical_and_so_is_every_replay(database: Server) -> None:
    with Engine(database, calls(("check_insert", "uniq", "x"), ("off_call", "ann", SER))) as engine:
        engine.give("B", ["uniq", "x"])
    with Engine(database, calls(("check_insert", "uniq", "x"), ("check_insert", "uniq", "x"))) as engine:
        first, second = Found(engine), Found(engine)
        schedules = [[x.schedule for x in found.executions] for found in (first, second)]
        assert schedules[0] == schedules[1]
        assert first.outcomes == second.outcomes
        assert not first.exploration.mismatches + second.exploration.mismatches
        for execution in first.executions:
            again = [replay(engine, execution.schedule) for _ in range(3)]
            assert {outcome(x) for x in again} == {outcome(execution)}
            assert all([s.identity for s in x.steps] == [s.identity for s in execution.steps] for x in again)


def test_fewest_preemptions_come_first_and_a_bound_says_that_it_is_one(database: Server) -> None:
    with Engine(database, calls(("transfer", 1, 2, 10), ("transfer", 1, 3, 10))) as engine:
        bounded = Found(engine, preemptions_max=1)
        assert not bounded.exploration.complete
        assert "1 preemptions" in bounded.exploration.reason
        all_outcomes = Found(engine).outcomes
        assert set(bounded.outcomes) <= set(all_outcomes)
        assert bounded.broken


def test_a_budget_that_is_spent_is_said(database: Server) -> None:
    with Engine(database, calls(("transfer", 1, 2, 10), ("transfer", 1, 3, 10))) as engine:
        found = explore(engine, lambda _: None, pruned=False, budget=Budget(executions=5))
    assert (found.executions, found.complete) == (5, False)
    assert "5 executions" in found.reason


def test_a_guard_in_one_process_excludes_and_in_two_does_not(database: Server) -> None:
    one = calls(("guarded", 10), ("guarded", 5), process="together")
    two = calls(("guarded", 10), ("guarded", 5))
    with Engine(database, one) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken == 0
    assert found.exploration.executions == 2
    with Engine(database, two) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken


def test_a_lease_that_runs_out_breaks_what_a_guard_kept(database: Server) -> None:
    participants = [
        Call(name, "programs:guarded_by_lease", [amount], path=[SUPPORT], process="one")
        for name, amount in (("A", 10), ("B", 5))
    ]
    with Engine(database, participants, leases_expire=True) as engine:
        found = Found(engine)
    assert found.exploration.complete, found.exploration.reason
    assert found.broken
    assert any("t" in execution.schedule for execution in found.executions)


def test_a_retry_rests_until_the_other_has_moved(database: Server) -> None:
    with Engine(database, calls(("versioned", 10), ("versioned", 5))) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken == 0
    assert any(o.result == 2 for x in found.executions for o in x.outcomes.values())


def test_what_spins_is_ended_at_a_cap_and_named(database: Server) -> None:
    with Engine(database, calls(("spin",), ("transfer", 1, 2, 10)), steps_max=20) as engine:
        execution = engine.execute(follow(""))
        assert "A has taken 20 steps" in execution.stuck
        engine.give("A", [])
        assert engine.execute(follow("")).stuck == execution.stuck


def test_a_schedule_that_cannot_be_followed_is_told(database: Server) -> None:
    with Engine(database, calls(("transfer_locked", 1, 2, 10), ("transfer_locked", 1, 3, 10))) as engine:
        with pytest.raises(Diverged, match="step 3 of ABBB: B cannot go"):
            replay(engine, "ABBB")
        assert not replay(engine, "AAAAABBBBB").stuck


def test_a_change_of_the_definition_is_undone_and_sessions_are_fresh(database: Server) -> None:
    programs_ = [
        ("run", AUTOCOMMIT, "CREATE TABLE made (a int)", "SET search_path = nowhere", "SELECT pg_advisory_lock(1)"),
        (
            "run",
            AUTOCOMMIT,
            "SELECT count(*) FROM account",
            "SHOW search_path",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        ),
    ]
    with Engine(database, calls(*programs_)) as engine:
        first = engine.execute(follow(""), ["A", "B"])
        assert first.catalog_changed
        assert "public.made" not in first.rows
        second = engine.execute(follow(""), ["A", "B"])
        assert [o.error for o in second.outcomes.values()] == ["", ""]
        assert second.outcomes["B"].result == first.outcomes["B"].result
        assert second.outcomes["B"].result[1:] == [[['"$user", public']], [[0]]]
        engine.give("B", [RC, "SELECT count(*) FROM account", "UPDATE account SET balance = 0 WHERE id = 1"])
        assert not engine.execute(follow(""), ["A", "B"]).outcomes["B"].error
        engine.give("B", [RC, "SELECT 1 FROM account WHERE id = 2", "SELECT 2"])
        assert not engine.execute(follow("")).outcomes["B"].error


def test_physical_order_and_sequences_are_restored(database: Server) -> None:
    programs_ = [
        (
            "run",
            RC,
            "UPDATE account SET balance = 1 WHERE id = 3",
            "INSERT INTO loose (email) VALUES ('a') RETURNING id",
        ),
        ("run", RC, "SELECT id, ctid FROM account"),
    ]
    with Engine(database, calls(*programs_)) as engine:
        seen = [engine.execute(follow(""), ["B", "A"]).outcomes for _ in range(3)]
    assert len({repr(o["B"].result) for o in seen}) == 1
    assert {repr(o["A"].result[1]) for o in seen} == {"[[1]]"}


def test_each_commit_is_told_while_everybody_stands(database: Server) -> None:
    totals: list[int] = []
    statements = (RC, UPDATE.format(1), UPDATE.format(2))
    engine = Engine(
        database,
        calls(("run", *statements), ("run", *statements)),
        on_commit=lambda step: totals.append(
            sum(json.loads(row)["balance"] for row in engine.read_rows()["public.account"])
        ),
    )
    with engine:
        engine.execute(follow(""))
    assert totals == [780, 760]


def test_what_is_refused_is_refused_in_a_sentence(database: Server) -> None:
    with Engine(database, calls(("run", AUTOCOMMIT, "LISTEN x"), ("run", AUTOCOMMIT, "SELECT 1"))) as engine:
        with pytest.raises(Unsupported, match="A uses LISTEN"):
            engine.execute(follow(""))
        engine.give("A", [AUTOCOMMIT, "SELECT 1"])
        assert not engine.execute(follow("")).stuck


def test_plain_functions_are_forked_and_what_they_print_is_kept(database: Server) -> None:
    participants = [
        Call("A", "programs:plain_transfer", (1, 2, 10), kept=False, path=[SUPPORT]),
        Call("B", "programs:plain_transfer", (1, 3, 10), kept=False, path=[SUPPORT]),
    ]
    with Engine(database, participants) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken
    assert all(o.output == "done\n" for x in found.executions for o in x.outcomes.values())


def test_any_program_can_take_part(database: Server) -> None:
    code = (
        "import os, psycopg\n"
        "with psycopg.connect(os.environ['DATABASE_URL']) as c:\n"
        "    x = c.execute('SELECT balance FROM account WHERE id = 1').fetchone()[0]\n"
        "    c.execute('UPDATE account SET balance = %s WHERE id = 1', (x - 10,))\n"
        "print('done')\n"
    )
    participants = [Command(name, [sys.executable, "-c", code]) for name in "AB"]
    with Engine(database, participants, tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken
    assert {o.output for x in found.executions for o in x.outcomes.values()} == {"done\n"}


def test_a_program_that_fails_and_one_that_asks_nothing_are_outcomes(database: Server) -> None:
    participants = [
        Command("A", [sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"]),
        Command("B", [sys.executable, "-c", "pass"]),
    ]
    with Engine(database, participants) as engine:
        execution = engine.execute(follow(""))
    assert execution.outcomes["A"].error == "exit 3"
    assert execution.outcomes["A"].message == "no\n"
    assert execution.steps == []


def test_a_wait_that_is_not_for_postgres_is_seen_as_one(database: Server, tmp_path: Path) -> None:
    code = (
        "import fcntl, os, psycopg\n"
        f"f = open({str(tmp_path / 'lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "with psycopg.connect(os.environ['DATABASE_URL']) as c:\n"
        "    x = c.execute('SELECT balance FROM account WHERE id = 1').fetchone()[0]\n"
        "    c.execute('UPDATE account SET balance = %s WHERE id = 1', (x - 10,))\n"
    )
    participants = [Command(name, [sys.executable, "-c", code]) for name in "AB"]
    with Engine(database, participants, tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken == 0
    assert all(not x.stuck for x in found.executions)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are told apart on Linux only")
def test_threads_of_one_process_are_told_apart_from_outside(database: Server) -> None:
    def two(function: str) -> list[Call]:
        return [
            Call(name, f"programs:{function}", (1, other, 10), kept=False, process="one", path=[SUPPORT])
            for name, other in (("A", 2), ("B", 3))
        ]

    with Engine(database, two("threaded_transfer"), tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete, found.exploration.reason
    assert found.broken
    with Engine(database, two("threaded_locked"), tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete, found.exploration.reason
    assert (found.exploration.executions, found.broken) == (2, 0)


def test_draws_depend_on_draws_only_and_a_function_that_shows_nothing_on_all(database: Server) -> None:
    draw = ("run", RC, "SELECT nextval('loose_id_seq')", "SELECT nextval('loose_id_seq')")
    with Engine(database, calls(draw, draw)) as engine:
        assert explore(engine, lambda _: None).executions == 6
    with Engine(database, calls(draw, ("run", RC, "SELECT gen_random_uuid()"))) as engine:
        assert explore(engine, lambda _: None).executions == 1
    for statement in ("SELECT pg_sleep(0)", "SELECT last_value FROM loose_id_seq", "SELECT count(*) FROM pg_locks"):
        ask = ("run", RC, statement)
        with Engine(database, calls(ask, ask)) as engine:
            assert explore(engine, lambda _: None).executions == 2


def test_a_server_that_wants_a_password_gets_it_from_the_participants_too(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'it''s/secret'")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        connection.execute("SELECT pg_reload_conf()")
    database = replace(make_database(server, "scram", programs.SETUP), user="guarded", password="it's/secret")
    with Engine(database, calls(("transfer", 1, 2, 10), ("transfer", 1, 3, 10))) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken


@pytest.fixture
def own_temporary_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files in which no other test's engine clears up."""
    with tempfile.TemporaryDirectory(prefix="bankrun-killed-", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


def test_nothing_is_left_when_the_engine_is_killed(server: Server, own_temporary_files: Path) -> None:
    database = make_database(server, "killed", programs.SETUP)
    code = (
        f"import sys, os; sys.path.insert(0, {SUPPORT!r})\n"
        "from bankrun.schedule import *\n"
        f"server = Server({database.host!r}, {database.port}, {database.user!r}, None, 'killed')\n"
        f"calls = [Call(n, 'programs:transfer', (1, 2, 10), path=[{SUPPORT!r}]) for n in 'AB']\n"
        "engine = Engine(server, calls)\n"
        "def choose(able, steps):\n"
        "    if len(steps) == 3:\n"
        "        print(os.getpid(), *[member.pid for member in engine._crew.members.values()], flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return able[0]\n"
        "engine.execute(choose)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    killed, *pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    [its_sockets] = own_temporary_files.glob(f"bankrun-wire-{killed}-*")
    with Engine(database, calls(("transfer", 1, 2, 10), ("transfer", 1, 2, 10))):
        assert not its_sockets.exists()


def test_programs_run_again_find_what_the_others_left_and_the_next_execution_does_not(database: Server) -> None:
    specs = calls(("plain_transfer", 1, 2, 10), ("plain_transfer", 1, 3, 10), kept=False)
    with Engine(database, specs) as engine:
        before = engine.read_rows()
        once = engine.execute(follow(""), ["A", "B"])
        twice = engine.run_again(["B"])
        assert balances(once) == {1: 80, 2: 110, 3: 110}
        assert balances(twice) == {1: 70, 2: 110, 3: 120}
        assert list(twice.outcomes) == ["B"]
        engine.restore()
        assert engine.read_rows() == before


def test_what_prepares_a_process_asks_unscheduled_and_leaves_nothing(database: Server) -> None:
    specs = calls(
        ("plain_transfer", 1, 2, 10), kept=False, prepare="programs:change_at_import", prepare_arguments=["at_import"]
    )
    with Engine(database, specs) as engine:
        assert balances(engine.execute(follow(""))) == {1: 90, 2: 110, 3: 100}
        assert "public.at_import" not in engine.read_rows()


def test_processes_forked_from_a_warmed_one_have_an_environment_each(database: Server) -> None:
    warmed = Warmed.start({**os.environ, "NAME": "nobody"})
    try:
        warmed.import_all(["programs"], path=[SUPPORT])
        specs = [
            Call(one.name, "programs:tell_environment", ("NAME",), path=[SUPPORT], environment={"NAME": one.name})
            for one in calls(("transfer",), ("transfer",))
        ]
        for _ in range(2):
            with Engine(database, specs, warmed=[warmed, warmed]) as engine:
                done = engine.execute(follow(""))
                pids = {member.pid for member in engine._crew.members.values()}
            assert {name: one.result for name, one in done.outcomes.items()} == {"A": "A", "B": "B"}
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        warmed.close()


def test_a_process_that_cannot_be_prepared_is_one_sentence(database: Server) -> None:
    specs = calls(
        ("plain_transfer", 1, 2, 10), kept=False, prepare="programs:change_at_import", prepare_arguments=["1x"]
    )
    with pytest.raises(NotStarted, match=r"^programs cannot be imported: SyntaxError: "):
        Engine(database, specs)


def balances(execution: Execution) -> dict[int, int]:
    rows = [json.loads(row) for row in execution.rows["public.account"]]
    return {row["id"]: row["balance"] for row in rows if row["id"] <= 3}


PRESET = (
    "SELECT setting FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
    " CROSS JOIN unnest(setconfig) setting WHERE datname = current_database() ORDER BY 1"
)


def test_a_database_that_is_copied_anew_presets_what_it_did(server: Server) -> None:
    preset = make_database(server, "preset", programs.SETUP)
    with server.connect("postgres") as connection:
        for setting in (
            "default_transaction_isolation = serializable",
            "default_transaction_read_only = on",
            'search_path = "$user", public, "a, b"',
            "auto_explain.log_format = yaml",
        ):
            connection.execute(f"ALTER DATABASE preset SET {setting}")  # type: ignore[call-overload]
    admin = preset.connect()
    before = admin.execute(PRESET).fetchall()
    keeper = Keeper(preset, admin, recreates=True)
    try:
        assert keeper.recreate().execute(PRESET).fetchall() == before != []
    finally:
        keeper.admin.close()
        keeper.drop_template()


def test_a_scratch_database_gets_what_one_database_can_have_from_a_superuser(server: Server) -> None:
    tuned = make_database(server, "tuned", "CREATE ROLE plain LOGIN", prepare=False)
    with replace(tuned, user="plain").connect() as connection:
        tune_database(connection, "tuned")
    with tuned.connect() as connection:
        assert connection.execute(PRESET).fetchall() == []
        tune_database(connection, "tuned")
        found = {setting for (setting,) in connection.execute(PRESET).fetchall()}
    assert {"deadlock_timeout=1ms", "log_lock_waits=on", "client_min_messages=log"} <= found
    assert not {one for one in found if one.startswith(("fsync", "full_page_writes", "shared_preload"))}
