"""The bank's tables as the audit reads them, whatever was done to them by hand.

What is as it was made is read as it is. Of a column of another type, each value is read as what was meant, or as NULL
where it is none; a column that is not there reads as NULL, a table that is not there as empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Column
from sqlalchemy.dialects import postgresql

from bank.errors import one_line
from bank.findings import EXAMPLES_MAX
from bank.postgres import models, versions
from bank.postgres.database import Transaction

VALUE_MAX = 60
READ: Mapping[str, Sequence[str]] = {
    "accounts": ("id", "opening", "balance", "last_entry"),
    "entries": (
        *("id", "transfer_id", "account_id", "seq", "previous_entry"),
        *("delta", "before", "after", "read_at", "written_at"),
    ),
    "transfers": ("id", "debit", "credit", "amount", "status", "run", "decided_at", "instance", "thread"),
    "runs": ("id",),
}
"""What the audit reads, table by table."""
NAMES = 5
"""So many of a table's columns, the first ones, are told to say which row is meant."""

CATALOG = """
    SELECT c.relname, a.attname, format_type(a.atttypid, NULL), EXISTS (
        SELECT FROM pg_index WHERE indrelid = c.oid AND indisunique AND indisvalid AND indpred IS NULL
               AND indexprs IS NULL AND indnkeyatts = 1 AND indkey[0] = a.attnum)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE n.nspname = %(schema)s AND c.relname = ANY(%(tables)s) AND c.relkind = ANY('{r,p,v,m,f}')
          AND a.attnum > 0 AND NOT a.attisdropped
"""
SEQUENCE = """
    SELECT CASE WHEN has_sequence_privilege(c.oid, 'USAGE,SELECT') THEN coalesce(pg_sequence_last_value(c.oid), 0) END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(sequence)s AND c.relkind = 'S'
"""
INTEGER = """
    CASE WHEN {is_valid} THEN
        CASE WHEN {text}::numeric = trunc({text}::numeric)
                  AND {text}::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
             THEN {text}::numeric::bigint END END
"""
OTHER = "CASE WHEN {is_valid} THEN {text}::{meant} END"
IS_VALID = "pg_input_is_valid({text}, '{read_as}')"
DATE_AND_TIME = (  # without a year 0, which there was not
    "^(?!0000)[0-9]{4}-[0-9]{2}-[0-9]{2}[ T]([01][0-9]|2[0-3])(:[0-5][0-9]){2}([.][0-9]{1,6})?"
    "([+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)?$"
)
IS_VALID_BEFORE_16: Mapping[str, str] = {
    "numeric": r"{text} ~ '^\s*[+-]?[0-9]{{1,200}}([.][0-9]{{0,200}})?\s*$'",
    "uuid": "{text} ~* '^[0-9a-f]{{8}}(-?[0-9a-f]{{4}}){{3}}-?[0-9a-f]{{12}}$'",
    # JSON path finds out that a day does not exist, and raises nothing.
    "timestamp with time zone": (
        "({text} ~ '^-?infinity$' OR ({text} ~ '" + DATE_AND_TIME.replace("{", "{{").replace("}", "}}") + "'"
        " AND jsonb_path_exists(to_jsonb(replace(left({text}, 19), 'T', ' ')), '$.datetime()', '{{}}', true)))"
    ),
}
"""Whether a text can be read: what Postgres itself writes of such a value, where it cannot be asked. Any other type of
ours is text."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A table to read from, in SQL that has only names and types of our own.

    ``source`` stands in a FROM clause, and has the columns of READ with the types that were meant. ``readable`` is the
    condition for rows that have a value wherever there must be one. Where a constraint sees to that, Postgres leaves
    the condition out, and ``unreadable``, its opposite, costs nothing (release notes of 17: "Remove IS NOT NULL
    restrictions from queries on NOT NULL columns"). ``changes`` says what is not as it was made; ``unique`` names the
    columns in which Postgres lets no value be twice.
    """

    source: str
    readable: str
    unreadable: str
    texts: str
    lacking: str
    changes: tuple[str, ...]
    unique: frozenset[str]


class Unreadable(NamedTuple):
    """Rows of a table that lack a value: how many, and the first few in words."""

    table: str
    rows: int
    examples: list[str]


def read_relations(transaction: Transaction) -> dict[str, Relation]:
    """Return the tables of READ, by name, as they are now."""
    found: dict[str, list[tuple[str, str, bool]]] = {name: [] for name in READ}
    asked = {"schema": models.SCHEMA, "tables": list(READ)}
    for table, *column in transaction.execute(CATALOG, asked):
        found[table].append(tuple(column))
    asks = versions.can(transaction.raw, versions.INPUT_IS_VALID)
    return {table: _relation(table, tuple(found[table]), asks) for table in READ}


def find_last_drawn(transaction: Transaction, sequence: str) -> int | None:
    """Return the last number that a sequence gave, 0 if it gave none; None if it is not there, or not ours to see."""
    row = transaction.execute(SEQUENCE, {"schema": models.SCHEMA, "sequence": sequence}).fetchone()
    return None if row is None else row[0]


def find_unreadable(transaction: Transaction, relations: Mapping[str, Relation]) -> list[Unreadable]:
    """Return the tables that have rows without a value where there must be one, or with one that cannot be read."""
    found: dict[str, Unreadable] = {}
    for name, rows, texts, lacking in transaction.execute(ask_unreadable(relations)):
        found.setdefault(name, Unreadable(name, rows, [])).examples.append(_tell_row(name, texts, lacking))
    return list(found.values())


def ask_unreadable(relations: Mapping[str, Relation]) -> str:
    """Return the query for the rows that lack a value."""
    return " UNION ALL ".join(
        f"(SELECT '{name}', count(*) OVER (), {relation.texts}, {relation.lacking} FROM {relation.source} AS it"  # noqa: S608 - of names and types that are quoted
        f" WHERE {relation.unreadable} ORDER BY 3 LIMIT {EXAMPLES_MAX})"
        for name, relation in relations.items()
    )


def _tell_row(table: str, texts: Sequence[str | None], lacking: Sequence[str]) -> str:
    """Return in words which row it is, and what it lacks."""
    shown = {
        name: "NULL" if text is None else one_line(text, VALUE_MAX)
        for name, text in zip(READ[table], texts, strict=True)
    }
    row = ", ".join(f"{name} {shown[name]}" for name in READ[table][:NAMES])
    lacks = (
        f"{name} is {shown[name]}" + ("" if shown[name] == "NULL" else f", which is no {_column(table, name).meant}")
        for name in lacking
    )
    return f"{table}, the row with {row}: {'; '.join(lacks)}"


@lru_cache(maxsize=64)
def _relation(table: str, there: tuple[tuple[str, str, bool], ...], asks: bool) -> Relation:  # noqa: FBT001 - cached
    """Return a table as it is to be read, from its columns: the name of each, its type, and whether it is unique.

    ``asks`` is whether Postgres can be asked if a text can be read as a type.
    """
    kinds = {name: kind for name, kind, _ in there}
    columns = [_column(table, name, kinds.get(name)) for name in READ[table]]
    changes = tuple(f"{table}.{column.change}" for column in columns if column.is_changed)
    source = f"{models.SCHEMA}.{table}"
    if changes:
        parts = ", ".join(part for column in columns for part in column.read(asks=asks))
        # OFFSET 0: what may be read only where it is valid is not moved elsewhere.
        source = f"(SELECT {parts} {f'FROM {source}' if there else 'WHERE false'} OFFSET 0)"
    # Of a column that is not there, that is told, and not row by row.
    lacking = {one.name: one.lacks for one in columns if one.kind and (one.is_required or one.is_changed)}
    return Relation(
        source=source,
        readable=" AND ".join(f"{column.name} IS NOT NULL" for column in columns if column.is_required),
        unreadable=" OR ".join(lacking.values()) or "false",
        texts=f"ARRAY[{', '.join(column.text for column in columns)}]",
        lacking=f"array_remove(ARRAY[{', '.join(_name_where(*one) for one in lacking.items())}]::text[], NULL)",
        changes=changes if there else (f"{table} is missing",),
        unique=frozenset(name for name, _, is_unique in there if is_unique),
    )


def _name_where(name: str, condition: str) -> str:
    return f"CASE WHEN {condition} THEN '{name}' END"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column to be read: its name, the type that was meant, and the one that it has, None if it is not there."""

    name: str
    is_required: bool
    meant: str
    kind: str | None

    @property
    def is_changed(self) -> bool:
        return self.kind != self.meant

    @property
    def change(self) -> str:
        """Return what is not as it was made."""
        if self.kind is None:
            return f"{self.name} is missing"
        return f"{self.name} is {one_line(self.kind, VALUE_MAX)}, and was {self.meant}"

    @property
    def text(self) -> str:
        """Return the value as it is, as text."""
        return f'"{self.name} as it is"' if self.is_changed else f"{self.name}::text"

    @property
    def lacks(self) -> str:
        """Return the condition for rows that lack the value, or have one that cannot be read."""
        return f"{self.name} IS NULL" if self.is_required else f"({self.name} IS NULL AND {self.text} IS NOT NULL)"

    def read(self, *, asks: bool) -> Iterator[str]:
        """Yield what a SELECT lists to have the value as it was meant, and its text where it is of another type."""
        if not self.is_changed:
            yield self.name
            return
        text = "NULL::text" if self.kind is None else f"{self.name}::text"
        is_integer = self.meant in ("bigint", "integer")
        read_as = "numeric" if is_integer else self.meant
        is_valid = (IS_VALID if asks else IS_VALID_BEFORE_16.get(read_as, "true")).format(text=text, read_as=read_as)
        template = INTEGER if is_integer else OTHER
        yield f"{template.format(text=text, meant=self.meant, is_valid=is_valid)} AS {self.name}"
        yield f"{text} AS {self.text}"


def _column(table: str, name: str, kind: str | None = None) -> _Column:
    """Return a column of ours with the type that it has."""
    column: Column[Any] = models.metadata.tables[f"{models.SCHEMA}.{table}"].columns[name]
    meant = column.type.compile(dialect=postgresql.dialect()).lower()  # type: ignore[no-untyped-call]
    return _Column(name, not column.nullable, "character varying" if meant == "varchar" else meant, kind)
