"""The examples: what people believe, and what is found of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bank import outside
from bank.outside import user_strategy
from bank.settings import Settings
from bank.strategies import Claim
from bankrun.proof.cases import CASES, THREE
from bankrun.proof.prover import Prover
from bankrun.schedule import Budget

pytestmark = pytest.mark.long


EXAMPLES = Path(__file__).parents[2] / "examples"
FOUND = {
    "stored_procedure:StoredProcedure": (True, True),
    "stored_procedure:LockingProcedure": (False, False),
    "insert_on_conflict:DoNothing": (False, False),
    "insert_on_conflict:DoUpdate": (False, False),
    "queue_per_account:QueuePerAccount": (False, True),
    "queue_per_account:QueueInPostgres": (False, False),
}
"""Whether two transfers on one pair of accounts break it in one instance, and in two."""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(EXAMPLES)
    outside.make_importable([EXAMPLES])


@pytest.mark.parametrize("name", FOUND)
def test_each_example_does_what_its_page_says(prover: Prover, name: str) -> None:
    strategy = user_strategy(name)
    assert strategy.claim is Claim.EVERYWHERE
    assert "\n" not in strategy.summary
    prover.rehearse(strategy)
    results = [prover.prove(strategy, instances, CASES["same-pair"]) for instances in ("same", "two")]
    assert all(result.interleavings > 1 and not result.truncated for result in results)
    assert tuple(result.broken > 0 for result in results) == FOUND[name]


def test_it_takes_a_third_transfer_to_break_do_nothing(own_settings: Settings) -> None:
    with Prover(own_settings, transfers=3) as prover:
        strategy, some = user_strategy("insert_on_conflict:DoNothing"), Budget(executions=40)
        assert prover.prove(strategy, "two", THREE, preemptions_max=1, budget=some).broken


@pytest.mark.skipif(not os.environ.get("SOUNDNESS"), reason="half a minute: `make soundness` runs it")
def test_a_third_transfer_does_not_break_do_update(own_settings: Settings) -> None:
    with Prover(own_settings, transfers=3) as prover:
        result = prover.prove(user_strategy("insert_on_conflict:DoUpdate"), "two", THREE, preemptions_max=1)
    assert (result.broken, result.complete) == (0, True)
