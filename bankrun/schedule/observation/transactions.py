"""What one session did in a step, added to the step's footprint; and what its open transaction did so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bankrun.schedule.observation.footprints import ADVISORY, ALL, Footprint, Place, Thing
from bankrun.schedule.observation.locks import Held
from bankrun.schedule.observation.plans import Reading
from bankrun.schedule.observation.wal import Written
from bankrun.schedule.protocol.conversation import QUIET_TAGS
from bankrun.schedule.protocol.requests import Kind, Request


@dataclass(slots=True)
class Transaction:
    """What a session's open transaction did so far."""

    virtual: str = ""
    locks: dict[Thing, bool] = field(default_factory=dict)
    modes: set[tuple[str, str]] = field(default_factory=set)
    shows: set[Thing] = field(default_factory=set)
    advisory: set[tuple[str, str]] = field(default_factory=set)
    predicates: set[Place] = field(default_factory=set)
    places: set[Place] = field(default_factory=set)
    serializable: bool = False
    has_snapshot: bool = False
    wrote: bool = False
    unknown: str = ""
    participant: str = ""


class Observation:
    """Adds to a step's footprint what one session did in it."""

    def __init__(
        self,
        footprint: Footprint,
        transaction: Transaction,
        held: Held,
        requests: Sequence[Request],
        reading: Reading,
        written: Sequence[Written],
        *,
        is_waiting: bool,
        is_lazy: bool,
        sees_rows: bool,
    ) -> None:
        self.footprint = footprint
        self.transaction = transaction
        self.held = held
        self.requests = requests
        self.reading = reading
        self.written = written
        self.is_waiting = is_waiting
        self.is_lazy = is_lazy
        self.sees_rows = sees_rows
        self.ended = bool(transaction.virtual) and held.virtual != transaction.virtual

    def add(self) -> None:
        """Add everything."""
        mine = Footprint()
        self._add_writes(mine)
        self._add_locks(mine)
        self._add_reads(mine)
        self._add_faults()
        self._add_serializable()
        self._remember(mine)
        self.footprint.lock_all(mine.locks)
        self.footprint.modes |= mine.modes
        self.footprint.reads |= mine.reads
        if self.ended:
            self._add_end()

    def _add_writes(self, mine: Footprint) -> None:
        for written in self.written:
            mine.lock_all(written.locks)
            self.transaction.shows |= written.shows
            self.transaction.places |= written.places
            self.transaction.wrote = True
            if written.unknown:
                self.footprint.depends_on_all(written.unknown)
                self.transaction.unknown = written.unknown
            if self.transaction.serializable or self.held.predicates:
                self.footprint.places |= written.places
        for name in self.held.unlogged:
            mine.lock((name, ALL))
            self.transaction.shows.add((name, ALL))
            self.transaction.wrote = True

    def _add_locks(self, mine: Footprint) -> None:
        before = self.transaction
        mine.modes |= self.held.modes - before.modes
        for name, _ in (self.held.advisory ^ before.advisory) | self.held.awaits_advisory:
            mine.lock((ADVISORY, name))
        if any("ROLLBACK" in request.tags for request in self.requests) and not self.ended:
            mine.lock_all(before.locks)  # ROLLBACK TO gives row locks back
        if self.is_waiting:
            for thing in self.held.awaits:
                mine.lock(thing)
        if not self.sees_rows:
            for name, mode in self.held.modes:
                if mode != "AccessShareLock":
                    mine.lock((name, ALL))
                    self.transaction.shows.add((name, ALL))
                    self.transaction.wrote = True

    def _add_reads(self, mine: Footprint) -> None:
        modes = self.held.modes
        unplanned = any(
            request.kind is Kind.STATEMENT
            and not QUIET_TAGS.issuperset(request.tags)
            and not _ends(request)
            and (not request.plans or self.is_lazy)
            for request in self.requests
        )
        if self.is_waiting or unplanned or not self.sees_rows or self.reading.opaque:
            mine.reads |= {(name, ALL) for name, _ in modes}
        if self.is_waiting:
            # What it reads after the wait it may read as of before: in a snapshot that is kept, in a STABLE function.
            mine.reads.add((ALL, ALL))
        statements = sum(request.kind is Kind.STATEMENT for request in self.requests)
        self.footprint.harmless = bool(statements) and self.reading.harmless == self.reading.plans > 0
        planned = {name for name, _ in self.reading.reads}
        mine.reads |= self.reading.reads
        mine.reads |= {(name, ALL) for name, _ in modes - self.transaction.modes if name not in planned}
        for wish in self.reading.wishes:
            if wish not in mine.locks and wish not in self.transaction.locks:
                mine.lock((wish[0], ALL))
        if unplanned:
            for name, mode in modes:
                if mode == "RowShareLock":
                    mine.lock((name, ALL))
        if self.held.has_snapshot and not self.is_waiting and self.held.virtual and not self.transaction.has_snapshot:
            # A snapshot is kept between statements: REPEATABLE READ or SERIALIZABLE. Its first statement fixed it.
            self.transaction.has_snapshot = True
            mine.reads.add((ALL, ALL))

    def _add_faults(self) -> None:
        for request in self.requests:
            if request.sqlstate:
                self.footprint.depends_on_all(f"the error {request.sqlstate}")
            if request.caught and "ROLLBACK" not in request.tags:
                # What failed told no plan, and may have given its locks back.
                self.footprint.depends_on_all("an error that was caught inside")
            if request.unsplit or len(request.tags) > 1:
                self.footprint.depends_on_all("several statements in one request")
        if self.held.unknown:
            self.footprint.depends_on_all(self.held.unknown)
        if self.reading.opaque:
            self.footprint.depends_on_all(self.reading.opaque)

    def _add_serializable(self) -> None:
        transaction = self.transaction
        if self.held.predicates or transaction.serializable:
            transaction.serializable = True
            self.footprint.serializable = True
            self.footprint.predicates |= self.held.predicates - transaction.predicates
            transaction.predicates |= self.held.predicates

    def _remember(self, mine: Footprint) -> None:
        transaction = self.transaction
        transaction.virtual = self.held.virtual or transaction.virtual
        for thing, shared in mine.locks.items():
            transaction.locks[thing] = shared and transaction.locks.get(thing, True)
        transaction.modes |= mine.modes
        transaction.advisory = set(self.held.advisory)

    def _add_end(self) -> None:
        """A transaction ended: it gives back all its locks, and shows what it wrote unless it was rolled back."""
        transaction, footprint = self.transaction, self.footprint
        goes_on = self.is_waiting and not self.requests
        if goes_on:
            footprint.depends_on_all("a statement that commits before its end")
        rolled_back = (not self.requests and not goes_on) or any(
            "ROLLBACK" in request.tags or request.sqlstate or request.kind is Kind.LEAVE for request in self.requests
        )
        footprint.lock_all(transaction.locks)
        footprint.modes |= transaction.modes
        if not rolled_back:
            footprint.shows |= transaction.shows
            footprint.commits = footprint.commits or transaction.wrote
            if transaction.unknown:
                footprint.depends_on_all(f"the commit of {transaction.unknown}")
        if transaction.serializable:
            footprint.serializable = footprint.ends_serializable = True
            footprint.predicates |= transaction.predicates
            footprint.places |= transaction.places


def _ends(request: Request) -> bool:
    return bool({"COMMIT", "ROLLBACK"} & set(request.tags))
