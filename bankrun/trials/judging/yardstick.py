"""What outcomes are compared by: learned from serial orders, each of which was run twice.

The second time sequences had moved on, and a second had passed. So what differs between the two was generated, or is
never the same: generated values are matched one to one, and what differs even then is not compared, and named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bankrun.trials.judging.matching import Fact, match
from bankrun.trials.judging.outcomes import Ending, Outcome, Place, Row, ending_values
from bankrun.trials.judging.values import Cutter, Windows, find_pieces, is_coarse

Order = tuple[str, ...]
"""Participants, one after the other."""
ROW_COUNT = "count"


@dataclass(frozen=True, slots=True)
class Yardstick:
    """How outcomes are compared."""

    windows: Windows = field(default_factory=Windows)
    constants: frozenset[str] = frozenset()
    generated: frozenset[Place] = frozenset()
    ignored: frozenset[Place] = frozenset()
    """What is not compared: as the user wished, or since it is never the same."""

    def equal(self, left: Outcome, right: Outcome) -> bool:
        """Whether two outcomes are the same up to generated values. Raises TooAlike."""
        return match(self.facts(left), self.facts(right)) is not None

    def equal_rows(self, left: Outcome, right: Outcome) -> bool:
        """Whether the same is in the database, however the programs ended. Raises TooAlike."""
        return match(self.row_facts(left), self.row_facts(right)) is not None

    def facts(self, outcome: Outcome) -> list[Fact]:
        """Return the rows and the endings, with generated pieces taken out."""
        return self.row_facts(outcome) + [self.ending_fact(name, one) for name, one in outcome.endings.items()]

    def row_facts(self, outcome: Outcome) -> list[Fact]:
        """Return the rows, with generated pieces taken out."""
        return [self.row_fact(table, row) for table, rows in outcome.tables.items() for row in rows]

    def row_fact(self, table: str, row: Row) -> Fact:
        """Return one row."""
        return self._fact(table, [(Place("row", table, column), value) for column, value in row.items()])

    def ending_fact(self, name: str, ending: Ending) -> Fact:
        """Return how one program ended."""
        known = (name, ending.error, ending.sqlstate if ending.failed else None)
        return self._fact(known, list(ending_values(name, ending)))

    def cut(self, place: Place, value: Any) -> tuple[Any, tuple[str, ...]]:
        """Return what of a value is compared as it is, and its generated pieces."""
        cutter = Cutter(self.windows, self.constants) if place in self.generated else _WHOLE
        pattern = cutter.cut(value)
        return pattern.shape, pattern.pieces

    def _fact(self, of: Any, values: Sequence[tuple[Place, Any]]) -> Fact:
        shapes: list[Any] = [of]
        pieces: list[str] = []
        for place, value in values:
            if place not in self.ignored:
                shape, generated = self.cut(place, value)
                shapes.append((place.what, place.column, shape))
                pieces += generated
        return Fact(tuple(shapes), tuple(pieces))


class _Nothing:
    """A collection that has everything: nothing is generated."""

    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


_WHOLE = Cutter(constants=_Nothing())


class NotTheSame(Exception):
    """One serial order does not end the same way twice, even without all that was generated."""


def learn(
    pairs: Mapping[Order, tuple[Outcome, Outcome]], before: Outcome, windows: Windows, ignored: Collection[Place] = ()
) -> Yardstick:
    """Return how to compare outcomes. ``pairs`` has the two runs of each order, ``before`` the database before them.

    Raises NotTheSame, with a sentence, if two runs differ in what is not generated.
    """
    by_user = frozenset(ignored)
    constants = set(_pieces(before, windows))
    for first, second in pairs.values():
        constants |= set(_pieces(first, windows)) & set(_pieces(second, windows))
    differing = {place for pair in pairs.values() for place in _differing(*pair)}
    stick = Yardstick(windows, frozenset(constants), frozenset(differing), by_user | _coarse(pairs, differing))
    for order, (first, second) in pairs.items():
        stick = _ignore_until_equal(stick, order, first, second)
    return stick


def learned(stick: Yardstick, by_user: Collection[Place] = ()) -> list[Place]:
    """Return what is not compared although the user did not say so, in order."""
    return sorted(stick.ignored - frozenset(by_user))


def _pieces(outcome: Outcome, windows: Windows) -> set[str]:
    return {piece for _, value in outcome.values() for piece in find_pieces(value, windows)}


def _differing(first: Outcome, second: Outcome) -> set[Place]:
    """Return where values differ; a column is taken as a whole, since which row is which is not known."""
    left, right = _by_place(first), _by_place(second)
    return {place for place in {*left, *right} if left.get(place) != right.get(place)}


def _by_place(outcome: Outcome, cut: Callable[[Place, Any], Any] | None = None) -> dict[Place, Counter[Any]]:
    cut = cut or (lambda _, value: _WHOLE.cut(value).shape)
    values: defaultdict[Place, Counter[Any]] = defaultdict(Counter)
    for place, value in outcome.values():
        values[place][cut(place, value)] += 1
    return dict(values)


def _coarse(pairs: Mapping[Order, tuple[Outcome, Outcome]], differing: Collection[Place]) -> frozenset[Place]:
    """Return where times are so coarse that two of them may be equal by chance."""
    seen: defaultdict[Place, set[bool | None]] = defaultdict(set)
    for pair in pairs.values():
        for outcome in pair:
            for place, value in outcome.values():
                if place in differing:
                    seen[place].add(is_coarse(value))
    return frozenset(place for place, kinds in seen.items() if True in kinds and False not in kinds)


def _ignore_until_equal(stick: Yardstick, order: Order, first: Outcome, second: Outcome) -> Yardstick:
    """Return the yardstick, without what differs between two runs of one order even when generated values match."""
    left, right = (_by_place(outcome, lambda place, value: stick.cut(place, value)[0]) for outcome in (first, second))
    shapes_differ = {place for place in stick.generated if left.get(place) != right.get(place)}
    tries: list[frozenset[Place]] = [frozenset(), frozenset(shapes_differ)]
    tries += [frozenset({*shapes_differ, place}) for place in sorted(stick.generated)]
    tries.append(stick.generated)
    for more in tries:
        wider = Yardstick(stick.windows, stick.constants, stick.generated, stick.ignored | more)
        if wider.equal(first, second):
            return wider
    counts = [
        f"{table} has {len(rows)} rows, then {len(second.tables.get(table, ()))}"
        for table, rows in first.tables.items()
        if len(rows) != len(second.tables.get(table, ()))
    ]
    what = counts[0] if counts else _changed_ending(first, second)
    raise NotTheSame(f"{' then '.join(order)}, one after the other, does not end the same way twice: {what}")


def _changed_ending(first: Outcome, second: Outcome) -> str:
    for name, ending in first.endings.items():
        other = second.endings[name]
        if (ending.error, ending.sqlstate) != (other.error, other.sqlstate):
            return f"{name} {ending.describe()}, then it {other.describe()}"
    return "rows differ"
