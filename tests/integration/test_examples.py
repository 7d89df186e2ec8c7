"""The examples: what people believe, and what is found of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bank import outside
from bank.audit import audit
from bank.outside import user_strategy
from bank.postgres.database import Database
from bank.settings import Settings
from bank.strategies import Claim
from bankrun.proof.interleavings import CASES, THREE, Prover
from bankrun.proof.scheduler import Step
from bankrun.runs.rehearsal import rehearse

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


@pytest.fixture(scope="module")
def prover(database: Database, settings: Settings) -> Iterator[Prover]:
    """A prover for two transfers."""
    with Prover(database, settings) as opened:
        yield opened


@pytest.mark.parametrize("name", FOUND)
def test_each_example_does_what_its_page_says(prover: Prover, name: str) -> None:
    strategy = user_strategy(name)
    assert strategy.claim is Claim.EVERYWHERE
    assert "\n" not in strategy.summary
    rehearse(prover.database, prover.settings, [strategy.name])
    results = [prover.prove(strategy, instances, CASES["same-pair"]) for instances in ("same", "two")]
    assert all(result.interleavings > 1 and not result.truncated for result in results)
    assert tuple(result.broken > 0 for result in results) == FOUND[name]


@pytest.mark.parametrize(("name", "passed"), [("DoNothing", False), ("DoUpdate", True)])
def test_it_takes_a_third_transfer_to_break_do_nothing(
    database: Database, settings: Settings, name: str, passed: bool
) -> None:
    def the_others_in_turn(able: Mapping[str, Step], depth: int) -> str:
        return next(who for who in ("A", "BC"[depth % 2], "B", "C") if who in able)

    with Prover(database, settings, transfers=3) as prover:
        execution = prover.run(user_strategy(f"insert_on_conflict:{name}"), "two", THREE, the_others_in_turn)
        assert execution.complete
        assert audit(database).passed is passed
