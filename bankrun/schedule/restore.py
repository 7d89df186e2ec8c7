"""The same database before every execution: rows, their physical order, sequences, catalog.

The tables that changed are truncated and filled again by COPY, in the order in which the rows were stored; DELETE and
INSERT would be faster, and would change what an unsorted SELECT returns. If the catalog changed (a fingerprint tells),
the database is dropped and copied from a template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from bankrun.schedule.errors import NotStarted
from bankrun.schedule.server import TEMPLATE_SUFFIX, Connection, Server, one

Rows = dict[str, list[str]]
"""The committed rows of each table, by its qualified name: each row as JSON, sorted."""

LOOK_MS = 50
"""How long a look at the rows waits for a table, while somebody may have locked it."""

_TABLES = """
SELECT c.oid::int8, n.nspname, c.relname, c.relpersistence::text,
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid
                 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '{}'),
       coalesce((SELECT array_agg(DISTINCT f.conrelid::int8) FROM pg_constraint f
                 WHERE f.contype = 'f' AND f.confrelid = c.oid), '{}')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND NOT starts_with(n.nspname, 'pg_temp_') AND NOT starts_with(n.nspname, 'pg_toast_temp_')
ORDER BY 2, 3
"""
_PARTITIONED = """
SELECT c.oid::int8, n.nspname, c.relname, array_agg(t.relid::oid::int8)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL pg_partition_tree(c.oid) t
WHERE c.relkind = 'p' AND t.isleaf GROUP BY 1, 2, 3
"""
# These fire also for what is put back, whatever session_replication_role says (manual, ALTER TABLE).
_FIRES_ALWAYS = "SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgenabled IN ('A', 'R'))"
# REFRESH gives one another file, which the fingerprint below tells; REFRESH CONCURRENTLY does not.
_MATERIALIZED_VIEWS = """
SELECT schemaname, matviewname FROM pg_matviews
WHERE schemaname NOT IN ('pg_catalog', 'information_schema') AND ispopulated ORDER BY 1, 2
"""
_SEQUENCES = """
SELECT schemaname, sequencename, start_value FROM pg_sequences
WHERE schemaname NOT IN ('pg_catalog', 'information_schema') AND NOT starts_with(schemaname, 'pg_temp_') ORDER BY 1, 2
"""
_PRESETS = """
SELECT split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase CROSS JOIN unnest(setconfig) setting
WHERE d.datname = current_database() AND setrole = 0
"""
# What a program can define, without what changes by itself (statistics, storage) and without temporary objects, which
# end with their session.
_FINGERPRINT = """
SELECT md5(string_agg(part, E'\\n' ORDER BY part)) FROM (
  SELECT concat_ws('|', 'class', c.oid, c.relname, c.relnamespace, c.relkind, c.relowner, c.relacl, c.reloptions,
                   c.relrowsecurity, c.relforcerowsecurity, c.relpersistence, c.relhasindex, c.relhastriggers) part
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid >= 16384 AND NOT starts_with(n.nspname, 'pg_t')
  UNION ALL SELECT concat_ws('|', 'attribute', a.attrelid, a.attnum, a.attname, a.atttypid, a.attnotnull,
                   a.attisdropped, a.attidentity, a.attgenerated, a.attacl, a.attoptions)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.attrelid >= 16384 AND NOT starts_with(n.nspname, 'pg_t')
  UNION ALL SELECT concat_ws('|', 'materialized view', c.oid, c.relfilenode) FROM pg_class c WHERE c.relkind = 'm'
  UNION ALL SELECT concat_ws('|', 'proc', p.oid, p.xmin) FROM pg_proc p WHERE p.oid >= 16384
  UNION ALL SELECT concat_ws('|', 'trigger', t.oid, t.xmin) FROM pg_trigger t
  UNION ALL SELECT concat_ws('|', 'constraint', o.oid, o.conname, o.conrelid, o.convalidated, o.condeferrable)
    FROM pg_constraint o
  UNION ALL SELECT concat_ws('|', 'default', d.oid, d.xmin) FROM pg_attrdef d
  UNION ALL SELECT concat_ws('|', 'type', y.oid, y.xmin) FROM pg_type y JOIN pg_namespace n ON n.oid = y.typnamespace
    WHERE y.oid >= 16384 AND NOT starts_with(n.nspname, 'pg_t')
  UNION ALL SELECT concat_ws('|', 'enum', e.oid, e.xmin) FROM pg_enum e
  UNION ALL SELECT concat_ws('|', 'rule', r.oid, r.xmin) FROM pg_rewrite r WHERE r.oid >= 16384
  UNION ALL SELECT concat_ws('|', 'policy', l.oid, l.xmin) FROM pg_policy l
  UNION ALL SELECT concat_ws('|', 'schema', n.oid, n.nspname, n.nspacl) FROM pg_namespace n
    WHERE NOT starts_with(n.nspname, 'pg_t')
  UNION ALL SELECT concat_ws('|', 'index', i.indexrelid, i.indisvalid, i.indisunique) FROM pg_index i
    WHERE i.indexrelid >= 16384
  UNION ALL SELECT concat_ws('|', 'setting', s.setdatabase, s.setrole, s.setconfig) FROM pg_db_role_setting s
  UNION ALL SELECT concat_ws('|', 'extension', x.oid, x.xmin) FROM pg_extension x
  UNION ALL SELECT concat_ws('|', 'operator', o.oid, o.xmin) FROM pg_operator o WHERE o.oid >= 16384
  UNION ALL SELECT concat_ws('|', 'cast', k.oid, k.xmin) FROM pg_cast k WHERE k.oid >= 16384
  UNION ALL SELECT concat_ws('|', 'sequence', q.seqrelid, q.xmin) FROM pg_sequence q
  UNION ALL SELECT concat_ws('|', 'event', v.oid, v.xmin) FROM pg_event_trigger v
  UNION ALL SELECT concat_ws('|', 'large object', m.oid, m.xmin) FROM pg_largeobject_metadata m) parts
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, how its rows are copied, and which tables refer to it."""

    oid: int
    schema: str
    name: str
    columns: tuple[str, ...]
    referring: frozenset[int]
    is_logged: bool

    @property
    def qualified(self) -> str:
        """Its name with its schema, as people write it."""
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement."""
        return sql.Identifier(self.schema, self.name)


class Keeper:
    """Remembers a database as it is when this is made, and makes it so again."""

    def __init__(self, server: Server, admin: Connection, *, recreates: bool) -> None:
        self._server = server
        self._recreates = recreates
        self.recreated = 0
        self._change: Callable[[Connection], None] | None = None
        self._presets: list[tuple[str, str]] = []
        if recreates:
            self._make_template(admin)
            admin = server.connect()
        self.admin = admin
        self._learn()

    def begin_from(self, change: Callable[[Connection], None]) -> None:
        """Change the restored database, and remember it as it is then."""
        self._change = change
        change(self.admin)
        self._learn()

    def _make_template(self, admin: Connection) -> None:
        """Copy the database. Nobody else may be connected to it."""
        database = self._server.database
        self._presets = admin.execute(_PRESETS).fetchall()
        admin.close()
        with self._server.connect("postgres") as other:
            other.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(self._template))
            other.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    self._template, sql.Identifier(database)
                )
            )

    @property
    def _template(self) -> sql.Identifier:
        return sql.Identifier(self._server.database + TEMPLATE_SUFFIX)

    def _learn(self) -> None:
        admin = self.admin
        can_restore = bool(one(admin, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
        if can_restore:
            # Triggers and foreign keys hold already for what is put back.
            admin.execute("SET session_replication_role = replica")
            admin.execute("SET client_min_messages = warning")
            admin.execute("SET auto_explain.log_min_duration = -1")
            admin.execute("SET plan_cache_mode = force_generic_plan")  # the same few questions, thousands of times
        self.tables = {
            row[0]: Table(row[0], row[1], row[2], tuple(row[4]), frozenset(row[5]), row[3] == "p")
            for row in admin.execute(_TABLES).fetchall()
        }
        self.sequences = [
            (
                (schema, name),
                *(
                    admin.execute(
                        sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, name))
                    ).fetchone()
                    or (1, False)
                ),
            )
            for schema, name, _ in admin.execute(_SEQUENCES).fetchall()
        ]
        self._partitioned = {
            row[0]: (sql.Identifier(row[1], row[2]), frozenset(row[3]))
            for row in admin.execute(_PARTITIONED).fetchall()
        }
        self.can_put_back = can_restore and not one(admin, _FIRES_ALWAYS)
        self._copies = {oid: self._copy_out(table) for oid, table in self.tables.items()}
        self.fingerprint = self.take_fingerprint()
        views = [(row[0], row[1]) for row in admin.execute(_MATERIALIZED_VIEWS).fetchall()]
        self._select = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {}, to_jsonb(x.*)::text FROM ONLY {} x").format(
                sql.Literal(f"{schema}.{name}"), sql.Identifier(schema, name)
            )
            for schema, name in [*((table.schema, table.name) for table in self.tables.values()), *views]
        )
        if self.can_put_back:  # so that even the first execution finds the rows where the others do
            self.restore(self.tables)

    def _copy_out(self, table: Table) -> bytes:
        if not table.columns:
            return b""
        with self.admin.cursor() as cursor, cursor.copy(_copy(table, "TO STDOUT")) as copy:
            return b"".join(bytes(part) for part in copy)

    def take_fingerprint(self) -> str:
        """Return a digest of everything that the catalog defines."""
        return str(one(self.admin, _FINGERPRINT))

    def restore(self, changed: Iterable[int] | None = None) -> None:
        """Put back the tables with these oids, all of them if none are named, and every sequence."""
        oids = self._with_referring(self.tables if changed is None else changed)
        tables = [table for oid, table in self.tables.items() if oid in oids]
        with self.admin.transaction():
            if tables:
                # Each name needs an ONLY of its own; a partitioned table has no rows, and is taken with its partitions.
                names: list[sql.Composable] = [sql.SQL("ONLY {}").format(table.identifier) for table in tables]
                names += [name for oid, (name, _) in self._partitioned.items() if oid in oids]
                self.admin.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
            for table in tables:
                if table.columns:
                    with self.admin.cursor() as cursor, cursor.copy(_copy(table, "FROM STDIN")) as copy:
                        copy.write(self._copies[table.oid])
            if self.sequences:
                self.admin.execute(
                    sql.SQL("SELECT {}").format(
                        sql.SQL(", ").join(
                            sql.SQL("setval({}::regclass, {}, {})").format(
                                sql.Literal(sql.Identifier(*name).as_string(self.admin)),
                                sql.Literal(value),
                                sql.Literal(called),
                            )
                            for name, value, called in self.sequences
                        )
                    )
                )

    def _with_referring(self, oids: Iterable[int]) -> Collection[int]:
        """Return these tables and those that refer to them: TRUNCATE takes them together (manual, TRUNCATE)."""
        found = {table.oid for table in self.tables.values() if not table.is_logged}
        todo = [oid for oid in oids if oid in self.tables]
        while todo:
            oid = todo.pop()
            if oid in found:
                continue
            found.add(oid)
            if oid in self._partitioned:
                todo += self._partitioned[oid][1]
            elif oid in self.tables:
                todo += self.tables[oid].referring
        return found

    def recreate(self) -> Connection:
        """Drop the database and copy it from its template; return the new connection of ours."""
        if not self._recreates:
            raise NotStarted(
                f"the definition of {self._server.database} was changed, and it is not ours to be made anew: "
                "undo the change, and let the engine make its own database"
            )
        database = sql.Identifier(self._server.database)
        self.admin.close()
        with self._server.connect("postgres") as other:
            other.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
            other.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(database, self._template))
            self._preset_again(other, database)
        self.recreated += 1
        self.admin = self._server.connect()
        if self._change is not None:
            self._change(self.admin)
        self._learn()
        return self.admin

    def _preset_again(self, other: Connection, database: sql.Identifier) -> None:
        """Let the database preset what it did: a copy does not (manual, CREATE DATABASE)."""
        for name, value in self._presets:
            with other.transaction():
                other.execute("SELECT set_config(%s, %s, true)", [name, value])
                setting = sql.Identifier(*name.split("."))
                other.execute(sql.SQL("ALTER DATABASE {} SET {} FROM CURRENT").format(database, setting))

    def read_rows(self) -> Rows:
        """Return the committed rows of all tables and materialized views."""
        rows: Rows = {table.qualified: [] for table in self.tables.values()}
        if self.tables:
            for name, row in self.admin.execute(self._select):
                rows.setdefault(name, []).append(row)
        return {name: sorted(found) for name, found in rows.items()}

    def look_at_rows(self) -> Rows | None:
        """Return the committed rows while participants stand; None if one of them keeps others from a table."""
        try:
            with self.admin.transaction():
                self.admin.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOOK_MS)))
                return self.read_rows()
        except psycopg.errors.LockNotAvailable:
            return None

    def drop_template(self) -> None:
        """Remove the template."""
        if self._recreates:
            with self._server.connect("postgres") as other:
                other.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(self._template))


def digest(rows: Rows) -> str:
    """Return a short name for a state of the database."""
    return hashlib.sha256(repr(sorted(rows.items())).encode()).hexdigest()[:12]


def _copy(table: Table, direction: str) -> sql.Composed:
    columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
    return sql.SQL("COPY {} ({}) {} (FORMAT binary)").format(table.identifier, columns, sql.SQL(direction))
