"""What is seen of a run while it goes on: the total, who applied how much, and what was just written over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bank.orders import Order
from bank.postgres.database import Database
from bankrun.runs import film as film_module
from bankrun.runs.film import shoot
from bankrun.runs.sampling import LOOK_SECONDS, Watch
from tests.integration.conftest import BranchMaker

Accepted = Callable[..., Order]


@pytest.fixture(autouse=True)
def _as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a film be as long as this machine needs for a few transfers."""
    monkeypatch.setattr(film_module, "SPAN_MS_MAX", 60_000.0)


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
    assert seen.sentence.startswith("Account 2: b1, thread ")
    assert seen.sentence.endswith(" is gone.")


def test_looking_is_given_a_small_share_of_the_time(watch: Watch) -> None:
    assert not watch.look()
    assert watch._next >= watch._looked + LOOK_SECONDS


def test_samples_are_thinned_out_and_keep_the_first_and_the_last(watch: Watch) -> None:
    watch.view.samples[:] = [(float(second), second) for second in range(400)]
    look_again(watch)
    assert len(watch.view.samples) < 250
    assert watch.view.samples[0] == (0.0, 0)
    assert watch.view.samples[-1][1] == 0


def test_a_film_has_each_transfer_and_what_was_written_over_by_whom(
    watch: Watch, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one = branch("none")
    one.apply(accepted(1, 1, 2, 10))
    with bank.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE accounts SET balance = 100, last_entry = NULL WHERE id = 2")
    one.apply(accepted(2, 1, 2, 5))
    one.apply(accepted(3, 3, 1, 7))
    look_again(watch)
    assert watch.view.film is None  # nobody looks
    for telling in (False, True):
        with bank.transaction() as transaction:
            film = shoot(transaction, "none", "1x1", ["b1"], 1, telling=telling)
        assert film is not None
        assert [(move.box, move.thread) for move in film.moves] == [(0, 0)] * 3
        assert [[leg.over for leg in move.legs] for move in film.moves] == [[None, 1], [None, None], [None, None]]
        assert [[(leg.account, leg.before, leg.delta) for leg in move.legs] for move in film.moves] == [
            [(1, 100, -10), (2, 100, 10)],
            [(1, 90, -5), (2, 100, 5)],
            [(3, 100, -7), (1, 85, 7)],
        ]
        for move in film.moves:
            for leg in move.legs:
                assert move.claimed <= leg.read <= leg.written <= move.committed <= film.span_ms


@pytest.mark.parametrize("damage", ["read_at = 'infinity'", "read_at = '0044-03-15 BC'", "written_at = 'infinity'"])
def test_a_film_leaves_out_what_was_read_at_no_time_that_can_be(
    branch: BranchMaker, bank: Database, accepted: Accepted, damage: str
) -> None:
    one = branch("none")
    one.apply(accepted(1, 1, 2, 10))
    one.apply(accepted(2, 1, 2, 5))
    with bank.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE entries SET {damage} WHERE id = 3")
    for telling in (False, True):
        with bank.transaction() as transaction:
            film = shoot(transaction, "none", "1x1", ["b1"], 1, telling=telling)
        assert film is not None
        assert [len(move.legs) for move in film.moves] == [2, 2 if damage.startswith("written") else 1]


def test_there_is_a_film_only_while_somebody_looks(bank: Database, branch: BranchMaker, accepted: Accepted) -> None:
    watch = Watch(bank, "none", "1x1", accounts=3, opening=100, boxes=["b1"], is_watched=lambda: True)
    watch.look()
    assert watch.view.film is None  # there is nothing to see yet
    branch("none").apply(accepted(1, 1, 2, 10))
    watch._film_next = 0.0
    look_again(watch)
    assert watch.view.film is not None
    seen = watch.view.copy()
    look_again(watch)
    assert (len(seen.samples), len(watch.view.samples)) == (2, 3)
