"""Five invariants of the bank, checked from the database alone.

A total that adds up proves nothing: two postings that were overwritten can cancel each other out. So the audit follows
every account's lineage, names each lost posting with the entry that overwrote it, and demands that the lost postings
explain the drift to the last minor unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, LiteralString

from psycopg import sql

from bank.findings import EXAMPLES_MAX, Finding, add_case, list_first
from bank.journal import Journal
from bank.lineage import AccountLineage, AccountRow, EntryRow, LostPosting
from bank.outcomes import TOLD_BEFORE, TOLD_FROM, check_outcomes
from bank.postgres import models
from bank.postgres.columns import Relation, find_unreadable, read_relations
from bank.postgres.database import Database, Transaction

INVARIANTS = ("total", "accounts", "lineage", "once", "overdraft")
INVARIANT_OF = {"accounts": "accounts", "entries": "lineage", "transfers": "once", "runs": "once"}
"""What cannot be checked where a table is not as it was made."""
ACCOUNTS = "SELECT id, opening, balance, last_entry FROM {} AS accounts ORDER BY id DESC"


@dataclass(frozen=True, slots=True)
class PostingTold:
    """One entry with all that is known about it: for telling how it came about. Times are Postgres' clock.

    ``committed_at`` is None where the server does not keep commit times (``track_commit_timestamp``).
    """

    entry: int
    account: int
    transfer: str
    instance: str | None
    thread: str | None
    delta: int
    before: int
    after: int
    previous_entry: int | None
    seq: int
    read_at: datetime
    written_at: datetime | None
    committed_at: datetime | None


@dataclass(slots=True)
class Audit:
    """What is in the bank now, in minor units, and every invariant that fails.

    ``unexplained`` is what is left of the drift after the lost postings. ``pending`` transfers are no failure: a run
    that was cut short is unfinished, not broken. ``duplicates`` are transfers that took effect more than once.
    """

    accounts: int = 0
    transfers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(models.STATUSES, 0))
    entries: int = 0
    opening_total: int = 0
    closing_total: int = 0
    lost_postings: int = 0
    lost_delta: int = 0
    clobbers: int = 0
    unexplained: int = 0
    overdrawn: int = 0
    duplicates: int = 0
    findings: list[Finding] = field(default_factory=list)
    example: tuple[PostingTold, PostingTold] | None = None
    """One lost posting and the posting that overwrote it."""

    @property
    def drift(self) -> int:
        """Return the money in the bank now minus the money at opening."""
        return self.closing_total - self.opening_total

    @property
    def passed(self) -> bool:
        """Whether all five invariants hold."""
        return not self.findings

    def found(self, invariant: str, kind: str, message: str) -> None:
        """Add a case to its finding."""
        add_case(self.findings, invariant, kind, message)

    def as_json(self) -> dict[str, Any]:
        """Return the audit as plain values, for a result file."""
        plain = asdict(self)
        plain.update(drift=self.drift, passed=self.passed)
        if self.example is not None:
            plain["example"] = [
                {key: _plain(value) for key, value in asdict(posting).items()} for posting in self.example
            ]
        return plain


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def audit(database: Database) -> Audit:
    """Audit the whole bank, in one snapshot: transfers may go on meanwhile.

    Reads each entry once, in the order of the index on (account, seq), with a cursor in the server. Whatever was done
    to a row or a column by hand is a finding, and no error.
    """
    with database.transaction("REPEATABLE READ") as transaction:
        transaction.execute("SET TRANSACTION READ ONLY")
        return audit_within(transaction)


def audit_within(transaction: Transaction) -> Audit:
    """Audit the bank as a transaction sees it."""
    result = Audit()
    relations = read_relations(transaction)
    for table, relation in relations.items():
        for change in relation.changes:
            result.found(INVARIANT_OF[table], "schema", change)
    for table, rows, examples in find_unreadable(transaction, relations):
        result.findings.append(Finding(INVARIANT_OF[table], "no value", rows, examples))
    _check_accounts(transaction, relations, result)
    outcomes = check_outcomes(transaction, relations, result.findings)
    result.transfers, result.duplicates = outcomes.statuses, outcomes.duplicates
    result.findings.sort(key=lambda finding: INVARIANTS.index(finding.invariant))
    return result


def _check_accounts(transaction: Transaction, relations: Mapping[str, Relation], result: Audit) -> None:
    example: LostPosting | None = None
    unexplained = 0
    for lineage in _lineages(transaction, relations, result):
        unexplained += abs(lineage.unexplained)
        _add_lineage(result, lineage)
        for lost in lineage.lost:
            if example is None or _plainness(lost) > _plainness(example):
                example = lost
    if result.drift:
        result.found(
            "total", "drift", f"{result.opening_total} at opening, {result.closing_total} now: {result.drift:+d}"
        )
    result.unexplained = max(unexplained, abs(result.drift + result.lost_delta))
    if result.unexplained:
        result.found(
            "total",
            "unexplained",
            f"{result.unexplained} that no lost posting explains: something else than a transfer changed a row",
        )
    if example is not None and not relations["entries"].changes and not relations["transfers"].changes:
        told = {posting.entry: posting for posting in tell(transaction, [example.entry, example.culprit])}
        if len(told) == 2:
            result.example = (told[example.entry], told[example.culprit])


def _add_lineage(result: Audit, lineage: AccountLineage) -> None:
    """Add what an account's entries say."""
    account = lineage.account
    result.entries += lineage.entries
    result.clobbers += lineage.clobbers
    result.lost_postings += len(lineage.lost)
    result.lost_delta += sum(lost.delta for lost in lineage.lost)
    result.overdrawn += lineage.overdrawn
    for lost in lineage.lost:
        result.found(
            "lineage",
            "lost posting",
            f"account {account.id}: entry {lost.entry} ({lost.delta:+d}) is off the books, "
            f"overwritten by entry {lost.culprit}",
        )
    for flaw in lineage.flaws:
        result.found("lineage", flaw.kind, flaw.message)
    if lineage.overdrawn:
        result.found("overdraft", "overdraft", f"account {account.id} went below zero; it now holds {account.balance}")
    if lineage.all_deltas != account.balance - account.opening:
        result.found(
            "accounts",
            "balance",
            f"account {account.id} holds {account.balance}, but it was opened with {account.opening} "
            f"and its entries add up to {lineage.all_deltas:+d}",
        )


def _plainness(lost: LostPosting) -> tuple[bool, bool, int]:
    """Return how well a lost posting serves as the example: the plainer and the larger, the better."""
    return lost.same_read, lost.direct, abs(lost.delta)


def _read_accounts(
    transaction: Transaction, relations: Mapping[str, Relation], result: Audit
) -> dict[int, AccountRow | None]:
    """Return the accounts by id, the highest first; None for one whose row cannot be read, which is told already."""
    accounts: dict[int, AccountRow | None] = {}
    for row in transaction.execute(ACCOUNTS.format(relations["accounts"].source)):
        account, opening, balance, _ = row
        result.accounts += 1
        result.opening_total += opening or 0
        result.closing_total += balance or 0
        if account in accounts:
            result.found("accounts", "account twice", f"account {account} is there twice; one row holds {balance}")
        elif account is not None:
            accounts[account] = None if None in (opening, balance) else AccountRow._make(row)
    return accounts


def _lineages(transaction: Transaction, relations: Mapping[str, Relation], result: Audit) -> Iterator[AccountLineage]:
    """Yield every account's lineage; add to the findings what belongs to no account, and what no sequence has given."""
    journal = Journal(transaction, relations["entries"])
    accounts = _read_accounts(transaction, relations, result)
    with journal.read_all() as groups:
        group = next(groups, None)
        for account_id, account in accounts.items():
            while group is not None and group[0] > account_id:
                _no_account(result, *group)
                group = next(groups, None)
            entries: Iterator[EntryRow] = iter(())
            if group is not None and group[0] == account_id:
                entries = group[1]
            if account is None:
                result.entries += sum(1 for _ in entries)
            else:
                yield journal.trace(account, entries)
            if group is not None and group[0] == account_id:
                group = next(groups, None)
        while group is not None:
            _no_account(result, *group)
            group = next(groups, None)
    set_back = journal.tell_set_back()
    if set_back is not None:
        result.found("lineage", "seq", set_back)


def _no_account(result: Audit, account_id: int, entries: Iterator[EntryRow]) -> None:
    names = [str(entry.id) for entry in islice(entries, EXAMPLES_MAX)]
    named = list_first(names, len(names) + sum(1 for _ in entries))
    result.found("accounts", "no account", f"entries {named} belong to account {account_id}, which does not exist")


TELL: LiteralString = """
    SELECT e.id, e.account_id, e.transfer_id::text, t.instance, t.thread, e.delta, e.before, e.after,
           e.previous_entry, e.seq, e.read_at,
           CASE WHEN e.written_at >= {begin} AND e.written_at < {end} THEN e.written_at END, {committed}
    FROM entries e LEFT JOIN transfers t ON t.id = e.transfer_id
    WHERE e.id = ANY(%(ids)s) AND e.read_at >= {begin} AND e.read_at < {end}
        AND num_nulls(e.account_id, e.transfer_id, e.delta, e.before, e.after, e.seq) = 0
    ORDER BY e.seq
"""


def tell(transaction: Transaction, entries: Sequence[int]) -> list[PostingTold]:
    """Return what is known about some entries, in the order in which they were written.

    Those are left out that lack what must be told, or say that they were read at no time that can be.
    """
    tracked = transaction.execute("SHOW track_commit_timestamp").fetchone() == ("on",)
    statement = sql.SQL(TELL).format(
        committed=sql.SQL("pg_xact_commit_timestamp(e.xmin)" if tracked else "NULL::timestamptz"),
        begin=sql.Literal(TOLD_FROM),
        end=sql.Literal(TOLD_BEFORE),
    )
    return [PostingTold(*row) for row in transaction.raw.execute(statement, {"ids": list(entries)})]
