"""Pruning loses no outcome: random pairs of transactions, with pruning and without. And the tests can tell.

SOUNDNESS_PAIRS pairs (12 if it is not set) are run from SOUNDNESS_SEED on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bankrun.schedule import Budget, Call, Engine, Execution, Footprint, Server, depends, digest, explore
from bankrun.schedule.observation import footprints
from tests.schedule_support import fuzz
from tests.schedule_support.exploring import SUPPORT
from tests.schedule_support.private_server import make_database, private_server

PAIRS = int(os.environ.get("SOUNDNESS_PAIRS", "12"))
SEED = int(os.environ.get("SOUNDNESS_SEED", "0"))
FULL_MAX = 500
RC, SER, AUTOCOMMIT = 2, 4, 0
Depends = Callable[[Footprint, Footprint], bool]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with private_server() as server:
        database = make_database(server, "fuzz", fuzz.SETUP)
        with Engine(database, [Call(name, "fuzz:play", path=[SUPPORT]) for name in "AB"]) as found:
            yield found


def outcomes(
    engine: Engine, programs: dict[str, Any], *, pruned: bool, depends_on: Depends = depends
) -> frozenset[Any]:
    """Every way in which two programs can end; nothing if there are too many to enumerate."""
    for name, arguments in programs.items():
        engine.give(name, arguments)
    found: set[Any] = set()

    def judge(execution: Execution) -> None:
        ends = tuple((o.error, o.sqlstate, repr(o.result)) for o in execution.outcomes.values())
        found.add((digest(execution.rows), ends, execution.stuck))

    result = explore(engine, judge, pruned=pruned, budget=Budget(FULL_MAX, 120), depends_on=depends_on)
    assert not result.mismatches, (programs, result.mismatches[:3])
    return frozenset(found) if result.complete else frozenset()


@pytest.mark.parametrize("seed", range(SEED, SEED + PAIRS))
def test_pruning_loses_no_outcome_of_a_random_pair(engine: Engine, seed: int) -> None:
    programs = fuzz.generate(seed)
    full = outcomes(engine, programs, pruned=False)
    if not full:
        pytest.skip("too many orders to enumerate")
    assert outcomes(engine, programs, pruned=True) == full, programs


TELLING: dict[str, dict[str, Any]] = {
    # For each clause of the rule, two programs that come out otherwise without it.
    "is_either_universal": {
        "A": [AUTOCOMMIT, [("redefine", 1, 1)]],
        "B": [AUTOCOMMIT, [("answer", 1, 1), ("answer", 1, 1)]],
    },
    "are_both_blocked": {"A": [RC, [("add", 1, 1), ("add", 2, 1)]], "B": [RC, [("add", 2, 1), ("add", 1, 1)]]},
    "lock_the_same": {"A": [RC, [("nowait", 1, 1)]], "B": [RC, [("nowait", 1, 1)]]},
    "take_conflicting_modes": {"A": [RC, [("table nowait", 1, 1)]], "B": [RC, [("insert", 3, 1)]]},
    "show_what_the_other_reads": {"A": [RC, [("read", 1, 1), ("copy", 1, 2)]], "B": [RC, [("add", 1, 1)]]},
    "are_serializable_and_meet": {
        "A": [SER, [("read", 1, 1), ("add", 2, 1)]],
        "B": [SER, [("read", 2, 1), ("add", 1, 1)]],
    },
}


def without(clause: str) -> Depends:
    """The rule of dependence without one of its clauses."""
    rest = [one for one in footprints.CLAUSES if one.__name__ != clause]
    assert len(rest) == len(footprints.CLAUSES) - 1
    return lambda a, b: any(one(a, b) for one in rest)


@pytest.mark.parametrize("clause", TELLING)
def test_each_clause_of_the_rule_is_needed(engine: Engine, clause: str) -> None:
    programs = TELLING[clause]
    full = outcomes(engine, programs, pruned=False)
    assert full
    assert outcomes(engine, programs, pruned=True) == full
    assert outcomes(engine, programs, pruned=True, depends_on=without(clause)) != full


def test_every_clause_has_programs_that_tell() -> None:
    assert set(TELLING) == {clause.__name__ for clause in footprints.CLAUSES}


def test_relations_are_enough_on_a_server_that_shows_no_more() -> None:
    with private_server({"deadlock_timeout": "5ms"}) as server:
        plain = make_plain(server)
        with Engine(plain, [Call(name, "fuzz:play", path=[SUPPORT]) for name in "AB"]) as engine:
            assert not engine.capabilities.sees_rows
            for programs in (*TELLING.values(), fuzz.generate(3), fuzz.generate(5)):
                full = outcomes(engine, programs, pruned=False)
                assert outcomes(engine, programs, pruned=True) == full, programs


def make_plain(server: Server) -> Server:
    """A database without anything of ours in it."""
    return make_database(server, "plain", fuzz.SETUP, prepare=False)


def test_a_role_that_may_only_create_databases_is_enough() -> None:
    with private_server({"deadlock_timeout": "1s"}) as server:
        with server.connect() as connection:
            connection.execute("CREATE ROLE plain LOGIN CREATEDB PASSWORD 'secret'")
        owned = replace(server, user="plain", password="secret")
        plain = make_database(owned, "owned", fuzz.SETUP, prepare=False)
        with Engine(plain, [Call(name, "fuzz:play", path=[SUPPORT]) for name in "AB"]) as engine:
            assert not engine.capabilities.is_superuser
            programs = {"A": [RC, [("add", 1, 1), ("retag", 2, 1)]], "B": [RC, [("add", 1, 1), ("read", 2, 1)]]}
            full = outcomes(engine, programs, pruned=False)
            assert full
            assert outcomes(engine, programs, pruned=True) == full
