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
    """What one account's entries say; ``unexplained`` is what its entries and lost postings leave of its drift."""

    account: AccountRow
    entries: int = 0
    lost: list[LostPosting] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    unexplained: int = 0
    all_deltas: int = 0
    overdrawn: int = 0
    clobbers: int = 0


def trace(account: AccountRow, entries: Iterable[EntryRow], exists: Callable[[int], bool]) -> AccountLineage:
    """Trace one account. ``entries`` are its entries, the physically last (highest ``seq``) first.

    Along a chain ``seq`` must fall. Where a link is not found further down, ``exists`` tells whether that entry is
    there at all: if so the chain leads back up, a ``cycle``; if not, it is a ``missing entry``.

    After the write w, the chain is w, w's previous entry, and so on. An entry is on it as long as the latest write
    descends from that entry; so it was on it last at its highest descendant, and the write right after that one is the
    culprit. Walking backwards, an entry's descendants have all been seen before it, and only the entries that another
    still points at need to be remembered: as many as there are writers at once, however long the journal.
    """
    result = AccountLineage(account)
    fates = _Fates(account.last_entry)
    surviving = 0
    link, link_begins = account.last_entry, account.balance
    later: EntryRow | None = None
    for entry in entries:
        result.entries += 1
        result.all_deltas += entry.delta
        fate = fates.settle(entry, later)
        if entry.after != entry.before + entry.delta:
            message = f"entry {entry.id} makes {entry.after} of {entry.before} and {entry.delta:+d}"
            result.flaws.append(Flaw("arithmetic", account.id, message))
        if later is None and entry.id != account.last_entry:
            message = f"the last write is entry {entry.id}, but the row points to {account.last_entry}"
            result.flaws.append(Flaw("unlinked", account.id, f"account {account.id}: {message}"))
        result.clobbers += later is not None and later.previous_entry != entry.id
        if entry.id == link:
            surviving += entry.delta
            result.overdrawn += entry.after < 0
            result.flaws.extend(_gap(account, f"entry {entry.id} left {entry.after}", entry.after, link_begins))
            link, link_begins = entry.previous_entry, entry.before
        elif fate.culprit is not None:
            direct = fate.seq == entry.seq
            same_read = direct and later is not None and later.previous_entry == entry.previous_entry
            result.lost.append(LostPosting(account.id, entry.id, entry.delta, fate.culprit, direct, same_read))
        later = entry
    if link is None:
        result.flaws.extend(_gap(account, f"it was opened with {account.opening}", account.opening, link_begins))
    else:
        kind, what = ("cycle", "leads back to") if exists(link) else ("missing entry", "needs the missing")
        result.flaws.append(Flaw(kind, account.id, f"account {account.id}: its lineage {what} entry {link}"))
        # Below a hole the chain cannot be followed, so nothing can be called lost.
        result.lost.clear()
    result.overdrawn += account.balance < 0 and account.last_entry is None
    result.unexplained = account.balance - account.opening - surviving
    return result


class _Fate(NamedTuple):
    """Until when an entry was on the chain: ``seq`` of the last write that still had it, and who came right after."""

    seq: int
    culprit: int | None


class _Fates:
    """The fates of those entries that a later one points at, and that have not been reached yet."""

    def __init__(self, last_entry: int | None) -> None:
        # The row itself stands for the write after all writes: what it descends from has no culprit.
        self._waiting = {} if last_entry is None else {last_entry: _Fate(2**63, None)}

    def settle(self, entry: EntryRow, later: EntryRow | None) -> _Fate:
        """Return an entry's fate, now that all its descendants are known, and hand it to the entry it descends from."""
        fate = self._waiting.pop(entry.id, None)
        if fate is None:  # no entry descends from it: the very next write took it off
            fate = _Fate(entry.seq, None if later is None else later.id)
        if entry.previous_entry is not None:
            known = self._waiting.get(entry.previous_entry)
            if known is None or known.seq < fate.seq:
                self._waiting[entry.previous_entry] = fate
        return fate


def _gap(account: AccountRow, ended: str, end: int, begin: int) -> Iterator[Flaw]:
    """Yield a flaw if one link of the chain does not end where the next one begins."""
    if end != begin:
        yield Flaw("balance", account.id, f"account {account.id}: {ended}, but what follows begins at {begin}")
