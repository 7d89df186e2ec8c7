"""What a step touched, and whether the order of two steps can matter.

The rule. A read under MVCC cannot see what is not committed, so it meets only others' commits; whatever a write or a
lock changes before its commit is seen by others only through a lock that conflicts. So a COMMIT carries all that its
transaction locked and wrote, and a read depends on nothing else (manual, 13.2 and 13.3; Godefroid 1996 for what
"dependent" has to guarantee). Each clause of the rule is a function of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

ALL = "*"
"""Every row of a relation, or every relation."""

ADVISORY = "advisory lock"
SEQUENCES = "sequences"
"""What advisory keys, and sequences, are things of."""

Thing = tuple[str, str]
"""A relation and one of its keys (or an identity of a row), or ALL for either."""

Place = tuple[str, int | None, int | None]
"""A relation, a page, a tuple: what SIREAD locks and writes are compared by."""

WEAK_MODES = frozenset({"AccessShareLock", "RowShareLock", "RowExclusiveLock"})
_ACCESS = "AccessExclusiveLock"
_STRONG = f"ExclusiveLock {_ACCESS}"
_SHARED = f"ShareLock ShareRowExclusiveLock {_STRONG}"
_MODES = (
    ("AccessShareLock", _ACCESS),
    ("RowShareLock", _STRONG),
    ("RowExclusiveLock", _SHARED),
    ("ShareUpdateExclusiveLock", f"ShareUpdateExclusiveLock {_SHARED}"),
    ("ShareLock", f"RowExclusiveLock ShareUpdateExclusiveLock ShareRowExclusiveLock {_STRONG}"),
    ("ShareRowExclusiveLock", f"RowExclusiveLock ShareUpdateExclusiveLock {_SHARED}"),
    ("ExclusiveLock", f"RowShareLock RowExclusiveLock ShareUpdateExclusiveLock {_SHARED}"),
    (_ACCESS, f"AccessShareLock RowShareLock RowExclusiveLock ShareUpdateExclusiveLock {_SHARED}"),
)
CONFLICTS: Mapping[str, frozenset[str]] = {mode: frozenset(others.split()) for mode, others in _MODES}
"""Which modes of table locks conflict (manual, table 13.2)."""


@dataclass(slots=True)
class Footprint:
    """What a step touched, as Postgres told."""

    locks: dict[Thing, bool] = field(default_factory=dict)
    """Rows, unique keys, advisory keys and announced resources; whether the lock is shared."""
    modes: set[tuple[str, str]] = field(default_factory=set)
    """Relations and the modes in which they were locked."""
    reads: set[Thing] = field(default_factory=set)
    shows: set[Thing] = field(default_factory=set)
    """What was committed: rows that others see from now on."""
    blocked: bool = False
    """Whether the step ended in a wait."""
    serializable: bool = False
    ends_serializable: bool = False
    predicates: set[Place] = field(default_factory=set)
    """SIREAD locks."""
    places: set[Place] = field(default_factory=set)
    """Where a serializable transaction wrote."""
    universal: str = ""
    """Why the step depends on every other, if it does."""
    harmless: bool = False
    """Whether the statement is known to touch nothing that depends on others."""
    commits: bool = False
    """Whether a transaction that had written was committed."""

    def lock(self, thing: Thing, *, shared: bool = False) -> None:
        """Add a lock; an exclusive one stays exclusive."""
        self.locks[thing] = shared and self.locks.get(thing, True)

    def lock_all(self, locks: Mapping[Thing, bool]) -> None:
        """Add locks."""
        for thing, shared in locks.items():
            self.lock(thing, shared=shared)

    def depends_on_all(self, why: str) -> None:
        """Note that this step depends on every other."""
        self.universal = self.universal or why

    @property
    def is_unexplained(self) -> bool:
        """Whether nothing was touched that could be seen, but perhaps sequences: what else was done is not known."""
        others = {thing: shared for thing, shared in self.locks.items() if thing[0] != SEQUENCES}
        return replace(self, locks=others).is_empty

    @property
    def is_empty(self) -> bool:
        """Whether nothing was touched that could be seen."""
        return not (
            self.locks or self.modes or self.reads or self.shows or self.predicates or self.universal or self.blocked
        )


def lock_the_same(a: Footprint, b: Footprint) -> bool:
    """Whether both lock the same row, unique key, advisory key or resource, and not both share it."""
    return any(
        (relation, key) == (other, other_key) or (relation == other and ALL in (key, other_key))
        for (relation, key), shared in a.locks.items()
        for (other, other_key), other_shared in b.locks.items()
        if not (shared and other_shared)
    )


def take_conflicting_modes(a: Footprint, b: Footprint) -> bool:
    """Whether they lock a table in modes that conflict."""
    return any(
        relation == other and other_mode in CONFLICTS[mode]
        for relation, mode in a.modes
        for other, other_mode in b.modes
    )


def show_what_the_other_reads(a: Footprint, b: Footprint) -> bool:
    """Whether one commits rows that the other reads."""
    return _meet(a.shows, b.reads) or _meet(a.reads, b.shows)


def are_both_blocked(a: Footprint, b: Footprint) -> bool:
    """Whether both end in a wait: who waits first is served first, and a cycle has one victim."""
    return a.blocked and b.blocked


def are_serializable_and_meet(a: Footprint, b: Footprint) -> bool:
    """Whether both are serializable, and one wrote what the other read, or both end (manual, 13.2.3)."""
    if not (a.serializable and b.serializable):
        return False
    return (
        (a.ends_serializable and b.ends_serializable)
        or any(_covers(read, write) for read in a.predicates for write in b.places)
        or any(_covers(read, write) for read in b.predicates for write in a.places)
    )


def is_either_universal(a: Footprint, b: Footprint) -> bool:
    """Whether one of them did what nobody can tell: an error, DDL, a wait for what cannot be seen."""
    return bool(a.universal or b.universal)


CLAUSES = (
    is_either_universal,
    are_both_blocked,
    lock_the_same,
    take_conflicting_modes,
    show_what_the_other_reads,
    are_serializable_and_meet,
)


def depends(a: Footprint, b: Footprint) -> bool:
    """Return whether the order of two steps of different participants can make a difference."""
    return any(clause(a, b) for clause in CLAUSES)


def _meet(some: Iterable[Thing], others: Iterable[Thing]) -> bool:
    others = tuple(others)
    return any(
        (relation == other or ALL in (relation, other)) and (key == other_key or ALL in (key, other_key))
        for relation, key in some
        for other, other_key in others
    )


def _covers(read: Place, write: Place) -> bool:
    """Whether a SIREAD lock, on a relation, a page or a tuple, covers a place that was written."""
    relation, page, item = read
    return relation == write[0] and page in (None, write[1]) and (item is None or write[2] is None or item == write[2])
