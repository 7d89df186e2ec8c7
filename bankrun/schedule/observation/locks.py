"""What sessions hold, as pg_locks has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bankrun.schedule.observation.footprints import Place, Thing
from bankrun.schedule.observation.relations import Relations
from bankrun.schedule.observation.wal import LogReader

READ = """
SELECT a.pid, a.backend_xid::text, a.backend_xmin::text, l.locktype, l.relation::int8, l.mode, l.granted, l.page,
       l.tuple::int, l.virtualxid, l.transactionid::text, concat_ws(':', l.classid, l.objid, l.objsubid)
FROM unnest(%s::int[]) u(p) CROSS JOIN LATERAL pg_stat_get_activity(u.p) a
LEFT JOIN pg_lock_status() l ON l.pid = a.pid
"""
"""The locks of these process ids, in the columns that LockReader takes."""
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


class LockReader:
    """Makes what each session holds of rows of pg_locks; remembers whose a transaction id is."""

    def __init__(self, relations: Relations, log: LogReader) -> None:
        self._relations = relations
        self._log = log
        self.owners: dict[str, LinkKey] = {}
        """Sessions by the transaction ids that they had in this execution."""
        self.exclusive: set[str] = set()
        """Relations that anybody wanted alone, in any execution."""

    def begin(self) -> None:
        """Forget the last execution: ids are new."""
        self.owners.clear()

    def take(self, rows: Sequence[Sequence[Any]], by_pid: Mapping[int, LinkKey]) -> dict[LinkKey, Held]:
        """Return what each of these sessions holds."""
        held = {key: Held() for key in by_pid.values()}
        for row in rows:
            self._take_lock(held[by_pid[row[0]]], by_pid[row[0]], row)
        return held

    def _take_lock(self, one: Held, key: LinkKey, row: Sequence[Any]) -> None:
        _, _, xmin, kind, oid, mode, granted, page, item, virtual, xid, advisory = row
        one.has_snapshot = one.has_snapshot or xmin is not None
        if kind is None:
            return
        if kind == "virtualxid" and mode == "ExclusiveLock" and granted:
            one.virtual = virtual
        elif kind == "transactionid" and mode == "ExclusiveLock" and granted:
            one.xids.add(xid)
            self.owners[xid] = key
        elif kind == "advisory":
            (one.advisory if granted else one.awaits_advisory).add((f"{advisory}", mode))
        elif oid is not None and kind in ("relation", "page", "tuple", "extend"):
            self._take_relation(one, oid, kind, mode, granted=granted, page=page, item=item)

    def _take_relation(
        self, one: Held, oid: int, kind: str, mode: str, *, granted: bool, page: int | None, item: int | None
    ) -> None:
        relation = self._relations.get(oid)
        if relation is None:
            one.unknown = "a relation that is new"
            return
        if relation.is_system or relation.is_temporary:
            return
        if mode == "SIReadLock":
            one.predicates.add((relation.name, page, item))
        elif kind == "tuple" and page is not None and item is not None:
            one.awaits.add(self._log.identify(relation.name, page, item))
        elif kind == "relation" and relation.kind == "S":
            one.sequences.add(relation.name)
            self.exclusive |= {relation.name} if mode == "AccessExclusiveLock" else set()
        elif kind == "relation" and not relation.table:
            one.modes.add((relation.name, mode))
            if mode == "AccessExclusiveLock":
                self.exclusive.add(relation.name)
            one.keeps_out = one.keeps_out or relation.name in self.exclusive
            one.awaits_mode = one.awaits_mode or not granted
            if relation.persistence == "u" and mode not in ("AccessShareLock", "RowShareLock"):
                one.unlogged.add(relation.name)
