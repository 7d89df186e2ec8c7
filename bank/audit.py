"""Five invariants of the bank, checked from the database alone.

A total that adds up proves nothing: two postings that were overwritten can cancel each other out. So the audit follows
every account's lineage, names each lost posting with the entry that overwrote it, and demands that the lost postings
explain the drift to the last minor unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

import psycopg

from bank.lineage import AccountLineage, AccountRow, EntryRow, LostPosting, trace
from bank.postgres import models
from bank.postgres.database import Database, Transaction

EXAMPLES_MAX = 3
FETCH_ROWS = 20_000

INVARIANTS = ("total", "accounts", "lineage", "once", "overdraft")


@dataclass(slots=True)
class Finding:
    """One way in which an invariant failed: how often, and the first few cases."""

    invariant: str
    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, message: str, count: int = 1) -> None:
        """Count a case, and keep its message if it is among the first."""
        self.count += count
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(message)


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
        for finding in self.findings:
            if (finding.invariant, finding.kind) == (invariant, kind):
                break
        else:
            finding = Finding(invariant, kind)
            self.findings.append(finding)
        finding.add(message)

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

    Reads each entry once, in the order of the index on (account, seq), with a cursor in the server.
    """
    result = Audit()
    with database.transaction("REPEATABLE READ") as transaction:
        transaction.execute("SET TRANSACTION READ ONLY")
        _check_accounts(transaction, result)
        _check_transfers(transaction, result)
    result.findings.sort(key=lambda finding: INVARIANTS.index(finding.invariant))
    return result


def _check_accounts(transaction: Transaction, result: Audit) -> None:
    example: LostPosting | None = None
    unexplained = 0
    for lineage in _lineages(transaction, result):
        account = lineage.account
        result.accounts += 1
        result.entries += lineage.entries
        result.opening_total += account.opening
        result.closing_total += account.balance
        result.clobbers += lineage.clobbers
        result.lost_postings += len(lineage.lost)
        result.lost_delta += sum(lost.delta for lost in lineage.lost)
        unexplained += abs(lineage.unexplained)
        result.overdrawn += lineage.overdrawn
        for lost in lineage.lost:
            result.found(
                "lineage",
                "lost posting",
                f"account {account.id}: entry {lost.entry} ({lost.delta:+d}) is off the books, "
                f"overwritten by entry {lost.culprit}",
            )
            if example is None or _plainness(lost) > _plainness(example):
                example = lost
        for flaw in lineage.flaws:
            result.found("lineage", flaw.kind, flaw.message)
        if lineage.overdrawn:
            result.found(
                "overdraft", "overdraft", f"account {account.id} went below zero; it now holds {account.balance}"
            )
        if lineage.all_deltas != account.balance - account.opening:
            result.found(
                "accounts",
                "balance",
                f"account {account.id} holds {account.balance}, but it was opened with {account.opening} "
                f"and its entries add up to {lineage.all_deltas:+d}",
            )
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
    if example is not None:
        told = {posting.entry: posting for posting in tell(transaction, [example.entry, example.culprit])}
        result.example = (told[example.entry], told[example.culprit])


def _plainness(lost: LostPosting) -> tuple[bool, bool, int]:
    """Return how well a lost posting serves as the example: the plainer and the larger, the better."""
    return lost.same_read, lost.direct, abs(lost.delta)


def _lineages(transaction: Transaction, result: Audit) -> Iterator[AccountLineage]:
    """Yield every account's lineage, and, last, what belongs to no account."""

    def exists(entry_id: int) -> bool:
        return transaction.execute("SELECT 1 FROM entries WHERE id = %(id)s", {"id": entry_id}).fetchone() is not None

    rows = transaction.execute("SELECT id, opening, balance, last_entry FROM accounts ORDER BY id DESC")
    accounts = [AccountRow._make(row) for row in rows]
    with transaction.raw.cursor("audit_entries") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(
            "SELECT account_id, id, seq, previous_entry, delta, before, after FROM entries"
            " ORDER BY account_id DESC, seq DESC"
        )
        groups = groupby(map(EntryRow._make, cursor), key=attrgetter("account_id"))
        group = next(groups, None)
        for account in accounts:
            while group is not None and group[0] > account.id:
                _no_account(result, *group)
                group = next(groups, None)
            if group is not None and group[0] == account.id:
                yield trace(account, group[1], exists)
                group = next(groups, None)
            else:
                yield trace(account, (), exists)
        while group is not None:
            _no_account(result, *group)
            group = next(groups, None)


def _no_account(result: Audit, account_id: int, entries: Iterator[EntryRow]) -> None:
    count = sum(1 for _ in entries)
    result.found("accounts", "no account", f"{count} entries belong to account {account_id}, which does not exist")


def _check_transfers(transaction: Transaction, result: Audit) -> None:
    # Every row of both tables is read anyway. By the index, whose order is random, a million take twice as long.
    transaction.execute("SET LOCAL enable_indexscan = off")
    for status, count in transaction.execute("SELECT status, count(*) FROM transfers GROUP BY status"):
        result.transfers[status] = count
    wrong = transaction.execute(
        """
        SELECT t.id, t.status, t.debit, t.credit, t.amount, e.legs, e.total
        FROM transfers t FULL JOIN (
            SELECT transfer_id, count(*) AS legs, sum(delta) AS total, min(delta) AS debit, max(delta) AS credit,
                   min(account_id) FILTER (WHERE delta < 0) AS debited,
                   min(account_id) FILTER (WHERE delta > 0) AS credited
            FROM entries GROUP BY transfer_id
        ) e ON e.transfer_id = t.id
        WHERE t.id IS NULL
           OR (t.status <> 'applied' AND e.legs > 0)
           OR (t.status = 'applied' AND (e.legs = 2 AND e.debit = -t.amount AND e.credit = t.amount
                                         AND e.debited = t.debit AND e.credited = t.credit) IS NOT TRUE)
        """
    )
    for transfer, status, debit, credit, amount, legs, total in wrong:
        result.duplicates += (legs or 0) > 2
        result.found("once", *_wrong_transfer(transfer, status, debit, credit, amount, legs or 0, total))


def _wrong_transfer(
    transfer: object, status: str | None, debit: int, credit: int, amount: int, legs: int, total: int
) -> tuple[str, str]:
    """Return what is wrong with a transfer, as (kind, message)."""
    if status is None:
        return "no transfer", f"{legs} entries belong to no accepted transfer"
    if status != "applied":
        return "not applied", f"transfer {transfer} is {status}, but has {legs} entries"
    if legs > 2:
        return "applied twice", f"transfer {transfer} has {legs} entries: it took effect more than once"
    if legs < 2:
        return "missing entry", f"transfer {transfer} is applied, but has {legs} of its 2 entries"
    return (
        "wrong legs",
        f"transfer {transfer} ordered {amount} from {debit} to {credit}; its entries, with a sum of {total}, do not",
    )


def tell(transaction: Transaction, entries: Sequence[int]) -> list[PostingTold]:
    """Return what is known about some entries, in the order in which they were written."""
    query = """
        SELECT e.id, e.account_id, e.transfer_id::text, t.instance, t.thread, e.delta, e.before, e.after,
               e.previous_entry, e.seq, e.read_at, e.written_at, {committed}
        FROM entries e LEFT JOIN transfers t ON t.id = e.transfer_id
        WHERE e.id = ANY(%(ids)s) ORDER BY e.seq
    """
    tracked = transaction.execute("SHOW track_commit_timestamp").fetchone() == ("on",)
    committed = psycopg.sql.SQL("pg_xact_commit_timestamp(e.xmin)" if tracked else "NULL::timestamptz")
    statement = psycopg.sql.SQL(query).format(committed=committed)
    return [PostingTold(*row) for row in transaction.raw.execute(statement, {"ids": list(entries)})]
