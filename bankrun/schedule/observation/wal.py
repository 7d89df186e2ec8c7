"""What was written and locked, from the write-ahead log: rows, unique keys, the catalog.

The log has uncommitted writes and row locks, those of foreign keys, triggers and functions among them, by page and
tuple, a moment after they were made (pg_walinspect; manual, F.37). A row keeps one identity while it is updated: its
primary key as it was at the beginning, or who inserted it as which of its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bankrun.schedule.observation.footprints import ALL, Place, Thing
from bankrun.schedule.observation.relations import Relation, Relations
from bankrun.schedule.server import Connection

READ = """
SELECT pg_filenode_relation(CASE WHEN b.reltablespace = 1663 THEN 0 ELSE b.reltablespace END, b.relfilenode)::int8,
       b.relblocknumber::int8, b.resource_manager, b.record_type, b.description, b.block_data, b.block_id::int,
       b.start_lsn::text, b.xid::text, m.l::text
FROM (SELECT pg_logical_emit_message(false, 'bankrun', '', true) l OFFSET 0) m
LEFT JOIN LATERAL pg_get_wal_block_info(%s::pg_lsn, m.l, true) b ON b.xid::text <> '0' AND b.relforknumber = 0
ORDER BY b.start_lsn, b.block_id
"""
_TREE_UPKEEP = frozenset(
    {
        *("NEWROOT", "META_CLEANUP", "INSERT_UPPER", "INSERT_META", "VACUUM", "DELETE", "DEDUP", "REUSE_PAGE"),
        *("MARK_PAGE_HALFDEAD", "UNLINK_PAGE", "UNLINK_PAGE_META"),
    }
)
_HEAP_UPKEEP = frozenset(
    {
        *("CONFIRM", "HEAP_CONFIRM", "PRUNE_ON_ACCESS", "INPLACE", "VISIBLE", "PRUNE_VACUUM_SCAN"),
        *("PRUNE_VACUUM_CLEANUP", "FREEZE_PAGE", "LOCK_UPDATED"),
    }
)


@dataclass(slots=True)
class Written:
    """What one transaction wrote and locked in a while."""

    locks: dict[Thing, bool] = field(default_factory=dict)
    shows: set[Thing] = field(default_factory=set)
    places: set[Place] = field(default_factory=set)
    sequences: set[str] = field(default_factory=set)
    unknown: str = ""
    """What of it cannot be told."""

    def lock(self, thing: Thing, *, shared: bool = False) -> None:
        """Add a lock."""
        self.locks[thing] = shared and self.locks.get(thing, True)


@dataclass(frozen=True, slots=True)
class Record:
    """A block that a log record touched."""

    relation: int | None
    page: int
    manager: str
    kind: str
    description: str
    data: bytes | None
    block: int
    start: str
    xid: str

    @property
    def is_upkeep(self) -> bool:
        """Whether it changes how something is stored, and nothing that anybody could see."""
        kind = self.kind.removesuffix("+INIT")
        if self.manager in ("Heap", "Heap2"):
            return kind in _HEAP_UPKEEP - {"INPLACE"}
        return self.manager == "Btree" and kind in _TREE_UPKEEP


class LogReader:
    """Reads on from where it stopped."""

    def __init__(self, relations: Relations) -> None:
        self._relations = relations
        self.position = ""
        self.changed: set[int] = set()
        """Tables that were written since the last restore."""
        self.catalog_changed = False
        self._identities: dict[tuple[str, int, int], str] = {}
        self._inserted: Counter[str] = Counter()
        self._moved: set[tuple[str, str]] = set()

    def begin(self, admin: Connection) -> None:
        """Start from here: everything was restored."""
        row = admin.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        self.position = row[0]
        self.changed.clear()
        self.catalog_changed = False
        self._identities.clear()
        self._inserted.clear()
        self._moved.clear()

    def take(self, rows: Sequence[Sequence[Any]], owner_of: Callable[[str], str]) -> Mapping[str, Written]:
        """Return what each transaction wrote; ``owner_of`` names the participant behind a transaction id."""
        if rows:
            self.position = rows[-1][9]
        records = [Record(row[0], row[1] or 0, *row[2:9]) for row in rows if row[2] is not None]
        found: dict[str, Written] = {}
        for record in records:
            written = found.setdefault(record.xid, Written())
            relation = None if record.relation is None else self._relations.get(record.relation)
            if relation is None:
                # Its file belongs to no relation (any more): a table that was made, or truncated, in the meantime.
                written.unknown = written.unknown or "a write to a relation that is new or gone"
                self.catalog_changed = True
            elif relation.schema == "pg_catalog" and record.is_upkeep:
                continue  # whoever reads a catalog clears away what earlier changes of it left on a page
            elif relation.schema == "pg_catalog":
                written.unknown = written.unknown or f"a change of {relation.name}"
                self.catalog_changed = True
            elif not relation.is_system:
                self._take_record(record, relation, records, written, owner_of(record.xid))
        return found

    def _take_record(
        self, record: Record, relation: Relation, records: Sequence[Record], written: Written, owner: str
    ) -> None:
        kind = record.kind.removesuffix("+INIT")
        if record.manager in ("Heap", "Heap2"):
            if kind != "LOCK" and kind not in _HEAP_UPKEEP:
                self.changed.add(relation.oid)
            self._take_heap(record, kind, relation, records, written, owner)
        elif record.manager == "Btree":
            self._take_tree(record, kind, relation, written)
        elif record.manager == "Sequence":
            written.sequences.add(relation.name)
        elif relation.is_unique:
            written.unknown = written.unknown or f"a write to {relation.name}, whose keys cannot be told"
        elif record.manager not in ("Gin", "Gist", "SPGist", "BRIN", "Hash"):
            written.unknown = written.unknown or f"{record.manager} {kind} on {relation.name}"

    def _take_heap(
        self, record: Record, kind: str, relation: Relation, records: Sequence[Record], written: Written, owner: str
    ) -> None:
        name, page = relation.name, record.page
        if kind in ("UPDATE", "HOT_UPDATE"):
            if record.block == 1:
                return  # block 0 is the new page, 1 the old one where it differs
            old_page = next((r.page for r in records if r.block == 1 and r.start == record.start), page)
            old, new = _number(record.description, "old_off"), _number(record.description, "new_off")
            identity = self._identity(name, old_page, old)
            self._identities[name, page, new] = identity
            if kind == "UPDATE":  # HOT proves that no key changed; without, the row may have another one from now on
                self._moved.add((name, identity))
            written.lock((name, identity))
            written.shows.add((name, self._shown(name, identity)))
            written.places |= {(name, old_page, old), (name, page, new)}
        elif kind == "DELETE":
            offset = _number(record.description, "off")
            identity = self._identity(name, page, offset)
            written.lock((name, identity))
            written.shows.add((name, self._shown(name, identity)))
            written.places.add((name, page, offset))
        elif kind == "LOCK":
            identity = self._identity(name, page, _number(record.description, "off"))
            written.lock((name, identity), shared="KEYSHR_LOCK" in _words_in_brackets(record.description))
        elif kind in ("INSERT", "MULTI_INSERT"):
            written.shows.add((name, ALL))
            if kind == "INSERT":
                offset = _number(record.description, "off")
                self._inserted[owner] += 1
                self._identities[name, page, offset] = f"new {owner} {self._inserted[owner]}"
                written.places.add((name, page, offset))
            else:
                written.places.add((name, page, None))
        elif kind not in _HEAP_UPKEEP:
            written.unknown = written.unknown or f"{record.manager} {kind} on {name}"

    def _take_tree(self, record: Record, kind: str, relation: Relation, written: Written) -> None:
        written.places.add((relation.name, record.page, None))
        if kind in _TREE_UPKEEP:
            return
        if relation.is_unique:
            # The new entry is the data of a leaf insertion, after its line pointer; a split moves others, too.
            whole = record.data if kind == "INSERT_LEAF" and relation.is_bytewise else None
            written.lock((relation.name, bytes(whole[8:]).hex() if whole else ALL))
        if relation.is_primary:
            # A row with a new key, or one that was moved: nobody can tell which readers by key it appears to.
            written.shows.add((self._relations.table_of(relation).name, ALL))

    def _identity(self, name: str, page: int, offset: int) -> str:
        known = self._identities.get((name, page, offset))
        if known is None:
            key = self._relations.rows.get((name, page, offset))
            known = f"at {page},{offset}" if key is None else f"={key}"
        return known

    def identify(self, name: str, page: int, offset: int) -> Thing:
        """Return a row as locks name it."""
        return name, self._identity(name, page, offset)

    def _shown(self, name: str, identity: str) -> str:
        """Return the key under which readers find a row; ALL if nobody can tell."""
        return identity if identity.startswith("=") and (name, identity) not in self._moved else ALL


def _number(description: str, name: str) -> int:
    for part in description.split(", "):
        label, _, value = part.partition(": ")
        if label == name:
            return int(value)
    raise ValueError(f"no {name} in {description}")


def _words_in_brackets(description: str) -> list[str]:
    return description.partition("[")[2].partition("]")[0].split(", ")
