"""Pruning loses no outcome of any strategy in any case that is small enough to enumerate: for `make soundness`."""

from __future__ import annotations

import os

import pytest

from bank.strategies import STRATEGIES
from bankrun.proof.cases import ALL_CASES, INSTANCES, applies
from bankrun.proof.prover import Prover
from bankrun.schedule import Budget

FULL = Budget(executions=300, seconds=90)
WORKS = [
    (name, instances, case.name)
    for name, strategy in STRATEGIES.items()
    if "SOUNDNESS" in os.environ and not strategy.routed_to_one
    for instances in INSTANCES
    for case in ALL_CASES.values()
    if applies(strategy, case)
]

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize(("name", "instances", "case"), WORKS)
def test_pruning_loses_no_outcome_of_a_strategy(prover: Prover, name: str, instances: str, case: str) -> None:
    full = prover.prove(STRATEGIES[name], instances, ALL_CASES[case], pruned=False, budget=FULL)
    if not full.complete:
        pytest.skip(f"too many orders to enumerate: {full.reason}")
    pruned = prover.prove(STRATEGIES[name], instances, ALL_CASES[case])
    assert pruned.complete
    assert pruned.outcomes == full.outcomes
    assert (pruned.broken > 0) is (full.broken > 0)
