"""The bijection between generated values."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from bankrun.trials.judging.matching import Fact, match

PIECES = [f"id{number}" for number in range(8)]
facts = st.lists(
    st.builds(
        Fact,
        st.sampled_from(["orders", "items", "log"]),
        st.lists(st.sampled_from(PIECES), min_size=0, max_size=3).map(tuple),
    ),
    max_size=12,
)


def renamed(some: Sequence[Fact], names: dict[str, str]) -> list[Fact]:
    return [Fact(fact.shape, tuple(names[piece] for piece in fact.pieces)) for fact in some]


def shaped(some: Sequence[Fact]) -> list[Fact]:
    return [Fact((fact.shape, len(fact.pieces)), fact.pieces) for fact in some]


@given(facts, st.randoms())
def test_permuted_ids_are_equal(some: list[Fact], chance: random.Random) -> None:
    others = [f"other{number}" for number in range(len(PIECES))]
    chance.shuffle(others)
    theirs = renamed(some, dict(zip(PIECES, others, strict=True)))
    chance.shuffle(theirs)
    found = match(shaped(some), shaped(theirs))
    assert found is not None
    assert sorted(renamed(some, dict(found))) == sorted(theirs)


@given(facts, facts)
def test_a_match_is_a_bijection_that_makes_one_the_other(some: list[Fact], others: list[Fact]) -> None:
    found = match(shaped(some), shaped(others))
    if found is not None:
        assert len(set(found.values())) == len(found)
        assert sorted(renamed(some, dict(found))) == sorted(others)


@given(facts, st.data())
def test_two_ids_that_become_one_are_not_equal(some: list[Fact], data: st.DataObject) -> None:
    used = sorted({piece for fact in some for piece in fact.pieces})
    if len(used) < 2:
        return
    one, other = data.draw(st.permutations(used))[:2]
    merged = renamed(some, {piece: one if piece == other else piece for piece in used})
    assert match(shaped(some), shaped(merged)) is None


def test_swapped_references_are_not_equal() -> None:
    ours = [Fact("ann", ("1",)), Fact("bob", ("2",)), Fact("ann's post", ("1",))]
    theirs = [Fact("ann", ("1",)), Fact("bob", ("2",)), Fact("ann's post", ("2",))]
    assert match(ours, theirs) is None
    assert match(ours, ours) == {"1": "1", "2": "2"}


def test_many_that_are_alike_are_matched_at_once() -> None:
    def ring(size: int, prefix: str) -> list[Fact]:
        return [Fact("edge", (f"{prefix}{number}", f"{prefix}{(number + 1) % size}")) for number in range(size)]

    assert match(ring(60, "a"), ring(60, "b")) is not None
    assert match(ring(6, "a"), ring(3, "b") + ring(3, "c")) is None
