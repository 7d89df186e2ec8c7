"""The journal as the audit reads it: once, account by account, from the last write back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, groupby
from operator import attrgetter

from bank.lineage import AccountLineage, AccountRow, EntryRow, Place, straighten, trace
from bank.postgres.columns import Relation, find_last_drawn
from bank.postgres.database import Transaction

FETCH_ROWS = 20_000
ENTRY = ", ".join(EntryRow._fields)
ALL = "SELECT {entry} FROM {source} AS entries WHERE {readable} ORDER BY account_id DESC, seq DESC"
OF_ACCOUNT = "SELECT {entry} FROM {source} AS entries WHERE account_id = %(account)s AND {readable}"
PLACE = """
    SELECT account_id, {readable} FROM {source} AS entries WHERE id = %(entry)s
    ORDER BY account_id = %(account)s DESC NULLS LAST LIMIT 1
"""


class Journal:
    """All entries that can be read, account by account, in the order of the index on (account, seq)."""

    def __init__(self, transaction: Transaction, relation: Relation) -> None:
        self._transaction = transaction
        self._relation = relation
        self._highest: EntryRow | None = None

    @contextmanager
    def read_all(self) -> Iterator[Iterator[tuple[int, Iterator[EntryRow]]]]:
        """Read with a cursor in the server; accounts and the entries of each come with the highest first."""
        with self._transaction.raw.cursor("audit_entries") as cursor:
            cursor.itersize = FETCH_ROWS
            cursor.execute(self._write(ALL).encode())
            yield groupby(map(EntryRow._make, cursor), key=attrgetter("account_id"))

    def trace(self, account: AccountRow, entries: Iterator[EntryRow]) -> AccountLineage:
        """Trace an account; where its chain leads back up, by its links alone, if that leads anywhere."""
        first = next(entries, None)
        if first is None:
            return trace(account, (), self._find)
        if self._highest is None or first.seq > self._highest.seq:
            self._highest = first
        traced = trace(account, chain((first,), entries), self._find)
        if any(flaw.kind == "cycle" for flaw in traced.flaws):
            return straighten(account, self._read(account.id)) or traced
        return traced

    def tell_set_back(self) -> str | None:
        """Return where the sequence stands, if an entry has a ``seq`` beyond that: it was set back since."""
        drawn = find_last_drawn(self._transaction, "entry_seq")
        last = self._highest
        if drawn is None or last is None or last.seq <= drawn:
            return None
        return (
            f"account {last.account_id}: entry {last.id} has seq {last.seq}, but the sequence entry_seq stands at "
            f"{drawn}: seq restarted, or was changed"
        )

    def _find(self, entry: int, account: int) -> Place | None:
        row = self._transaction.execute(self._write(PLACE), {"entry": entry, "account": account}).fetchone()
        return None if row is None else Place._make(row)

    def _read(self, account: int) -> list[EntryRow]:
        rows = self._transaction.execute(self._write(OF_ACCOUNT), {"account": account})
        return [EntryRow._make(row) for row in rows]

    def _write(self, query: str) -> str:
        return query.format(entry=ENTRY, source=self._relation.source, readable=self._relation.readable)
