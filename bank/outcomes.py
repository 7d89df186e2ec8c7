"""Whether every accepted transfer has one outcome, and the entries that go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from bank.errors import one_line
from bank.findings import EXAMPLES_MAX, Finding, add_case, list_first
from bank.postgres.columns import VALUE_MAX, Relation
from bank.postgres.database import Transaction
from bank.postgres.models import APPLIED, FAILED, PENDING, REFUSED, STATUSES

TOLD_FROM, TOLD_BEFORE = "0002-01-01T00:00:00Z", "9999-01-01T00:00:00Z"
"""Times that can be told: Python has the years from 1 to 9999, and a time zone moves them by up to a day."""

COUNT = """
    SELECT status, run, count(*), run IS NOT NULL AND EXISTS (SELECT FROM {runs} AS runs WHERE runs.id = run)
    FROM {transfers} AS transfers GROUP BY status, run
"""
HAS_RUNS = "SELECT EXISTS (SELECT FROM {runs} AS runs)"
OF_NO_RUN = """
    SELECT id FROM {transfers} AS transfers WHERE status = 'pending' AND run IS NOT DISTINCT FROM %(run)s
    ORDER BY id LIMIT %(most)s
"""
TWICE = """
    SELECT id, count(*) FROM {transfers} AS transfers WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1
"""
# What is right is said once, and all else is wrong, NULL included. The amount is known to be positive where its
# negative is taken: the smallest number has none.
WRONG = """
    SELECT t.id, t.status, t.debit, t.credit, t.amount, t.decided_at IS NOT NULL, e.transfer_id, e.legs,
           e.debit::numeric = -t.amount::numeric AND e.credit = t.amount
               AND e.debited = t.debit AND e.credited = t.credit,
           e.earliest >= {told_from} AND e.latest < {told_before}
    FROM {transfers} AS t FULL JOIN (
        SELECT transfer_id, count(*) AS legs, min(delta) AS debit, max(delta) AS credit,
               min(account_id) FILTER (WHERE delta < 0) AS debited,
               min(account_id) FILTER (WHERE delta > 0) AS credited,
               min(least(read_at, written_at)) AS earliest, max(greatest(read_at, written_at)) AS latest
        FROM {entries} AS entries GROUP BY transfer_id
    ) e ON e.transfer_id = t.id
    WHERE CASE WHEN t.amount > 0 AND t.debit <> t.credit THEN CASE t.status
        WHEN 'applied' THEN e.legs = 2 AND e.debit = -t.amount AND e.credit = t.amount
            AND e.debited = t.debit AND e.credited = t.credit AND e.earliest >= {told_from} AND e.latest < {told_before}
        WHEN 'pending' THEN e.legs IS NULL AND t.decided_at IS NULL
        WHEN 'refused' THEN e.legs IS NULL AND t.decided_at IS NOT NULL
        WHEN 'failed' THEN e.legs IS NULL AND t.decided_at IS NOT NULL
    END END IS NOT TRUE
"""
ENTRIES = """
    SELECT id, delta, account_id FROM {entries} AS entries
    WHERE transfer_id IS NOT DISTINCT FROM %(transfer)s ORDER BY id LIMIT %(most)s
"""
OUT_OF_TIME = """
    SELECT id, read_at::text, written_at::text FROM {entries} AS entries
    WHERE transfer_id IS NOT DISTINCT FROM %(transfer)s
        AND (least(read_at, written_at) >= {told_from} AND greatest(read_at, written_at) < {told_before}) IS NOT TRUE
    ORDER BY id LIMIT %(most)s
"""


@dataclass(slots=True)
class Outcomes:
    """How many transfers have each status, and how many took effect more than once."""

    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    duplicates: int = 0


class _Wrong(NamedTuple):
    """A transfer that is not as it should be, with its entries, or the entries of none.

    ``legs`` is None where it has no entries; ``as_ordered`` and ``has_times`` are None where that cannot be said.
    """

    id: UUID | None
    status: str | None
    debit: int | None
    credit: int | None
    amount: int | None
    is_decided: bool
    of: UUID | None
    legs: int | None
    as_ordered: bool | None
    has_times: bool | None


class _Ask(Protocol):
    """Asks the bank one of the queries above."""

    def __call__(self, query: str, **parameters: object) -> list[tuple[Any, ...]]: ...


def check_outcomes(transaction: Transaction, relations: Mapping[str, Relation], findings: list[Finding]) -> Outcomes:
    """Check all transfers against their entries, and add to the findings what is wrong."""
    parts = {name: relation.source for name, relation in relations.items()}
    parts |= {"told_from": f"'{TOLD_FROM}'", "told_before": f"'{TOLD_BEFORE}'"}

    def ask(query: str, **parameters: object) -> list[tuple[Any, ...]]:
        return transaction.execute(query.format(**parts), parameters or None).fetchall()

    # Every row of both tables is read anyway. By the index, whose order is random, a million take twice as long.
    transaction.execute("SET LOCAL enable_indexscan = off")
    result = Outcomes()
    _count_statuses(ask, result, findings)
    if "id" not in relations["transfers"].unique:
        for transfer, count in ask(TWICE):
            add_case(findings, "once", "transfer twice", f"transfer {transfer} is there {count} times")
    for row in ask(WRONG):
        wrong = _Wrong._make(row)
        find = partial(ask, transfer=wrong.of, most=EXAMPLES_MAX)
        result.duplicates += wrong.id is not None and (wrong.legs or 0) > 2
        if wrong.has_times is False:
            add_case(findings, "lineage", "time", partial(_tell_times, find))
        for kind, message in _explain(wrong, partial(_name_entries, find, wrong.legs or 0)):
            add_case(findings, "once", kind, message)
    return result


def _count_statuses(ask: _Ask, result: Outcomes, findings: list[Finding]) -> None:
    """Count the transfers with each status. Of those that are pending, no reconciler will ever publish some."""
    for status, run, count, is_known in ask(COUNT):
        if status in result.statuses:
            result.statuses[status] += count
        if status == PENDING and not is_known and ask(HAS_RUNS) == [(True,)]:
            ids = [str(row[0]) for row in ask(OF_NO_RUN, run=run, most=EXAMPLES_MAX)]
            which = "no run" if run is None else f"run {run}, which is not there"
            message = f"pending, and never published again: of {which}, transfers {list_first(ids, count)}"
            add_case(findings, "once", "no run", message, count)


def _explain(wrong: _Wrong, name_entries: Callable[[], str]) -> Iterator[tuple[str, str | Callable[[], str]]]:
    """Yield what is wrong with a transfer, as (kind, message); nothing of one that lacks a value, which is told."""
    it = f"transfer {wrong.id}"
    if wrong.id is None:
        if wrong.legs:
            yield "no transfer", lambda: f"{name_entries()} belong to no accepted transfer ({wrong.of or 'NULL'})"
        return
    if None in (wrong.status, wrong.debit, wrong.credit, wrong.amount):
        return
    yield from _explain_row(wrong)
    legs = wrong.legs or 0
    if wrong.status != APPLIED:
        if legs:
            yield "not applied", lambda: f"{it} is {_show(wrong.status)}, but has {name_entries()}"
    elif legs > 2:
        yield "applied twice", lambda: f"{it} took effect more than once: it has {legs} entries, {name_entries()}"
    elif legs < 2:
        yield (
            "missing entry",
            lambda: f"{it} is applied, but has {legs} of its 2 entries" + (f": {name_entries()}" if legs else ""),
        )
    elif not wrong.as_ordered:
        ordered = f"{it} ordered {wrong.amount} from {wrong.debit} to {wrong.credit}"
        yield "wrong legs", lambda: f"{ordered}; it has {name_entries()}"


def _explain_row(wrong: _Wrong) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the row of a transfer, whatever entries it has."""
    it = f"transfer {wrong.id}"
    if wrong.amount is not None and wrong.amount <= 0:
        yield "amount", f"{it} orders {wrong.amount}, which is not above zero"
    if wrong.debit == wrong.credit:
        yield "same account", f"{it} goes from account {wrong.debit} to itself"
    if wrong.status not in STATUSES:
        yield "unknown status", f"{it} is {_show(wrong.status)}, which is no outcome"
    elif wrong.status == PENDING and wrong.is_decided:
        yield "outcome undone", f"{it} is pending, but has the time of an outcome"
    elif wrong.status in (REFUSED, FAILED) and not wrong.is_decided:
        yield "never decided", f"{it} is {wrong.status}, but has no time at which that was decided"


def _show(status: str | None) -> str:
    return str(status) if status in STATUSES else one_line(repr(status), VALUE_MAX)


def _name_entries(find: Callable[[str], list[tuple[Any, ...]]], count: int) -> str:
    """Return which entries those of a transfer are: the first few, and how many more."""
    names = [
        f"{'NULL' if entry is None else entry} ({'NULL' if delta is None else f'{delta:+d}'} on account {account})"
        for entry, delta, account in find(ENTRIES)
    ]
    return f"entries {list_first(names, count)}"


def _tell_times(find: Callable[[str], list[tuple[Any, ...]]]) -> str:
    """Return when the entries of a transfer were read and written that have times that cannot be told."""
    times = [
        f"entry {entry} was read at {read}, and written at {written}" for entry, read, written in find(OUT_OF_TIME)
    ]
    return f"{'; '.join(times)}: not within the years 2 to 9998"
