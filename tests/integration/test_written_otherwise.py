"""Strategies that ask in other words than ours: the verdict follows what Postgres did."""

from __future__ import annotations

import os

import pytest

from bank.errors import StrategyFault
from bank.outside import user_strategy
from bank.strategies import STRATEGIES
from bankrun.proof.cases import CASES
from bankrun.proof.prover import Prover
from bankrun.results.models.proof import CaseResult
from tests.integration import written_otherwise

pytestmark = pytest.mark.long


PAIR = CASES["same-pair"]


def prove(prover: Prover, name: str) -> CaseResult:
    strategy = user_strategy(getattr(written_otherwise, name))
    prover.rehearse(strategy)
    return prover.prove(strategy, "two", PAIR)


@pytest.mark.parametrize(
    "name",
    [
        "QuotedNames",
        "UpdateInADoBlock",
        "ReadByOrm",
        "WrittenByATrigger",
        "SumsTheEntries",
        "SerializableFromTheSecondOn",
        "LocksFromTheSecondOn",
        "LocksUntilTheCommit",
        "LocksByHash",
    ],
)
def test_nothing_is_called_safe_because_its_words_are_not_known(prover: Prover, name: str) -> None:
    result = prove(prover, name)
    assert (result.verdict, result.serial_broken) == ("broken", 0), result.reason
    assert result.complete


@pytest.mark.parametrize(
    "name", ["LockedByOrm", "LockedInAFunction", "GuardedByASession", "GuardedByASessionThatUnlocks"]
)
def test_a_lock_is_a_lock_in_whatever_words(prover: Prover, name: str) -> None:
    result = prove(prover, name)
    assert (result.verdict, result.broken, result.complete) == ("safe", 0, True), result.reason


def test_what_threads_share_in_one_process_is_met_by_two_that_share_no_account(prover: Prover) -> None:
    strategy = user_strategy(written_otherwise.KeepsWhatItPosts)
    result = prover.prove(strategy, "same", CASES["apart"])
    assert (result.verdict, result.complete) == ("broken", True), result.reason
    assert prover.prove(strategy, "two", CASES["apart"]).verdict == "safe"
    assert prover.prove(user_strategy(written_otherwise.LockedInAFunction), "same", CASES["apart"]).verdict == "safe"


@pytest.mark.skipif("SOUNDNESS" not in os.environ, reason="half a minute: `make soundness` runs it")
@pytest.mark.parametrize("name", STRATEGIES)
def test_ours_remember_nothing(prover: Prover, name: str) -> None:
    result = prover.prove(STRATEGIES[name], "same", CASES["apart"])
    assert (result.verdict, result.broken) == ("safe", 0) or STRATEGIES[name].routed_to_one, result.reason


def test_a_transfer_refused_although_it_can_be_paid_is_not_safe(prover: Prover) -> None:
    result = prove(prover, "RefusesWhereItWouldWait")
    assert result.refused_payable > 0
    assert result.verdict != "safe"


def test_numbers_drawn_twice_tell_who_was_there(prover: Prover) -> None:
    strategy = user_strategy(written_otherwise.ComparesTickets)
    assert prover.prove(strategy, "two", CASES["one-common"]).verdict == "broken"


@pytest.mark.parametrize(
    ("name", "fault"),
    {
        "KeepsTheLastTwenty": "refuses a transfer of all that an account holds, 80 of 80",
        "ChecksLargeAmountsOnly": "lets an account pay 1 that holds 0",
        "GoesOnAfterAFailure": r"raises InFailedSqlTransaction.*`with transaction.savepoint\(\):`",
        "EntersWithoutTheLock": r"has a guard that is held, and whose enter\(0.05\) returns",
        "GivesUpTheLock": r"has a guard whose try_enter\(\) first refuses, and then lets a second in",
    }.items(),
)
def test_a_rehearsal_finds_what_no_case_reaches(prover: Prover, name: str, fault: str) -> None:
    with pytest.raises(StrategyFault, match=fault):
        prover.rehearse(user_strategy(getattr(written_otherwise, name)))


def test_a_lease_is_found_in_whichever_database_of_redis(prover: Prover) -> None:
    strategy = user_strategy(written_otherwise.LeaseInAnotherDatabase)
    prover.rehearse(strategy)
    result = prover.prove(strategy, "two", CASES["paused-holder"], preemptions_max=1)
    assert result.verdict == "broken"
    assert "its guard is a lease that it does not declare (theirs in Redis" in result.reason


def test_a_time_to_live_that_comes_later_is_named(prover: Prover) -> None:
    with pytest.raises(
        StrategyFault, match=r"a time to live to what it holds in Redis after it has entered its guard \(theirs, "
    ):
        prove(prover, "LeaseFromLaterOn")


def test_a_session_of_its_own_hides_nothing(prover: Prover) -> None:
    result = prove(prover, "WritesElsewhere")
    assert result.verdict == "broken"


def test_a_lock_that_stays_in_the_session_is_named(prover: Prover) -> None:
    with pytest.raises(
        StrategyFault,
        match=r"leaks a session lock: .*_lock\(101\), taken in tests/integration/written_otherwise\.py, line \d+",
    ):
        prove(prover, "LeavesASessionLock")


def test_the_others_are_proved_as_ever_beside_all_of_these(prover: Prover) -> None:
    assert prover.prove(STRATEGIES["none"], "two", PAIR).verdict == "broken"
    assert prover.prove(STRATEGIES["row-lock"], "two", PAIR).verdict == "safe"
