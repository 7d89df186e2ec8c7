"""Asks Postgres what a step did, and makes a footprint of it.

Locks and the log are asked in one round trip, while everybody stands and what was done is not committed yet. What a
session's open transaction has locked and written is remembered: its COMMIT carries all of it.

On servers that do not show us the log or plans, footprints are the relations in pg_locks, from the transaction's
beginning on: sound, and coarse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from bankrun.schedule.errors import Unsupported
from bankrun.schedule.observation import wal
from bankrun.schedule.observation.footprints import ALL, Footprint, Place, Thing
from bankrun.schedule.observation.plans import Reading, read_plans
from bankrun.schedule.observation.relations import MUTES, TRIES, Relations
from bankrun.schedule.observation.sequences import Sequences
from bankrun.schedule.observation.wal import LogReader, Written
from bankrun.schedule.protocol.conversation import QUIET_TAGS
from bankrun.schedule.protocol.proxy import Link
from bankrun.schedule.protocol.requests import Kind, Request
from bankrun.schedule.server import Capabilities, Connection

ADVISORY = "advisory lock"
_LOCKS = """
SELECT a.pid, a.backend_xid::text, a.backend_xmin::text, l.locktype, l.relation::int8, l.mode, l.granted, l.page,
       l.tuple::int, l.virtualxid, l.transactionid::text, concat_ws(':', l.classid, l.objid, l.objsubid)
FROM unnest(%s::int[]) u(p) CROSS JOIN LATERAL pg_stat_get_activity(u.p) a
LEFT JOIN pg_lock_status() l ON l.pid = a.pid
"""
LinkKey = tuple[str, int]


@dataclass(slots=True)
class Held:
    """What one session holds now, as pg_locks has it."""

    virtual: str = ""
    xids: set[str] = field(default_factory=set)
    has_snapshot: bool = False
    modes: set[tuple[str, str]] = field(default_factory=set)
    sequences: set[str] = field(default_factory=set)
    awaits: set[Thing] = field(default_factory=set)
    awaits_mode: bool = False
    advisory: set[tuple[str, str]] = field(default_factory=set)
    """Keys and modes: a lock that is shared may become an exclusive one."""
    awaits_advisory: set[tuple[str, str]] = field(default_factory=set)
    predicates: set[Place] = field(default_factory=set)
    unlogged: set[str] = field(default_factory=set)
    keeps_out: bool = False
    """Whether it holds what somebody wants alone: even a read lock matters then."""
    unknown: str = ""

    @property
    def has_effects(self) -> bool:
        """Whether ending this transaction, or session, could matter to others."""
        return bool(
            self.xids
            or self.advisory
            or self.predicates
            or self.unknown
            or self.keeps_out
            or any(mode != "AccessShareLock" for _, mode in self.modes)
        )


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


def _mentions(word: str, requests: Iterable[Request]) -> bool:
    return any(word in request.sql.lower() for request in requests)


class Observer:
    """Remembers what the open transactions of all participants did."""

    def __init__(self, admin: Connection, capabilities: Capabilities, relations: Relations) -> None:
        self._capabilities = capabilities
        self.relations = relations
        self.log = LogReader(relations)
        self._admin = admin
        self._parser: Connection | None = None
        self._open: dict[LinkKey, Transaction] = {}
        self._owners: dict[str, LinkKey] = {}
        self._ends: dict[str, bool] = {}
        self._mute: set[LinkKey] = set()
        """Sessions that were told to tell less."""
        self._seen: Mapping[LinkKey, Held] = {}
        self.written_modes: set[str] = set()
        """Relations that anybody locked for writing in this execution."""
        self._exclusive: set[str] = set()
        """Relations that anybody wanted alone, in any execution."""
        self._sequences = Sequences(relations, reads_wal=capabilities.reads_wal)

    def begin(self, admin: Connection) -> None:
        """Forget the last execution: everything was restored."""
        self._admin = admin
        self._open.clear()
        self._owners.clear()
        self._mute.clear()
        self._sequences.begin()
        self.written_modes.clear()
        if self._capabilities.reads_wal:
            self.log.begin(admin)

    def close(self) -> None:
        """Close the connection that is used to ask what a statement is."""
        if self._parser is not None:
            self._parser.close()
            self._parser = None

    # What may be let through at once.

    def ends_transaction(self, text: str, connect: Any) -> bool:
        """Return whether a statement is COMMIT or ROLLBACK, as Postgres' own parser sees it.

        In a transaction that failed, Postgres accepts to parse those that end it and nothing else (25P02).
        """
        if text not in self._ends:
            if self._parser is None:
                self._parser = connect()
                self._parser.autocommit = False
                with suppress(psycopg.errors.DivisionByZero):
                    self._parser.execute("SELECT 1 / 0")
            answer = self._parser.pgconn.prepare(b"", text.encode())
            self._ends[text] = answer.error_field(psycopg.pq.DiagnosticField.SQLSTATE) is None
        return self._ends[text]

    def look(self, links: Sequence[Link]) -> Mapping[LinkKey, Held]:
        """Return what these sessions hold."""
        held, _ = self._ask(links, with_log=False)
        return held

    @property
    def seen(self) -> Mapping[LinkKey, Held]:
        """What the sessions held when the last step was observed."""
        return self._seen

    def look_at_log(self) -> None:
        """Read what was written since the last step: by sessions that were ended."""
        self.log.take(self._admin.execute(wal.READ, [self.log.position]).fetchall(), lambda _: "")

    def forget(self, link: Link) -> None:
        """Note that this session's transaction ended, and that this was no step: it had no effects."""
        self._open.pop(link.key, None)

    # What a step did.

    def observe(
        self,
        stepped: str,
        links: Sequence[Link],
        done: Mapping[LinkKey, Sequence[Request]],
        plans: Mapping[LinkKey, Sequence[str]],
        tried: Sequence[str],
        *,
        blocked: bool,
        woken: Collection[str],
        others_wait: bool,
    ) -> Footprint:
        """Return the footprint of a step that ``stepped`` took and in which ``woken`` could go on.

        ``others_wait`` says that a third participant is involved in waiting.
        """
        held, written = self._ask(links, with_log=True)
        self._seen = held
        footprint = Footprint(blocked=blocked)
        keys = [link.key for link in links]
        gone = [key for key in self._open if key not in keys]
        whose = {link.key: link.participant for link in links}
        draws = False
        acting = [
            link.key
            for link in links
            if link.participant in (stepped, *woken) and (done.get(link.key) or link.conversation.running)
        ]
        for key in [*keys, *gone]:
            transaction = self._open.setdefault(key, Transaction())
            transaction.participant = whose.get(key, transaction.participant)
            requests = done.get(key, ())
            reading = read_plans(plans.get(key, ()), self.relations.keys, self.relations.partitions)
            if transaction.participant != stepped and transaction.participant not in woken:
                continue
            draws = draws or reading.draws
            one = _Observation(
                footprint,
                transaction,
                held.get(key, Held()),
                requests,
                reading,
                [found for xid, found in written.items() if key in self._owners_of(xid, stepped, acting)],
                is_waiting=any(link.key == key and link.conversation.is_waiting for link in links),
                is_lazy=any(link.conversation.lazy for link in links if link.key == key),
                sees_rows=self._capabilities.sees_rows,
            )
            one.add()
            self._add_hidden(footprint, key, requests)
            if one.ended:
                self._open[key] = Transaction(advisory=set(one.held.advisory), participant=transaction.participant)
            if key in gone:
                self._open.pop(key)
            self._refuse_commits_inside(
                requests, [r for link in links if link.key == key and (r := link.conversation.running) is not None]
            )
        for name in tried:
            footprint.lock((ADVISORY, name))
        self._sequences.add_to(
            footprint,
            self._admin,
            {name for one in held.values() for name in one.sequences},
            written.values(),
            kept=self._exclusive,
            by_itself=draws,
        )
        if any(name in self.relations.sequences for name, _ in footprint.reads):
            footprint.depends_on_all("it reads a sequence as a table")
        if blocked and not self._shows_what_it_awaits([held[key] for key in held if whose[key] == stepped]):
            footprint.depends_on_all("it waits for something that pg_locks does not name")
        if others_wait and (footprint.commits or woken):
            footprint.depends_on_all("a third participant waits, or is woken")
        return footprint

    def _add_hidden(self, footprint: Footprint, key: LinkKey, requests: Sequence[Request]) -> None:
        """Let a statement depend on everything that may hide what it does.

        Words are looked for, in any text, so this errs only towards more dependences.
        """
        if _mentions(MUTES, requests):
            self._mute.add(key)
        acts = any(request.kind is Kind.STATEMENT for request in requests)
        if acts and (key in self._mute or MUTES in self.relations.hides):
            footprint.depends_on_all("a session or a function that sets client_min_messages")
            called = {tag for request in requests for tag in request.tags} & {"CALL", "DO"}
            if called and (self._any_commits() or _mentions("commit", requests) or _mentions("rollback", requests)):
                raise Unsupported(
                    f"{' or '.join(sorted(called))} where client_min_messages is set: whether it commits inside cannot "
                    "be seen there"
                )
        if not self._capabilities.tells_advisory and (
            _mentions(TRIES, requests) or (acts and TRIES in self.relations.hides)
        ):
            footprint.depends_on_all("an advisory lock on a server that is not ours")

    def _any_commits(self) -> bool:
        """Whether a procedure, of any language, has the word COMMIT or ROLLBACK in it."""
        row = self._admin.execute(
            "SELECT EXISTS (SELECT FROM pg_proc WHERE oid >= 16384 AND prokind = 'p' AND prosrc ~* 'commit|rollback')"
        ).fetchone()
        return row == (True,)

    @staticmethod
    def _refuse_commits_inside(requests: Sequence[Request], running: Iterable[Request]) -> None:
        """Raise Unsupported for a statement that ended a transaction in its middle: nobody could be let in there.

        That is a DO or a CALL outside of a transaction (manual, Transaction Management in PL/pgSQL).
        """
        for request in (*requests, *running):
            if request.transactions > 1 and (not request.tags or {"CALL", "DO"} & set(request.tags)):
                raise Unsupported(
                    f"{' or '.join(request.tags) or 'CALL or DO'} of a procedure that commits inside: what others do "
                    "between its commits cannot be run; call it in a transaction, or send its parts one by one"
                )

    @staticmethod
    def _shows_what_it_awaits(held: Sequence[Held]) -> bool:
        return any(one.awaits or one.awaits_advisory or one.awaits_mode for one in held)

    def _owners_of(self, xid: str, stepped: str, acting: Sequence[LinkKey]) -> Collection[LinkKey]:
        """Return whose transaction id this may be.

        One that began and ended in this step, a block of a function for example, is of a session that did something.
        """
        if xid in self._owners:
            return (self._owners[xid],)
        mine = [key for key, transaction in self._open.items() if transaction.participant == stepped]
        return acting or mine[:1]

    def _ask(self, links: Sequence[Link], *, with_log: bool) -> tuple[dict[LinkKey, Held], Mapping[str, Written]]:
        by_pid = {link.conversation.pid: link.key for link in links if link.conversation.pid}
        rows: list[Any] = []
        log: list[Any] = []
        if with_log and self._capabilities.reads_wal:
            with self._admin.pipeline():
                locks = self._admin.execute(_LOCKS, [list(by_pid)])
                records = self._admin.execute(wal.READ, [self.log.position])
                rows, log = locks.fetchall(), records.fetchall()
        elif by_pid:
            rows = self._admin.execute(_LOCKS, [list(by_pid)]).fetchall()
        held = {key: Held() for key in by_pid.values()}
        for row in rows:
            self._take_lock(held[by_pid[row[0]]], by_pid[row[0]], row)
        whose = {link.key: link.participant for link in links}
        written = self.log.take(log, lambda xid: whose.get(self._owners.get(xid, ("", 0)), "")) if log else {}
        return held, written

    def _take_lock(self, one: Held, key: LinkKey, row: Sequence[Any]) -> None:
        _, _, xmin, kind, oid, mode, granted, page, item, virtual, xid, advisory = row
        one.has_snapshot = one.has_snapshot or xmin is not None
        if kind is None:
            return
        if kind == "virtualxid" and mode == "ExclusiveLock" and granted:
            one.virtual = virtual
        elif kind == "transactionid" and mode == "ExclusiveLock" and granted:
            one.xids.add(xid)
            self._owners[xid] = key
        elif kind == "advisory":
            (one.advisory if granted else one.awaits_advisory).add((f"{advisory}", mode))
        elif oid is not None and kind in ("relation", "page", "tuple", "extend"):
            self._take_relation(one, oid, kind, mode, granted=granted, page=page, item=item)

    def _take_relation(
        self, one: Held, oid: int, kind: str, mode: str, *, granted: bool, page: int | None, item: int | None
    ) -> None:
        relation = self.relations.get(oid)
        if relation is None:
            one.unknown = "a relation that is new"
            return
        if relation.is_system or relation.is_temporary:
            return
        if mode == "SIReadLock":
            one.predicates.add((relation.name, page, item))
        elif kind == "tuple" and page is not None and item is not None:
            one.awaits.add(self.log.identify(relation.name, page, item))
        elif kind == "relation" and relation.kind == "S":
            one.sequences.add(relation.name)
            self._exclusive |= {relation.name} if mode == "AccessExclusiveLock" else set()
        elif kind == "relation" and not relation.table:
            one.modes.add((relation.name, mode))
            if mode == "AccessExclusiveLock":
                self._exclusive.add(relation.name)
            one.keeps_out = one.keeps_out or relation.name in self._exclusive
            one.awaits_mode = one.awaits_mode or not granted
            if mode not in ("AccessShareLock", "RowShareLock"):
                self.written_modes.add(relation.name)
                if relation.persistence == "u":
                    one.unlogged.add(relation.name)


class _Observation:
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
