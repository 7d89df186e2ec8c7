"""What is seen of a run while it goes on: the total, who applied how much, and what was just written over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bank.orders import Order
from bank.postgres.database import Database
from bankrun.runs.sampling import LOOK_SECONDS, Watch
from tests.integration.conftest import BranchMaker

Accepted = Callable[..., Order]


@pytest.fixture
def watch(bank: Database) -> Watch:
    """A watch over a bank of three accounts that has just been opened."""
    watch = Watch(bank, "none", "1x1", accounts=3, opening=100)
    assert watch.look()
    return watch


def look_again(watch: Watch) -> None:
    """Look at once, without the pause that a run is given."""
    watch._next = 0.0
    assert watch.look()


def test_each_posting_that_is_written_over_is_seen_once(
    watch: Watch, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one = branch("none")
    one.apply(accepted(1, 1, 2, 10))
    look_again(watch)
    assert (watch.view.overwritten_count, watch.view.samples[-1][1]) == (0, 0)
    with bank.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE accounts SET balance = 100, last_entry = NULL WHERE id = 2")
    one.apply(accepted(2, 1, 2, 5))
    for _ in range(2):
        look_again(watch)
    (seen,) = watch.view.overwritten
    assert (watch.view.overwritten_count, watch.view.samples[-1][1], watch.view.applied) == (1, -10, {"b1": 2})
    assert [posting.after for posting in seen.scene[:2]] == [110, 105]
    assert seen.sentence.startswith("account 2: b1 (thread ")


def test_looking_is_given_a_small_share_of_the_time(watch: Watch) -> None:
    assert not watch.look()
    assert watch._next >= watch._looked + LOOK_SECONDS


def test_samples_are_thinned_out_and_keep_the_first_and_the_last(watch: Watch) -> None:
    watch.view.samples[:] = [(float(second), second) for second in range(400)]
    look_again(watch)
    assert len(watch.view.samples) < 250
    assert watch.view.samples[0] == (0.0, 0)
    assert watch.view.samples[-1][1] == 0
