"""Looks at a run while it goes on: the total, who applied how much, and the postings that were just written over.

Looking must not become the load. Each look is timed, and the next one waits until looking has had its small share of
the time. Most of a look's time it waits for a processor, which the transfers have: its own work is a fraction of it.
What it finds is for the eye; the verdict comes from the audit, when the run is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import LiteralString

from bank.audit import PostingTold, tell
from bank.postgres.database import Database, Transaction
from bankrun.results.timeline import find_scene
from bankrun.results.topology import Topology
from bankrun.runs.film import Film, shoot

LOOK_SECONDS = 0.25
SHARE = 0.05
FILM_SECONDS = 2.0
MOVES_MIN = 24
SAMPLES_MAX = 400
OVERWRITTEN_MAX = 40
OVERWRITTEN_PER_LOOK = 2
ACCOUNTS_MAX = 200

DRIFT: LiteralString = "SELECT coalesce(sum(balance) - sum(opening), 0) FROM accounts"
APPLIED: LiteralString = """
    SELECT coalesce(instance, ''), count(*) FROM transfers WHERE status = 'applied' GROUP BY 1 ORDER BY 1
"""
# Within an account seq is the order of the commits, so nothing before the last one seen can appear later.
FRESH: LiteralString = """
    SELECT seen.account, max(fresh.seq), array_agg(ARRAY[fresh.before, fresh.id] ORDER BY fresh.seq)
           FILTER (WHERE fresh.seq > seen.seq AND fresh.before IS NOT NULL
                   AND fresh.previous_entry IS DISTINCT FROM fresh.before)
    FROM unnest(%(accounts)s::int[], %(seqs)s::bigint[]) AS seen (account, seq) CROSS JOIN LATERAL (
        SELECT id, seq, previous_entry, lag(id) OVER (ORDER BY seq) AS before
        FROM entries WHERE account_id = seen.account AND seq >= seen.seq
    ) AS fresh GROUP BY seen.account
"""

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Overwritten:
    """A posting that was written over, with its scene: the overwritten one first, then the one that did it.

    ``number`` is its own in this process: no two are confused, of whatever runs.
    """

    number: int
    seconds: float
    scene: list[PostingTold]

    @property
    def sentence(self) -> str:
        """Return who wrote over what."""
        lost, culprit = self.scene[:2]
        return (
            f"Account {lost.account}: {_who(culprit)} read {culprit.before:,} and wrote {culprit.after:,}. "
            f"The {lost.delta:+,} of {_who(lost)} is gone."
        )


def _who(posting: PostingTold) -> str:
    return f"{posting.instance}, thread {str(posting.thread).rpartition('_')[2]},"


@dataclass(slots=True)
class View:
    """What has been seen of one run. ``samples`` are (seconds since the first look, drift), ``opening`` the total.

    ``film`` shows some of its newest transfers, if somebody watches.
    """

    strategy: str
    topology: str
    opening: int
    samples: list[tuple[float, int]] = field(default_factory=list)
    applied: dict[str, int] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=dict)
    overwritten: list[Overwritten] = field(default_factory=list)
    overwritten_count: int = 0
    look_seconds: float = 0.0
    film: Film | None = None

    def copy(self) -> View:
        """Return what has been seen until now, for another thread: later looks do not change it."""
        kept = {"samples": [*self.samples], "applied": {**self.applied}, "rate": {**self.rate}}
        return replace(self, overwritten=[*self.overwritten], **kept)  # type: ignore[arg-type]


class Watch:
    """Looks at one run, as often as its share of the time allows.

    ``is_watched`` says whether anybody wants a film of the run; ``boxes`` are the names of its instances.
    """

    def __init__(
        self,
        database: Database,
        strategy: str,
        topology: str,
        *,
        accounts: int,
        opening: int,
        boxes: Sequence[str] = (),
        is_watched: Callable[[], bool] = lambda: False,
    ) -> None:
        self.view = View(strategy, topology, accounts * opening)
        self._boxes = boxes
        self._is_watched = is_watched
        self._film_next = 0.0
        self._database = database
        self._seqs = dict.fromkeys(range(1, accounts + 1), 0) if accounts <= ACCOUNTS_MAX else {}
        self._begun = self._looked = self._next = 0.0

    def look(self) -> bool:
        """Look if it is time; return whether it was."""
        began = time.monotonic()
        if began < self._next:
            return False
        if not self._begun:
            self._begun = self._looked = began
        with self._database.transaction() as transaction:
            self._sample(transaction, began)
            if self._seqs:
                self._find_overwritten(transaction, began - self._begun)
            if began >= self._film_next and self._is_watched():
                threads = Topology.parse(self.view.topology).threads
                film = shoot(transaction, self.view.strategy, self.view.topology, self._boxes, threads)
                self.view.film = film or self.view.film
                # One of the very beginning shows little: the next look makes another.
                self._film_next = began + (FILM_SECONDS if film and len(film.moves) >= MOVES_MIN else 0.0)
        cost = time.monotonic() - began
        self.view.look_seconds += cost
        self._next = began + max(LOOK_SECONDS, cost / SHARE)
        return True

    def _sample(self, transaction: Transaction, now: float) -> None:
        view = self.view
        row = transaction.execute(DRIFT).fetchone()
        view.samples.append((round(now - self._begun, 2), 0 if row is None else int(row[0])))
        if len(view.samples) > SAMPLES_MAX:
            del view.samples[1:-1:2]
        applied = dict(transaction.execute(APPLIED).fetchall())
        elapsed = max(LOOK_SECONDS, now - self._looked)
        view.rate = {name: (count - view.applied.get(name, 0)) / elapsed for name, count in applied.items()}
        view.applied = applied
        self._looked = now

    def _find_overwritten(self, transaction: Transaction, seconds: float) -> None:
        asked = {"accounts": list(self._seqs), "seqs": list(self._seqs.values())}
        fresh: list[tuple[int, int]] = []
        for account, seq, pairs in transaction.execute(FRESH, asked).fetchall():
            self._seqs[account] = seq
            fresh.extend((before, entry) for before, entry in pairs or ())
        self.view.overwritten_count += len(fresh)
        fresh.sort(key=lambda pair: pair[1])  # the newest of all accounts, by when their transfer was claimed
        for lost, culprit in fresh[-OVERWRITTEN_PER_LOOK:]:
            told: dict[int, PostingTold] = {one.entry: one for one in tell(transaction, [lost, culprit])}
            if len(told) == 2:
                found = find_scene(transaction, told[lost], told[culprit])
                self.view.overwritten.append(Overwritten(next(_numbers), round(seconds, 2), found))
        del self.view.overwritten[:-OVERWRITTEN_MAX]
