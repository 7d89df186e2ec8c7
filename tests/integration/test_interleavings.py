"""The proof: what it enumerates, what it finds, and that it finds the same every time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from bank.errors import StrategyFault
from bank.orders import Posting
from bank.postgres.database import Database, Transaction
from bank.settings import Settings
from bank.strategies import STRATEGIES, Attempt, Claim, Strategy
from bankrun.proof.interleavings import CASES, CHUNKS, INSTANCES, THREE, Prover, applies, canonical
from bankrun.proof.replay import parse_id, psql_script, steps_table
from bankrun.proof.scheduler import Step
from bankrun.results.models.proof import CaseResult
from tests.waiting import wait_until

PAIR, OPPOSITE, DRAIN, TWICE, PAUSED = (
    CASES[name] for name in ("same-pair", "opposite", "drain", "duplicate", "paused-holder")
)


@pytest.fixture(scope="module")
def prover(database: Database, settings: Settings) -> Iterator[Prover]:
    """A prover for two transfers."""
    with Prover(database, settings) as opened:
        yield opened


class LocksOneRow(Strategy):
    """Locks the debit account and forgets the credit account. Claims everywhere, and is wrong."""

    name = "locks-one-row"
    summary = "FOR UPDATE on the debit account only"
    claim = Claim.EVERYWHERE
    LOCK: ClassVar[str] = "SELECT id FROM accounts WHERE id = %(debit)s FOR UPDATE"

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        transaction.execute(self.LOCK, {"debit": attempt.order.debit})
        super().move(transaction, attempt)


class Raises(Strategy):
    """Fails after it has written one account."""

    name = "raises"
    summary = "raises"
    claim = Claim.EVERYWHERE

    def write(self, transaction: Transaction, posting: Posting) -> None:
        super().write(transaction, posting)
        raise ZeroDivisionError("a bug in a strategy")


def test_no_lock_is_broken_in_one_instance_and_in_two(prover: Prover) -> None:
    for instances in INSTANCES:
        result = prover.prove(STRATEGIES["none"], instances, PAIR)
        assert (result.interleavings, result.broken, result.truncated) == (6, 4, 0)
        assert result.expected == "unsafe"
        assert result.outcomes == ["2 applied; drift +0; 0 lost", "2 applied; drift +0; 2 lost"]


def test_a_thread_lock_is_never_broken_in_one_instance_and_broken_in_two(prover: Prover) -> None:
    same = prover.prove(STRATEGIES["thread-lock"], "same", PAIR)
    two = prover.prove(STRATEGIES["thread-lock"], "two", PAIR)
    assert (same.broken, same.interleavings) == (0, 2)
    assert two.broken > 0
    assert (same.expected, two.expected) == ("safe", "unsafe")


@pytest.mark.parametrize("name", ["row-lock", "row-lock-orm", "atomic-update", "version-check", "advisory-lock"])
def test_a_lock_in_the_database_is_never_broken(prover: Prover, name: str) -> None:
    for instances in INSTANCES:
        for case in (PAIR, OPPOSITE, DRAIN, TWICE):
            result = prover.prove(STRATEGIES[name], instances, case)
            assert (result.broken, result.truncated, result.deadlocks) == (0, 0, 0)
            assert result.interleavings > 1


def test_row_locks_in_any_order_are_right_by_deadlocks(prover: Prover) -> None:
    result = prover.prove(STRATEGIES["row-lock-unordered"], "two", OPPOSITE)
    assert result.broken == 0
    assert result.deadlocks > 0


def test_a_lease_that_runs_out_breaks_a_redis_lock_and_a_fence_mends_it(prover: Prover) -> None:
    # One interruption of the holder is enough to break the others. All 1,012 orders of the fence take half a minute:
    # `bankrun prove --strategy redis-lock-fenced` runs them.
    lock, fenced, late = (
        prover.prove(STRATEGIES[name], "two", PAUSED, preemptions_max=1)
        for name in ("redis-lock", "redis-lock-fenced", "redis-lock-fenced-late")
    )
    assert lock.broken > 0
    assert lock.expected == "unsafe"
    assert (fenced.broken, fenced.expected) == (0, "safe")
    assert fenced.interleavings > 2
    assert late.broken > 0
    assert prover.prove(STRATEGIES["redis-lock"], "two", PAIR).broken == 0


def test_two_messages_of_two_orders_each_are_one_after_the_other(prover: Prover) -> None:
    for instances in INSTANCES:
        result = prover.prove(STRATEGIES["batch"], instances, CHUNKS)
        assert (result.broken, result.truncated, result.deadlocks) == (0, 0, 0)
        assert result.interleavings > 1
        # Of the two that take 60 from account 101, the one that comes second is refused.
        assert result.outcomes == ["3 applied,1 refused; drift +0; 0 lost"]
    assert not applies(STRATEGIES["row-lock"], CHUNKS)


ALMOST_RIGHT = ("thread-lock-early", "advisory-lock-early", "check-then-debit", "retry-without-reread")


@pytest.mark.parametrize("name", ALMOST_RIGHT)
def test_each_almost_right_strategy_is_broken_by_some_interleaving(prover: Prover, name: str) -> None:
    assert any(prover.prove(STRATEGIES[name], "same", case).broken for case in (PAIR, DRAIN))


def test_a_claim_that_is_refuted_is_a_contradiction_and_its_replay_is_the_same_ten_times(prover: Prover) -> None:
    result = prover.prove(LocksOneRow, "two", CASES["one-common"])
    assert result.broken > 0
    assert result.contradicts
    assert result.shortest_broken is not None
    _, instances, case, choices = parse_id(result.shortest_broken)
    told = set()
    for _ in range(10):
        execution, found = prover.replay(LocksOneRow, instances, case, choices)
        assert not found.passed
        table = steps_table(execution, ["A", "B"])
        cells = tuple(str(cell) for column in table.columns for cell in column.cells)
        told.add((execution.choices, cells, tuple(finding.kind for finding in found.findings)))
    assert len(told) == 1


def comparable(result: CaseResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in CaseResult.__slots__ if name != "seconds"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "case"),
    [("none", DRAIN), ("row-lock-unordered", OPPOSITE), ("repeatable-read", TWICE), ("redis-lock", PAUSED)],
)
def test_two_runs_give_the_same_counts_and_ids(prover: Prover, name: str, case: object) -> None:
    first, second = (prover.prove(STRATEGIES[name], "two", case) for _ in range(2))  # type: ignore[arg-type]
    assert comparable(first) == comparable(second)


@pytest.mark.parametrize("name", ["none", "row-lock", "version-check", "row-lock-unordered", "thread-lock-early"])
@pytest.mark.parametrize("case", [PAIR, DRAIN], ids=lambda case: case.name)
def test_pruning_leaves_out_no_outcome(prover: Prover, name: str, case: object) -> None:
    pruned = prover.prove(STRATEGIES[name], "same", case)  # type: ignore[arg-type]
    full = prover.prove(STRATEGIES[name], "same", case, prune=False)  # type: ignore[arg-type]
    assert pruned.outcomes == full.outcomes
    assert (pruned.interleavings, pruned.broken) == (full.interleavings, full.broken)


def test_three_transfers_with_one_preemption(database: Database, settings: Settings) -> None:
    with Prover(database, settings, transfers=3) as three:
        assert three.prove(STRATEGIES["none"], "two", THREE, preemptions_max=1).broken > 0
        assert three.prove(STRATEGIES["row-lock"], "two", THREE, preemptions_max=1).broken == 0


def connections(database: Database) -> int:
    with database.transaction() as transaction:
        row = transaction.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name IN ('bankrun A', 'bankrun B', 'bankrun scheduler')"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_strategy_that_raises_leaves_no_thread_connection_or_lock(database: Database, settings: Settings) -> None:
    threads, sessions = set(threading.enumerate()), connections(database)

    def prove() -> None:
        with Prover(database, settings) as prover:
            prover.prove(Raises, "two", PAIR)

    with pytest.raises(StrategyFault, match=r"raises ZeroDivisionError: a bug in a strategy \(.*line \d+, in write\)"):
        prove()
    assert wait_until(lambda: threads.issuperset(threading.enumerate()) and connections(database) <= sessions, 5)
    with database.transaction() as transaction:
        transaction.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE NOWAIT")


def test_an_interruption_leaves_no_thread_or_connection(database: Database, settings: Settings) -> None:
    threads, sessions = set(threading.enumerate()), connections(database)

    def interrupted(able: Mapping[str, Step], depth: int) -> str:
        if depth == 3:
            raise KeyboardInterrupt
        return min(able)

    def prove() -> None:
        with Prover(database, settings) as prover:
            prover.run(STRATEGIES["row-lock"], "two", PAIR, interrupted)

    with pytest.raises(KeyboardInterrupt):
        prove()
    assert wait_until(lambda: threads.issuperset(threading.enumerate()) and connections(database) <= sessions, 5)


def test_orders_that_swap_independent_steps_have_one_canonical_form() -> None:
    read, write = Step("s", "r", reads=frozenset({"1"})), Step("s", "w", locks=frozenset({"2"}))
    assert canonical([("A", read), ("B", write)]) == canonical([("B", write), ("A", read)]) == "AB"
    lock = Step("s", "l", locks=frozenset({"2"}))
    assert canonical([("A", lock), ("B", write)]) != canonical([("B", write), ("A", lock)])


def test_the_script_for_psql_holds_every_statement_in_order(prover: Prover) -> None:
    execution, _ = prover.replay(STRATEGIES["none"], "two", PAIR, "AAABABBB")
    script = "\n".join(psql_script(execution, PAIR, ["A", "B"], title="none", isolation="READ COMMITTED"))
    assert script.count("BEGIN ISOLATION LEVEL READ COMMITTED;") == script.count("COMMIT;") == 2
    assert script.index("balance = 90") < script.index("balance = 95")
    assert "%(" not in script


def test_only_leases_can_run_out() -> None:
    assert applies(STRATEGIES["redis-lock-fenced"], PAUSED)
    assert not applies(STRATEGIES["row-lock"], PAUSED)
