"""Strategies that were written to fool the proof, and did."""

from __future__ import annotations

import os

import pytest

from bank.errors import StrategyFault
from bank.outside import user_strategy
from bank.strategies import STRATEGIES
from bankrun.proof.cases import CASES, applies
from bankrun.proof.prover import Prover
from bankrun.results.models.proof import CaseResult
from tests.integration import fooling


def prove(prover: Prover, name: str, instances: str, case: str) -> CaseResult:
    return prover.prove(user_strategy(getattr(fooling, name)), instances, CASES[case])


@pytest.mark.parametrize(
    ("name", "instances", "case"),
    [
        ("LocksThePayerOnly", "two", "one-payee"),
        ("KnowsBeforeItLocks", "same", "same-pair"),
        ("CachesBeforeItLocks", "two", "same-pair"),
        ("LosesPatience", "two", "same-pair"),
        pytest.param("WaitsOnce", "two", "same-pair", marks=pytest.mark.long),
        pytest.param("LeavesEarlyWithLittle", "two", "same-pair", marks=pytest.mark.long),
        pytest.param("ReadsWithAnOldSnapshot", "two", "same-pair", marks=pytest.mark.long),
    ],
)
def test_what_loses_money_is_not_called_safe(prover: Prover, name: str, instances: str, case: str) -> None:
    result = prove(prover, name, instances, case)
    assert (result.verdict, result.serial_broken) == ("broken", 0), result.reason
    assert result.complete, result.reason  # what was broken is broken again


def test_who_does_nothing_is_not_called_safe(prover: Prover) -> None:
    with pytest.raises(StrategyFault, match=r"nobody is in the way of: SELECT .* fails with 42501: permission denied"):
        prove(prover, "GetsNowhere", "two", "same-pair")


@pytest.mark.long
def test_who_starts_over_more_often_than_is_explored_is_not_called_safe(prover: Prover) -> None:
    result = prove(prover, "StepsAside", "two", "apart")
    assert (result.verdict, result.broken, result.complete) == ("inconclusive", 0, False)
    assert result.truncated


def test_every_execution_begins_with_an_empty_redis(prover: Prover) -> None:
    result = prove(prover, "CachesByEntry", "two", "same-pair")
    assert (result.verdict, result.broken, result.complete) == ("safe", 0, True), result.reason


@pytest.mark.parametrize(("name", "outcome"), [("TakesTwinsForOne", "refused"), ("LeavesTwinsOut", "applied")])
def test_a_transfer_is_not_another_one_of_the_same_amount(prover: Prover, name: str, outcome: str) -> None:
    with pytest.raises(StrategyFault, match=rf"same amount between the same accounts: it is {outcome}, and moves"):
        prover.rehearse(user_strategy(getattr(fooling, name)))


@pytest.mark.skipif("SOUNDNESS" not in os.environ, reason="half a minute: `make soundness` runs it")
@pytest.mark.parametrize("name", [name for name, one in STRATEGIES.items() if not one.routed_to_one])
def test_ours_treat_payer_and_payee_alike(prover: Prover, name: str) -> None:
    strategy, case = STRATEGIES[name], CASES["one-payee"]
    assert not applies(strategy, case)
    for instances in ("same", "two"):
        alike = prover.prove(strategy, instances, CASES["same-pair"])
        assert prover.prove(strategy, instances, case).verdict == alike.verdict
