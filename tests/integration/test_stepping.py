"""An interleaving by hand: each choice runs what the proof runs, and what is chosen decides."""

from __future__ import annotations

import sys

import pytest

from bank.errors import CannotStart
from bankrun.proof.prover import Prover
from bankrun.proof.stepper import Position, step


def test_an_interleaving_is_gone_through_step_by_step_to_its_verdict(prover: Prover) -> None:
    position = Position.parse("none/two/same-pair")
    seen = [step(prover, position)]
    for who in "AAAAABBABBBB":
        assert who in seen[-1].able
        seen.append(step(prover, seen[-1].position.then(who)))
    assert [len(one.rows) for one in seen] == list(range(13))
    assert all(one.passed is None for one in seen[:-1])
    assert (seen[-1].passed, seen[-1].able) == (False, {})
    assert any("lost posting" in line for line in seen[-1].outcome)


def test_where_one_waits_for_the_other_only_the_other_can_go(prover: Prover) -> None:
    found = step(prover, Position.parse("row-lock/two/same-pair/AABB"))
    assert set(found.able) == {"A"}
    assert found.rows[-1][1][-1] == "waits for A"  # and nothing that it would read if A were rolled back
    went_on = step(prover, found.position.then("A").then("A"))
    assert went_on.rows[-1] == ("B", ("goes on", "→ 101, 90, 1, 0, now; 102, 110, 2, 0, now"))


def test_a_guard_that_is_taken_is_said_and_nothing_happens(prover: Prover) -> None:
    found = step(prover, Position.parse("thread-lock/same/same-pair/AB"))
    assert found.position.choices == "A"
    assert found.note == "B could not go on: its guard is taken"
    assert "A" in found.able


@pytest.mark.parametrize(
    "text", ["none", "none/two", "none/two/nowhere", "nobody/two/same-pair", "none/two/same-pair/X",
             "none/two/same-pair/AAAAAAAAAAAAAAAAA", "none/two/paused-holder", "single-writer/two/same-pair"]
)  # fmt: skip
def test_what_is_no_interleaving_ends_in_a_sentence(prover: Prover, text: str) -> None:
    with pytest.raises(CannotStart):
        step(prover, Position.parse(text))


def test_an_address_from_anywhere_imports_nothing(prover: Prover) -> None:
    sys.modules.pop("this", None)
    with pytest.raises(CannotStart, match="not one of the strategies of this page"):
        step(prover, Position.parse("this:x/two/same-pair/A"))
    assert "this" not in sys.modules


def test_a_step_back_is_one_choice_fewer_and_an_id_says_where_one_is() -> None:
    position = Position.parse("none/two/drain/AAB")
    assert str(position.back()) == "none/two/drain/AA"
    assert Position.parse(str(position.then("B"))) == position.then("B")
