"""Follow each account's chain of entries back to its opening balance, and name what fell off it.

Pure: it takes entries and accounts, and knows no database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class EntryRow(NamedTuple):
    """What the lineage needs of an entry."""

    account_id: int
    id: int
    seq: int
    previous_entry: int | None
    delta: int
    before: int
    after: int


class AccountRow(NamedTuple):
    """What the lineage needs of an account."""

    id: int
    opening: int
    balance: int
    last_entry: int | None


class LostPosting(NamedTuple):
    """An entry that was committed and is not in its account's lineage.

    ``culprit`` is the entry that took it off the chain for good. ``direct`` is whether the culprit overwrote this very
    entry, rather than a descendant that had kept it on the chain; ``same_read`` whether, besides, both were computed
    from the same entry: the plainest story there is.
    """

    account_id: int
    entry: int
    delta: int
    culprit: int
    direct: bool
    same_read: bool


class Flaw(NamedTuple):
    """Something that no interleaving of transfers explains: the journal or a row was damaged.

    ``kind`` is one of ``cycle``, ``missing entry``, ``balance``, ``arithmetic`` and ``unlinked``.
    """

    kind: str
    account_id: int
    message: str


@dataclass(slots=True)
class AccountLineage:
    """What one account's entries say. ``unexplained`` is the part of its drift that the lost postings do not explain."""

    account: AccountRow
    entries: int = 0
    lost: list[LostPosting] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    unexplained: int = 0
    all_deltas: int = 0
    overdrawn: int = 0
    clobbers: int = 0


class _Fate(NamedTuple):
    """Until when an entry was on the chain: ``seq`` of the last write that still had it, and who came right after."""

    seq: int
    culprit: int | None


def trace(account: AccountRow, entries: Iterable[EntryRow], exists: Callable[[int], bool]) -> AccountLineage:
    """Trace one account. ``entries`` are its entries, the physically last (highest ``seq``) first.

    Along a chain ``seq`` must fall. Where a link is not found further down, ``exists`` tells whether that entry is
    there at all: if so the chain leads back up, a ``cycle``; if not, it is a ``missing entry``.

    After the write w, the chain is w, w's previous entry, and so on. An entry is on it as long as the latest write
    descends from that entry; so it was on it last at its highest descendant, and the write right after that one is the
    culprit. Walking backwards, an entry's descendants have all been seen before it, and only the entries that somebody
    still points at need to be remembered: as many as there are writers at once, however long the journal.
    """
    result = AccountLineage(account)
    waiting: dict[int, _Fate] = {}
    surviving_delta = 0
    expected = account.last_entry
    expected_after: int | None = account.balance
    later: EntryRow | None = None
    if expected is not None:
        waiting[expected] = _Fate(_ROW, None)
    for entry in entries:
        result.entries += 1
        result.all_deltas += entry.delta
        fate = waiting.pop(entry.id, None)
        if fate is None:  # nobody descends from it: it left the chain with the very next write
            fate = _Fate(entry.seq, later.id if later is not None else None)
            if later is None:
                result.flaws.append(_unlinked(account, entry))
        if entry.after != entry.before + entry.delta:
            message = f"entry {entry.id} makes {entry.after} of {entry.before} and {entry.delta:+d}"
            result.flaws.append(Flaw("arithmetic", account.id, message))
        if later is not None and later.previous_entry != entry.id:
            result.clobbers += 1
        if entry.id == expected:
            surviving_delta += entry.delta
            result.overdrawn += entry.after < 0
            result.flaws.extend(_break(account, entry, expected_after))
            expected, expected_after = entry.previous_entry, entry.before
        elif fate.culprit is not None:
            direct = fate.seq == entry.seq
            same_read = direct and later is not None and later.previous_entry == entry.previous_entry
            result.lost.append(LostPosting(account.id, entry.id, entry.delta, fate.culprit, direct, same_read))
        if entry.previous_entry is not None:
            known = waiting.get(entry.previous_entry)
            if known is None or known.seq < fate.seq:
                waiting[entry.previous_entry] = fate
        later = entry
    if expected is not None:
        result.flaws.append(_hole(account, expected, exists(expected)))
        # Below a hole the chain cannot be followed, so nothing below it can be called lost.
        result.lost.clear()
    elif expected_after != account.opening:
        message = f"account {account.id}: its first entry begins at {expected_after}, but it was opened with {account.opening}"
        result.flaws.append(Flaw("balance", account.id, message))
    result.overdrawn += account.balance < 0 and account.last_entry is None
    result.unexplained = account.balance - account.opening - surviving_delta
    return result


_ROW = 2**63
"""The account's row, as the write after all writes."""


def _unlinked(account: AccountRow, entry: EntryRow) -> Flaw:
    message = f"account {account.id}: its last write is entry {entry.id}, but the row points to {account.last_entry}"
    return Flaw("unlinked", account.id, message)


def _hole(account: AccountRow, entry_id: int, is_there: bool) -> Flaw:
    if is_there:
        return Flaw("cycle", account.id, f"account {account.id}: its lineage leads back to entry {entry_id}")
    return Flaw("missing entry", account.id, f"account {account.id}: its lineage needs entry {entry_id}, which is gone")


def _break(account: AccountRow, entry: EntryRow, expected_after: int | None) -> Iterator[Flaw]:
    """Yield a flaw if the next link does not begin where this entry ended."""
    if entry.after != expected_after:
        what = "its balance is" if entry.id == account.last_entry else "the next entry begins at"
        yield Flaw(
            "balance",
            account.id,
            f"account {account.id}: entry {entry.id} left {entry.after}, but {what} {expected_after}",
        )
