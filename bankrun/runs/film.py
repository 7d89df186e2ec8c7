"""A moment of a run, told from the bank's journal, transfer by transfer: what a picture needs to show it slowly.

The journal has, by Postgres' clock, when each transfer was claimed, and when its postings were read, written and
committed. So nothing is recorded for a film: a look at the journal finds it, while the run goes on or after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, LiteralString

from psycopg import sql

from bank.outcomes import TOLD_BEFORE, TOLD_FROM
from bank.postgres.database import Transaction

MOVES_MAX = 64
SPAN_MS_MAX = 90.0

# The entry physically before each one, found by the index on (account, seq): the same question that the audit asks.
MOVES: LiteralString = """
    SELECT t.id, coalesce(t.instance, ''), coalesce(t.thread, ''), t.decided_at, e.id, e.account_id, e.before, e.delta,
           e.read_at, CASE WHEN e.written_at >= {begin} AND e.written_at < {end} THEN e.written_at ELSE e.read_at END,
           {committed}, e.previous_entry,
           (SELECT b.id FROM entries b WHERE b.account_id = e.account_id AND b.seq < e.seq ORDER BY b.seq DESC LIMIT 1)
    FROM (SELECT xmin, * FROM entries WHERE id <= %(last)s ORDER BY id DESC LIMIT %(most)s) e
    JOIN transfers t ON t.id = e.transfer_id
    WHERE t.decided_at >= {begin} AND t.decided_at < {end} AND e.read_at >= {begin} AND e.read_at < {end}
        AND num_nulls(e.account_id, e.before, e.delta) = 0
    ORDER BY t.decided_at, t.id, e.id
"""
NEWEST: LiteralString = "SELECT max(id) FROM entries"
# The clobber in the middle of the run; where there is none, the middle itself. Some entries before it are the prelude.
TELLING: LiteralString = """
    WITH ordered AS (
        SELECT id, previous_entry, lag(id) OVER (PARTITION BY account_id ORDER BY seq) AS before FROM entries
    ), middle AS (SELECT (min(id) + max(id)) / 2 AS id FROM entries)
    SELECT ordered.id + %(most)s / 2 FROM ordered, middle
    ORDER BY (before IS NOT NULL AND previous_entry IS DISTINCT FROM before) DESC, abs(ordered.id - middle.id) LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Leg:
    """One posting of a move. Times in ms since the film's beginning.

    ``over`` is the number of the move that wrote over it, if the film has that one.
    """

    account: int
    read: float
    written: float
    before: int
    delta: int
    over: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One transfer: ``box`` and ``thread`` count from 0; ``claimed`` and ``committed`` in ms."""

    box: int
    thread: int
    claimed: float
    committed: float
    legs: list[Leg]


@dataclass(frozen=True, slots=True)
class Film:
    """Some milliseconds of one cell. ``boxes`` are the instances' names."""

    strategy: str
    topology: str
    boxes: list[str] = field(default_factory=list)
    threads: int = 0
    span_ms: float = 0.0
    moves: list[Move] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, short: a move is a list, its legs are lists in it."""
        moves = [
            [
                move.box,
                move.thread,
                move.claimed,
                move.committed,
                [[leg.account, leg.read, leg.written, leg.before, leg.delta, leg.over] for leg in move.legs],
            ]
            for move in self.moves
        ]
        return {
            "strategy": self.strategy,
            "topology": self.topology,
            "boxes": self.boxes,
            "threads": self.threads,
            "span_ms": self.span_ms,
            "moves": moves,
        }


def shoot(
    transaction: Transaction, strategy: str, topology: str, boxes: Sequence[str], threads: int, *, telling: bool = False
) -> Film | None:
    """Return a film of the newest transfers, or of a telling moment of a run that is over; None if there is nothing.

    A telling moment is one in which a posting is written over, if there is one. What has times that cannot be told is
    left out: a strategy from outside may write any.
    """
    most = 2 * MOVES_MAX
    asked = transaction.execute(TELLING, {"most": most}) if telling else transaction.execute(NEWEST)
    row = asked.fetchone()
    if row is None or row[0] is None:
        return None
    tracked = transaction.execute("SHOW track_commit_timestamp").fetchone() == ("on",)
    statement = sql.SQL(MOVES).format(
        committed=sql.SQL("pg_xact_commit_timestamp(e.xmin)" if tracked else "NULL::timestamptz"),
        begin=sql.Literal(TOLD_FROM),
        end=sql.Literal(TOLD_BEFORE),
    )
    rows = transaction.raw.execute(statement, {"last": row[0], "most": most}).fetchall()
    return _cut(rows, strategy, topology, boxes, threads, around=row[0] - most // 2 if telling else None)


def _cut(
    rows: Sequence[Sequence[Any]],
    strategy: str,
    topology: str,
    boxes: Sequence[str],
    threads: int,
    *,
    around: int | None,
) -> Film | None:
    """Make the film: so many milliseconds around one entry, or the last ones."""
    found = [list(legs) for _, legs in groupby(rows, key=itemgetter(0))]
    if not found:
        return None
    begin = _begin(found, around)
    shown = [legs for legs in found if 0 <= _ms(begin, legs[0][3]) <= SPAN_MS_MAX]
    # The entry that came next at its account without having read it.
    over = {leg[12]: number for number, legs in enumerate(shown) for leg in legs if leg[12] not in (None, leg[11])}
    named = list(dict.fromkeys([*boxes, *(legs[0][1] for legs in shown)]))
    slots = _number_threads(shown, threads)
    moves = [
        Move(
            named.index(legs[0][1]),
            slots[legs[0][1], legs[0][2]],
            _ms(begin, legs[0][3]),
            max(_ms(begin, leg[10] or leg[9]) for leg in legs),
            [
                Leg(
                    leg[5],
                    _ms(begin, leg[8]),
                    _ms(begin, leg[9]),
                    leg[6],
                    leg[7],
                    over.get(leg[4]),
                )
                for leg in legs
            ],
        )
        for legs in shown
    ]
    span = max((move.committed for move in moves), default=0.0)
    return Film(strategy, topology, named, threads, round(min(span, SPAN_MS_MAX), 2), moves)


def _begin(found: Sequence[Sequence[Sequence[Any]]], around: int | None) -> datetime:
    """Return when the film begins: a third of its length before that entry's claim, or as late as it can."""
    first, last = found[0][0][3], found[-1][0][3]
    if around is None:
        wanted = _ms(first, last) - SPAN_MS_MAX
    else:
        (middle, *_) = [leg[3] for legs in found for leg in legs if leg[4] >= around] or [last]
        wanted = _ms(first, middle) - SPAN_MS_MAX / 3
    moment: datetime = next((legs[0][3] for legs in found if _ms(first, legs[0][3]) >= wanted), first)
    return moment


def _number_threads(shown: Sequence[Sequence[Sequence[Any]]], threads: int) -> Mapping[tuple[str, str], int]:
    """Return a slot for each thread of each instance: a pool may have more threads than may work at a time."""
    pools: dict[str, set[str]] = {}
    for legs in shown:
        pools.setdefault(legs[0][1], set()).add(legs[0][2])
    return {
        (instance, name): number % max(1, threads)
        for instance, names in pools.items()
        for number, name in enumerate(sorted(names, key=lambda name: (len(name), name)))
    }


def _ms(begin: datetime, at: datetime) -> float:
    return round((at - begin).total_seconds() * 1000, 2)
