"""What the oids in locks and in the log stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import sql

from bankrun.schedule.server import Connection

_RELATIONS = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, coalesce(i.indrelid, t.oid, 0)::int8,
       coalesce(i.indisunique OR i.indisexclusion, false), coalesce(i.indisprimary, false), c.relpersistence::text,
       coalesce(i.indnatts = i.indnkeyatts, false) AND NOT EXISTS (
         SELECT FROM pg_attribute a LEFT JOIN pg_collation o ON o.oid = a.attcollation
         JOIN pg_opclass p ON p.oid = i.indclass[a.attnum - 1] WHERE a.attrelid = i.indexrelid
         AND NOT (a.atttypid = ANY(%s::regtype[]) AND coalesce(o.collisdeterministic, true) AND p.opcdefault))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.reltoastrelid = c.oid
"""
_BYTEWISE = [
    "int2",
    "int4",
    "int8",
    "oid",
    "uuid",
    "text",
    "varchar",
    "bool",
    "date",
    "timestamp",
    "timestamptz",
    "bytea",
]
"""Types whose values are equal only if they are stored alike: numeric (1 and 1.0), floats (0 and -0), citext and jsonb
are not among them."""
# Types whose equality is that of their text: numeric (1 = 1.0), citext and collations that are not deterministic are
# not, and their tables are read as a whole.
_KEYS = """
SELECT c.oid::int8, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
LEFT JOIN pg_collation o ON o.oid = a.attcollation
WHERE i.indisprimary AND i.indnkeyatts = 1 AND c.relkind = 'r' AND c.oid >= 16384
  AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'uuid'::regtype, 'text'::regtype)
  AND coalesce(o.collisdeterministic, true)
"""
_PARTITIONS = """
SELECT n.nspname, c.relname, array_agg(ln.nspname || '.' || l.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL pg_partition_tree(c.oid) t
JOIN pg_class l ON l.oid = t.relid JOIN pg_namespace ln ON ln.oid = l.relnamespace
WHERE c.relkind = 'p' AND t.isleaf GROUP BY 1, 2
"""
MUTES, TRIES = HIDES = ("client_min_messages", "advisory")
"""What hides from us, in whatever text: a session that is told to tell less; locks whose functions are not wrapped."""
_HIDES = """
SELECT word FROM unnest(%(words)s::text[]) word, pg_proc p WHERE p.oid >= 16384
  AND p.pronamespace <> 'pg_catalog'::regnamespace AND strpos(lower(concat(p.prosrc, p.proconfig)), word) > 0
UNION SELECT word FROM unnest(%(words)s::text[]) word, pg_views v
  WHERE v.schemaname NOT IN ('pg_catalog', 'information_schema') AND strpos(lower(v.definition), word) > 0
UNION SELECT word FROM unnest(%(words)s::text[]) word, pg_trigger t
  WHERE NOT t.tgisinternal AND strpos(lower(pg_get_triggerdef(t.oid)), word) > 0
"""
_SYSTEM = ("pg_catalog", "information_schema", "pg_toast")
KEYED_ROWS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, an index, a sequence, a view, or whatever else pg_class has."""

    oid: int
    schema: str
    relname: str
    kind: str
    table: int
    """The table that an index or a TOAST table belongs to, else 0."""
    is_unique: bool
    is_primary: bool
    persistence: str
    is_bytewise: bool
    """Whether the entries of an index have the same bytes if, and only if, their keys are equal."""

    @property
    def name(self) -> str:
        """Its qualified name."""
        return f"{self.schema}.{self.relname}"

    @property
    def is_system(self) -> bool:
        """Whether it belongs to Postgres and not to a program."""
        return self.schema in _SYSTEM or self.schema.startswith("pg_toast")

    @property
    def is_temporary(self) -> bool:
        """Whether only its session sees it."""
        return self.persistence == "t"


class Relations:
    """The catalog, as it was when it was last looked at."""

    def __init__(self, admin: Connection) -> None:
        self._admin = admin
        self._by_oid: dict[int, Relation] = {}
        self.keys: Mapping[str, str] = {}
        """The key column of each table whose rows are told apart by it."""
        self.rows: Mapping[tuple[str, int, int], str] = {}
        """The key of each row that was there from the beginning, by table, page and tuple."""
        self.partitions: Mapping[str, frozenset[str]] = {}
        """What each partitioned table consists of."""
        self.hides: frozenset[str] = frozenset()
        """Which of the words in HIDES a function or a view of the database has in it."""
        self.sequences: Mapping[str, sql.Identifier] = {}
        """Sequences: what is read from one as from a table was written by nextval, and shown at once."""
        self.look(admin)

    def look(self, admin: Connection) -> None:
        """Read the catalog, and where the rows are stored."""
        self._admin = admin
        self._load()
        keyed = admin.execute(_KEYS).fetchall()
        self.keys = {self._by_oid[oid].name: column for oid, column in keyed}
        rows: dict[tuple[str, int, int], str] = {}
        for oid, column in keyed:
            relation = self._by_oid[oid]
            query = sql.SQL("SELECT ctid::text, {}::text FROM ONLY {} LIMIT {}").format(
                sql.Identifier(column), sql.Identifier(relation.schema, relation.relname), sql.Literal(KEYED_ROWS_MAX)
            )
            for ctid, key in admin.execute(query):
                page, item = ctid.strip("()").split(",")
                rows[relation.name, int(page), int(item)] = key
        self.rows = rows

    def get(self, oid: int) -> Relation | None:
        """Return a relation; None for one that was made since."""
        return self._by_oid.get(oid)

    def table_of(self, relation: Relation) -> Relation:
        """Return the table that an index or TOAST table belongs to, or the relation itself."""
        return self._by_oid.get(relation.table, relation)

    def _load(self) -> None:
        rows = self._admin.execute(_RELATIONS, [_BYTEWISE]).fetchall()
        self._by_oid = {row[0]: Relation(*row) for row in rows}
        self.hides = frozenset(word for (word,) in self._admin.execute(_HIDES, {"words": [*HIDES]}))
        self.partitions = {
            f"{schema}.{name}": frozenset(leaves) for schema, name, leaves in self._admin.execute(_PARTITIONS)
        }
        self.sequences = {
            one.name: sql.Identifier(one.schema, one.relname) for one in self._by_oid.values() if one.kind == "S"
        }
