"""In one sentence, how an outcome differs from all serial orders: ``stock.left is 9; either serial order gives 8``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bankrun.trials.judging.outcomes import Outcome, Place, Row, show
from bankrun.trials.judging.values import SLOT
from bankrun.trials.judging.yardstick import Order, Yardstick

CELLS_MAX = 4
Keys = Mapping[str, Sequence[str]]
"""Table → the columns of its primary key."""


def describe(stick: Yardstick, found: Outcome, serial: Mapping[Order, Outcome], keys: Keys) -> str:
    """Return how ``found`` differs from every serial order; the smallest difference first."""
    orders = sorted(serial, key=lambda order: _distance(stick, found, serial[order]))
    nearest = serial[orders[0]]
    for table in found.tables:
        sentence = _row_counts(found, serial, table)
        if sentence:
            return sentence
    for table in found.tables:
        sentence = _cells_together(stick, found, serial, table, keys.get(table, ()))
        if sentence:
            return sentence
    for table in found.tables:
        sentence = _cell(stick, found, serial, nearest, table, keys.get(table, ()))
        if sentence:
            return sentence
    return _endings(stick, found, serial) or _references(stick, found, nearest)


def _distance(stick: Yardstick, left: Outcome, right: Outcome) -> int:
    ours, theirs = (Counter(fact.shape for fact in stick.facts(one)) for one in (left, right))
    return (ours - theirs).total() + (theirs - ours).total()


def _say(values: Sequence[str]) -> str:
    """Return what the serial orders give, once if they agree."""
    different = list(dict.fromkeys(values))
    if len(different) == 1:
        return f"{'either' if len(values) == 2 else 'every'} serial order gives {different[0]}"
    return f"the serial orders give {', '.join(different[:-1])} and {different[-1]}"


def _row_counts(found: Outcome, serial: Mapping[Order, Outcome], table: str) -> str:
    count = len(found.tables[table])
    counts = [len(one.tables.get(table, ())) for one in serial.values()]
    if count in counts:
        return ""
    rows = "row" if count == 1 else "rows"
    return f"{table} has {count:,} {rows}; {_say([f'{one:,}' for one in counts])}"


def _cell(
    stick: Yardstick, found: Outcome, serial: Mapping[Order, Outcome], nearest: Outcome, table: str, key: Sequence[str]
) -> str:
    """Return the first cell that differs from the nearest order, and what the others have there."""
    ours, theirs = _left_over(stick, table, found.tables[table], nearest.tables.get(table, ()))
    for row in ours:
        partner = _partner(stick, table, row, theirs, key)
        if partner is None:
            continue
        for column in _differing_columns(stick, table, row, partner):
            others = [
                other
                for outcome in serial.values()
                if (other := _partner(stick, table, row, outcome.tables.get(table, ()), key)) is not None
            ]
            values = [show(other.get(column)) for other in others]
            if len(values) < len(serial) or show(row.get(column)) in values:
                values = [show(partner.get(column))] * len(serial) if len(serial) < 2 else values
            if show(row.get(column)) in values:
                continue
            where = f"{table}.{column}"
            if len(found.tables[table]) > 1:
                names = [name for name in key if name in row and name != column] or []
                said = ", ".join(f"{name} {show(row[name])}" for name in names)
                where += f" of {said}" if said else ""
            return f"{where} is {show(row.get(column))}; {_say(values)}"
    if ours or theirs:
        return _whole_rows(stick, table, ours, theirs)
    return ""


def _cells_together(
    stick: Yardstick, found: Outcome, serial: Mapping[Order, Outcome], table: str, key: Sequence[str]
) -> str:
    """Each cell is one of some serial order's, and together they are none's: say all that the orders differ in."""
    outcomes = [found, *serial.values()]
    cells: dict[tuple[str, str], list[str]] = {}
    for row in found.tables[table]:
        partners = [_partner(stick, table, row, one.tables.get(table, ()), key) for one in outcomes]
        if not key or any(partner is None for partner in partners):
            return ""
        of = ", ".join(f"{name} {show(row[name])}" for name in key)
        for column in row:
            place = Place("row", table, column)
            if place in stick.ignored or any(stick.cut(place, one.get(column))[1] for one in partners if one):
                continue
            values = [show(one.get(column)) for one in partners if one]
            if len(set(values)) > 1:
                cells[of, column] = values
    if not 1 < len(cells) <= CELLS_MAX or any(values[0] not in values[1:] for values in cells.values()):
        return ""
    if tuple(values[0] for values in cells.values()) in set(
        zip(*(values[1:] for values in cells.values()), strict=True)
    ):
        return ""
    said = [f"{table}.{column} of {of} is {values[0]}" for (of, column), values in cells.items()]
    orders = [" and ".join(together) for together in zip(*(values[1:] for values in cells.values()), strict=True)]
    return f"{' and '.join(said)}; the serial orders give {', or '.join(dict.fromkeys(orders))}"


def _whole_rows(stick: Yardstick, table: str, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    if ours:
        return f"{table} has {_row_text(stick, table, ours[0])}, which is another row in every serial order"
    return f"{table} lacks {_row_text(stick, table, theirs[0])}, which the nearest serial order has"


def _row_text(stick: Yardstick, table: str, row: Row) -> str:
    shown = [
        f"{column} {show(value, 20)}"
        for column, value in row.items()
        if Place("row", table, column) not in stick.ignored and not stick.cut(Place("row", table, column), value)[1]
    ]
    return "(" + ", ".join(shown[:6]) + ")"


def _left_over(stick: Yardstick, table: str, left: Sequence[Row], right: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of either side that the other lacks; generated values count as equal."""

    def rest(rows: Sequence[Row], others: Sequence[Row]) -> Iterator[Row]:
        known = Counter(stick.row_fact(table, row).shape for row in others)
        for row in rows:
            shape = stick.row_fact(table, row).shape
            if known[shape]:
                known[shape] -= 1
            else:
                yield row

    return list(rest(left, right)), list(rest(right, left))


def _partner(stick: Yardstick, table: str, row: Row, others: Sequence[Row], key: Sequence[str]) -> Row | None:
    """Return the row that is most like this one: the same primary key, if that is no generated one."""
    constant = [name for name in key if name in row and not stick.cut(Place("row", table, name), row[name])[1]]
    if key and len(constant) == len(key):
        return next((one for one in others if all(one.get(name) == row[name] for name in key)), None)
    return min(others, key=lambda one: len(_differing_columns(stick, table, row, one)), default=None)


def _differing_columns(stick: Yardstick, table: str, row: Row, other: Row) -> list[str]:
    places = [(column, Place("row", table, column)) for column in row]
    return [
        column
        for column, place in places
        if place not in stick.ignored and stick.cut(place, row[column])[0] != stick.cut(place, other.get(column))[0]
    ]


def _endings(stick: Yardstick, found: Outcome, serial: Mapping[Order, Outcome]) -> str:
    def of(outcome: Outcome, name: str) -> Any:
        return stick.ending_fact(name, outcome.endings[name]).shape

    names = list(found.endings)
    for name in names:
        if all(of(found, name) != of(one, name) for one in serial.values()):
            said = list(dict.fromkeys(one.endings[name].describe() for one in serial.values()))
            return f"{name} {found.endings[name].describe()}; serially it {' or '.join(said)}"
    if all(any(of(found, name) != of(one, name) for name in names) for one in serial.values()):
        together = " and ".join(f"{name} {found.endings[name].describe()}" for name in names)
        said = list(
            dict.fromkeys(
                " and ".join(f"{name} {one.endings[name].describe()}" for name in names) for one in serial.values()
            )
        )
        return f"{together}; serially {', or '.join(said)}"
    return ""


def _references(stick: Yardstick, found: Outcome, nearest: Outcome) -> str:
    """All is equal but which generated value stands where."""
    for table, rows in found.tables.items():
        for row in rows:
            fact = stick.row_fact(table, row)
            if len(fact.pieces) > 1 and fact in [stick.row_fact(table, one) for one in nearest.tables.get(table, ())]:
                continue
            if fact.pieces and SLOT in repr(fact.shape):
                columns = [c for c, v in row.items() if stick.cut(Place("row", table, c), v)[1]]
                return f"{table}.{columns[-1]} does not refer to what it refers to in any serial order"
    return "each row and each result is one of a serial order's, and all together are none's"
