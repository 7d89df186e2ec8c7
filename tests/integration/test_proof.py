"""The proof: what it enumerates, what it finds, and that it finds the same every time."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from bank.errors import StrategyFault
from bank.orders import Posting
from bank.outside import user_strategy
from bank.postgres.database import Transaction
from bank.settings import Settings
from bank.strategies import STRATEGIES, Attempt, Claim, Strategy
from bankrun.errors import CannotStart
from bankrun.proof.cases import ALL_CASES, CASES, CHUNKS, INSTANCES, THREE, Case, applies
from bankrun.proof.prover import Prover
from bankrun.proof.replay import draw_steps, fill_in, parse_id, write_psql_script
from bankrun.results.models.proof import CaseResult
from bankrun.schedule import Budget
from bankrun.servers.binaries import find_binaries
from tests.waiting import wait_until

PAIR, OPPOSITE, DRAIN, HIGHER, TWICE, PAUSED = (
    CASES[name] for name in ("same-pair", "opposite", "drain", "drain-higher", "duplicate", "paused-holder")
)


class LocksOneRow(Strategy):
    """Locks the debit account and forgets the credit account. Claims everywhere, and is wrong."""

    claim = Claim.EVERYWHERE
    LOCK: ClassVar[str] = "SELECT id FROM accounts WHERE id = %(debit)s FOR UPDATE"

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        transaction.execute(self.LOCK, {"debit": attempt.order.debit})
        super().move(transaction, attempt)


class Raises(Strategy):
    """Fails after it has written one account."""

    claim = Claim.EVERYWHERE

    def write(self, transaction: Transaction, posting: Posting) -> None:
        super().write(transaction, posting)
        raise ZeroDivisionError("a bug in a strategy")


class ForgetsTheCredit(Strategy):
    """Locks as it should, and is wrong one after the other, too."""

    claim = Claim.EVERYWHERE
    READ = Strategy.READ + " FOR UPDATE"

    def write(self, transaction: Transaction, posting: Posting) -> None:
        if posting.delta < 0:
            super().write(transaction, posting)


def test_no_lock_is_broken_in_one_instance_and_in_two(prover: Prover) -> None:
    for instances in INSTANCES:
        result = prover.prove(STRATEGIES["none"], instances, PAIR)
        assert (result.interleavings, result.broken, result.truncated) == (6, 4, 0)
        assert (result.verdict, result.expected, result.complete) == ("broken", "unsafe", True)
        assert result.outcomes == ["2 applied; drift +0; 0 lost", "2 applied; drift +0; 2 lost"]


def test_a_thread_lock_is_never_broken_in_one_instance_and_broken_in_two(prover: Prover) -> None:
    same = prover.prove(STRATEGIES["thread-lock"], "same", PAIR)
    two = prover.prove(STRATEGIES["thread-lock"], "two", PAIR)
    assert (same.broken, same.verdict, same.expected) == (0, "safe", "safe")
    assert two.broken > 0
    assert two.expected == "unsafe"


@pytest.mark.parametrize(
    "name", ["row-lock", "row-lock-orm", "atomic-update", "version-check", "advisory-lock", "single-statement"]
)
def test_a_lock_in_the_database_is_never_broken(prover: Prover, name: str) -> None:
    for instances, case in [("same", PAIR), *(("two", case) for case in (PAIR, OPPOSITE, DRAIN, HIGHER, TWICE))]:
        result = prover.prove(STRATEGIES[name], instances, case)
        assert (result.verdict, result.broken, result.truncated, result.deadlocks) == ("safe", 0, 0, 0), case
        assert result.interleavings > 1


def test_row_locks_in_any_order_are_right_by_deadlocks(prover: Prover) -> None:
    result = prover.prove(STRATEGIES["row-lock-unordered"], "two", OPPOSITE)
    assert result.broken == 0
    assert result.deadlocks > 0


@pytest.mark.long
def test_a_lease_that_runs_out_breaks_a_redis_lock_and_a_fence_mends_it(prover: Prover) -> None:
    # One interruption of the holder is enough to break the others.
    lock, fenced, late = (
        prover.prove(STRATEGIES[name], "two", PAUSED, preemptions_max=1)
        for name in ("redis-lock", "redis-lock-fenced", "redis-lock-fenced-late")
    )
    assert lock.broken > 0
    assert lock.expected == "unsafe"
    assert (fenced.broken, fenced.expected) == (0, "safe")
    assert fenced.verdict == "inconclusive"  # one preemption is not all of them
    assert fenced.interleavings > 2
    assert late.broken > 0
    assert prover.prove(STRATEGIES["redis-lock"], "two", PAIR).broken == 0


def test_two_messages_of_two_orders_each_are_one_after_the_other(prover: Prover) -> None:
    for instances in INSTANCES:
        result = prover.prove(STRATEGIES["batch"], instances, CHUNKS)
        assert (result.verdict, result.truncated, result.deadlocks) == ("safe", 0, 0)
        assert result.interleavings > 1
        # Of the two that take 60 from account 101, the one that comes second is refused.
        assert result.outcomes == ["3 applied,1 refused; drift +0; 0 lost"]
    assert not applies(STRATEGIES["row-lock"], CHUNKS)


@pytest.mark.parametrize(
    "name", ["thread-lock-early", "advisory-lock-early", "check-then-debit", "retry-without-reread"]
)
def test_each_almost_right_strategy_is_broken_by_some_interleaving(prover: Prover, name: str) -> None:
    assert any(prover.prove(STRATEGIES[name], "same", case).broken for case in (PAIR, DRAIN))


def test_a_claim_that_is_refuted_is_a_contradiction_and_its_replay_is_the_same_ten_times(prover: Prover) -> None:
    strategy = user_strategy(LocksOneRow)
    result = prover.prove(strategy, "two", CASES["one-common"])
    assert result.broken > 0
    assert result.contradicts
    assert result.shortest_broken is not None
    _, instances, case, schedule = parse_id(result.shortest_broken)
    told = set()
    for _ in range(10):
        judged = prover.replay(strategy, instances, case, schedule)
        assert judged.is_broken
        table = draw_steps(judged.execution, ["A", "B"])
        cells = tuple(str(cell) for column in table.columns for cell in column.cells)
        told.add((judged.execution.schedule, cells, tuple(judged.kinds)))
    assert len(told) == 1


def test_what_is_wrong_one_after_the_other_is_called_arithmetic_and_no_race(prover: Prover) -> None:
    result = prover.prove(user_strategy(ForgetsTheCredit), "two", PAIR)
    assert result.serial_broken == 2
    assert (result.verdict, result.broken) == ("broken", result.interleavings)
    assert "the arithmetic, not a race" in result.reason


def test_a_proof_that_runs_out_of_its_budget_is_never_safe(prover: Prover) -> None:
    result = prover.prove(STRATEGIES["row-lock"], "two", PAIR, budget=Budget(executions=3))
    assert (result.broken, result.complete, result.verdict) == (0, False, "inconclusive")
    assert result.reason == "3 executions, and more to go"


def comparable(result: CaseResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in CaseResult.__slots__ if name != "seconds"}  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "case"),
    [("none", DRAIN), ("row-lock-unordered", OPPOSITE), ("repeatable-read", TWICE), ("redis-lock", PAUSED)],
)
def test_two_runs_give_the_same_counts_and_ids(prover: Prover, name: str, case: Case) -> None:
    first, second = (prover.prove(STRATEGIES[name], "two", case) for _ in range(2))
    assert comparable(first) == comparable(second)


@pytest.mark.long
@pytest.mark.parametrize(("name", "case"), [("none", PAIR), ("row-lock", DRAIN), ("single-statement", OPPOSITE)])
def test_pruning_leaves_out_no_outcome(prover: Prover, name: str, case: Case) -> None:
    pruned = prover.prove(STRATEGIES[name], "same", case)
    full = prover.prove(STRATEGIES[name], "same", case, pruned=False)
    assert pruned.outcomes == full.outcomes
    assert pruned.interleavings <= full.interleavings
    assert full.complete


@pytest.mark.long
def test_three_transfers_with_one_preemption(own_settings: Settings) -> None:
    with Prover(own_settings, transfers=3) as three:
        assert three.prove(STRATEGIES["none"], "two", THREE, preemptions_max=1).broken > 0
        assert three.prove(STRATEGIES["row-lock"], "two", THREE, preemptions_max=1).broken == 0


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_a_strategy_that_raises_is_named_with_its_line_and_the_next_is_proved(prover: Prover) -> None:
    with pytest.raises(StrategyFault, match=r"raises ZeroDivisionError: a bug in a strategy \(.*line \d+, in write\)"):
        prover.prove(user_strategy(Raises), "two", PAIR)
    assert prover.prove(STRATEGIES["row-lock"], "two", PAIR).verdict == "safe"


def test_an_interruption_leaves_no_process_and_no_file(own_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_settings.state_dir is not None
    private = own_settings.state_dir / "private"
    before, kept = children(), set(private.glob("*"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bankrun.proof.prover.Courtroom.judge", interrupt)
    with pytest.raises(KeyboardInterrupt), Prover(own_settings) as prover:
        prover.prove(STRATEGIES["row-lock"], "two", PAIR)
    assert wait_until(lambda: children() <= before, 10)
    assert set(private.glob("*")) <= kept


def test_the_script_for_psql_runs_step_by_step_and_loses_the_same_money(prover: Prover, tmp_path: Path) -> None:
    result = prover.prove(STRATEGIES["none"], "two", PAIR)
    assert result.shortest_broken is not None
    _, _, _, schedule = parse_id(result.shortest_broken)
    judged = prover.replay(STRATEGIES["none"], "two", PAIR, schedule)
    script = list(write_psql_script(judged.execution, PAIR, title="none"))
    whole = "\n".join(script)
    assert whole.count("\nBEGIN;") == whole.count("\nCOMMIT;") == 2
    assert not [line for line in script if "$1" in line and "\\bind" not in line]
    # Nobody waits in this one, so a single window can stand for both, with a session for each.
    file = tmp_path / "script.sql"
    file.write_text(as_two_sessions(script, prover))
    psql = str(find_binaries().postgres / "bin" / "psql")
    where = ["--host", prover.bank.place.host, "--port", str(prover.bank.place.port)]
    subprocess.run(
        [psql, *where, "-U", "bankrun", "-qX", "-d", "postgres", "-c", "CREATE DATABASE scratch"], check=True
    )
    told = subprocess.run(
        [psql, *where, "-U", "bankrun", "-AtqX", "-v", "ON_ERROR_STOP=1", "-d", "scratch", "-f", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    balances = [line for line in told.stdout.splitlines() if line.count("|") == 1]
    assert balances[-4:-2] == ["101|95", "102|105"]


def as_two_sessions(script: list[str], prover: Prover) -> str:
    """Return the script with A's transaction first where they do not wait: psql has one session only.

    B's reads come before A's commit in the interleaving, and their values are written into B's statements: so B's
    writes after A's lose the same money.
    """
    window, windows = "", {"": [], "A": [], "B": [], "any": []}  # type: dict[str, list[str]]
    for part in script:
        for line in part.split("\n"):
            if line.startswith("-- window "):
                window = line.removeprefix("-- window ").partition(" ")[0]
            elif line == "-- any window":
                window = "any"
            windows[window].append(line)
    return "\n".join([*windows[""], *windows["A"], *windows["B"], *windows["any"]])


def test_values_are_filled_in_for_reading() -> None:
    assert fill_in("a = $1, b = $2, c = $10, d = $3", ["5", None, "it's"]) == "a = 5, b = NULL, c = $10, d = 'it''s'"


def test_a_schedule_that_cannot_be_followed_ends_in_a_sentence(prover: Prover) -> None:
    with pytest.raises(CannotStart, match="t cannot go"):
        prover.replay(STRATEGIES["row-lock"], "two", PAIR, "Bt")


def test_only_leases_can_run_out() -> None:
    assert applies(STRATEGIES["redis-lock-fenced"], PAUSED)
    assert not applies(STRATEGIES["row-lock"], PAUSED)


@pytest.mark.parametrize("case", [*ALL_CASES.values(), THREE], ids=lambda case: case.name)
def test_a_bank_that_takes_transfers_one_by_one_refuses_only_what_cannot_be_paid(case: Case) -> None:
    counts = {len(applied) for applied in case.lawful_outcomes()}
    expected = {"drain": {1}, "drain-higher": {1}, "duplicate": {1}, "chunks": {3}, "three": {3}}
    assert counts == expected.get(case.name, {2})
