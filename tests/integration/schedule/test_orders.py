"""Every order of a few programs' steps on a real Postgres, with pruning and without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from bankrun.schedule import Budget, Call, Diverged, Engine, Server, Unsupported, explore, follow, replay
from tests.schedule_support.exploring import SUPPORT, Found, calls, outcome

RC, RR, SER, AUTOCOMMIT = 2, 3, 4, 0
UPDATE = "UPDATE account SET balance = balance - 10 WHERE id = {}"
LOCK = "SELECT id FROM job WHERE taken_by IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"


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
