"""Whether two outcomes are equal up to generated values: one bijection between those of the one and of the other.

A fact is a row, or an ending, with its generated pieces taken out. The pieces of both sides are coloured alike by what
they stand in, until the colours tell nothing more; what is still alike is tried, one against each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

TRIES_MAX = 20_000


class Fact(NamedTuple):
    """What is compared as one: its shape, and its generated pieces in order."""

    shape: Hashable
    pieces: tuple[str, ...] = ()


class TooAlike(Exception):
    """So many pieces are alike that it was not found out whether there is a bijection."""


def match(left: Sequence[Fact], right: Sequence[Fact]) -> Mapping[str, str] | None:
    """Return the bijection that makes the left facts the right ones, or None if there is none. Raises TooAlike."""
    if Counter(fact.shape for fact in left) != Counter(fact.shape for fact in right):
        return None
    search = _Search(_with_pieces(left), _with_pieces(right))
    return search.solve({}, {})


def _with_pieces(facts: Sequence[Fact]) -> list[Fact]:
    return [fact for fact in facts if fact.pieces]


@dataclass(slots=True)
class _Search:
    left: list[Fact]
    right: list[Fact]
    tries: int = 0

    def solve(self, pinned_left: dict[str, int], pinned_right: dict[str, int]) -> dict[str, str] | None:
        """Return a bijection that keeps what is pinned; equal numbers are pinned to each other."""
        self.tries += 1
        if self.tries > TRIES_MAX:
            raise TooAlike(f"more than {TRIES_MAX:,} ways to match generated values were tried")
        left, right = _colour(self.left, pinned_left), _colour(self.right, pinned_right)
        classes_left, classes_right = _classes(left), _classes(right)
        if {colour: len(some) for colour, some in classes_left.items()} != {
            colour: len(some) for colour, some in classes_right.items()
        }:
            return None
        alike = [colour for colour, some in classes_left.items() if len(some) > 1]
        if not alike:
            found = {some[0]: classes_right[colour][0] for colour, some in classes_left.items()}
            return found if self._holds(found) else None
        colour = min(alike, key=lambda one: (len(classes_left[one]), one))
        pin, number = classes_left[colour][0], len(pinned_left) + 1
        for candidate in classes_right[colour]:
            found_below = self.solve({**pinned_left, pin: number}, {**pinned_right, candidate: number})
            if found_below is not None:
                return found_below
        return None

    def _holds(self, found: Mapping[str, str]) -> bool:
        renamed = Counter((fact.shape, tuple(found[piece] for piece in fact.pieces)) for fact in self.left)
        return renamed == Counter((fact.shape, fact.pieces) for fact in self.right)


def _colour(facts: Sequence[Fact], pinned: Mapping[str, int]) -> dict[str, int]:
    """Return a colour for each piece; pieces that differ in what they stand in have different ones."""
    pieces = {piece for fact in facts for piece in fact.pieces}
    colours: dict[str, int] = {piece: hash(("pinned", pinned.get(piece, 0))) for piece in pieces}
    count = len(set(colours.values()))
    while True:
        seen: defaultdict[str, list[int]] = defaultdict(list)
        for fact in facts:
            whole = hash((fact.shape, tuple(colours[piece] for piece in fact.pieces), _pattern(fact.pieces)))
            for number, piece in enumerate(fact.pieces):
                seen[piece].append(hash((whole, number)))
        colours = {piece: hash((colours[piece], tuple(sorted(seen[piece])))) for piece in pieces}
        if len(set(colours.values())) == count:
            return colours
        count = len(set(colours.values()))


def _pattern(pieces: Sequence[str]) -> tuple[int, ...]:
    """Return which of the pieces are equal to each other."""
    return tuple(pieces.index(piece) for piece in pieces)


def _classes(colours: Mapping[str, int]) -> dict[int, list[str]]:
    classes: defaultdict[int, list[str]] = defaultdict(list)
    for piece in sorted(colours):
        classes[colours[piece]].append(piece)
    return dict(classes)
