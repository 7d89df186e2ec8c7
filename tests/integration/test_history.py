"""How a run went, told from the journal: the samples end where the audit ends, and the scene has both postings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bank.audit import audit
from bank.orders import Order
from bank.postgres.database import Database
from bankrun.results.timeline import SAMPLES, read_history, read_scene
from tests.integration.conftest import BranchMaker

Accepted = Callable[..., Order]


@pytest.fixture
def lossy_bank(branch: BranchMaker, bank: Database, accepted: Accepted) -> Database:
    """Two transfers, of which the second did not read what the first had credited."""
    one = branch("none")
    one.apply(accepted(1, 1, 2, 10))
    with bank.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE accounts SET balance = 100, last_entry = NULL WHERE id = 2")
    one.apply(accepted(2, 1, 2, 5))
    return bank


def test_the_drift_appears_with_the_posting_that_wrote_over_another(lossy_bank: Database) -> None:
    history = read_history(lossy_bank)
    assert (history.drift[0], history.drift[-1]) == (0, audit(lossy_bank).drift) == (0, -10)
    assert (history.applied[-1], history.clobbers[-1]) == (2, 1)
    assert history.instances == {"b1": 2}
    assert history.seconds == sorted(history.seconds)


def test_a_longer_run_is_thinned_out_and_still_ends_exactly(
    branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one = branch("row-lock")
    for number in range(1, SAMPLES + 30):
        one.apply(accepted(number, 1, 2, 1) if number % 2 else accepted(number, 2, 1, 1))
    history = read_history(bank)
    assert len(history.seconds) <= SAMPLES
    assert (history.applied[-1], history.clobbers[-1], set(history.drift)) == (SAMPLES + 29, 0, {0})


def test_the_scene_begins_with_the_lost_posting_and_its_culprit(lossy_bank: Database) -> None:
    lost, culprit = read_scene(lossy_bank, audit(lossy_bank))[:2]
    assert (lost.account, lost.before, lost.after) == (2, 100, 110)
    assert (culprit.account, culprit.before, culprit.after) == (2, 100, 105)


def test_a_bank_without_transfers_has_no_history_and_no_scene(bank: Database) -> None:
    assert read_history(bank).seconds == []
    assert read_scene(bank, audit(bank)) == []
