"""Follow each account's chain of entries back to its opening balance, and name what fell off it.

Pure: it takes entries and accounts, and knows no database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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

    ``kind`` is one of ``cycle``, ``missing entry``, ``unreadable entry``, ``foreign entry``, ``balance``,
    ``arithmetic``, ``unlinked``, ``entry twice``, ``seq`` and ``off the books``.
    """

    kind: str
    account_id: int
    message: str


class Place(NamedTuple):
    """Where an entry is: the account that it belongs to, and whether the entry can be read."""

    account_id: int | None
    is_readable: bool


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


def trace(account: AccountRow, entries: Iterable[EntryRow], find: Callable[[int, int], Place | None]) -> AccountLineage:
    """Trace one account. ``entries`` are its entries, the physically last (highest ``seq``) first.

    Along a chain ``seq`` must fall. Where a link is not found further down, ``find(entry, account)`` tells where that
    entry is, if it is there at all, and the one of this account if there are several: it is a ``missing entry`` or a
    ``foreign entry``, or the chain leads back up, a ``cycle``, unless ``straighten`` finds that only ``seq`` is wrong.

    After the write w, the chain is w, w's previous entry, and so on. An entry is on it as long as the latest write
    descends from that entry; so it was on it last at its highest descendant, and the write right after that one is the
    culprit. Walking backwards, an entry's descendants have all been seen before it, and only the entries that another
    still points at need to be remembered: as many as there are writers at once, however long the journal.
    """
    result = AccountLineage(account)
    fates = _Fates(account.last_entry)
    surviving = 0
    link, link_begins = account.last_entry, account.balance
    pointer: int | None = None
    points_at = account.last_entry
    later: EntryRow | None = None
    for entry in entries:
        result.entries += 1
        result.all_deltas += entry.delta
        # One condition in place of four: there may be millions of entries.
        if entry.id != points_at or entry.after != entry.before + entry.delta or (later and later.seq == entry.seq):
            result.flaws.extend(_look_at(account, entry, later))
            if later and later.id == entry.id:
                continue
            result.clobbers += later is not None and entry.id != points_at
        fate = fates.settle(entry, later)
        if entry.id == link:
            surviving += entry.delta
            result.overdrawn += entry.after < 0
            if entry.after != link_begins:
                result.flaws.append(_gap(account, f"entry {entry.id} left {entry.after}", link_begins))
            link, link_begins, pointer = entry.previous_entry, entry.before, entry.id
        elif fate.culprit is not None:
            direct = fate.seq == entry.seq
            same_read = direct and later is not None and later.previous_entry == entry.previous_entry
            result.lost.append(LostPosting(account.id, entry.id, entry.delta, fate.culprit, direct, same_read))
        points_at, later = entry.previous_entry, entry
    if link is not None:
        result.flaws.append(_break(account, link, pointer, find(link, account.id)))
        # Below a hole the chain cannot be followed, so nothing can be called lost.
        result.lost.clear()
    elif account.opening != link_begins:
        result.flaws.append(_gap(account, f"it was opened with {account.opening}", link_begins))
    result.overdrawn += account.balance < 0 and account.last_entry is None
    result.unexplained = account.balance - account.opening - surviving
    return result


def straighten(account: AccountRow, entries: Sequence[EntryRow]) -> AccountLineage | None:
    """Trace an account by its links alone, where ``seq`` is not the order in which they were written.

    Each place where it does not rise is a flaw of the kind ``seq``: the sequence was set back, or ``seq`` was changed.
    What is not on the chain is ``off the books``; which write took it off, only the order could tell. Returns None if
    the links do not lead to the opening either.
    """
    there = {entry.id: entry for entry in entries}
    chain: list[EntryRow] = []
    link = account.last_entry
    while link is not None:
        entry = there.pop(link, None)
        if entry is None:
            return None
        chain.append(entry)
        link = entry.previous_entry
    in_order = [entry._replace(seq=len(chain) - number) for number, entry in enumerate(chain)]
    result = trace(account, in_order, lambda entry, account: None)
    result.flaws += [_seq(account, later, entry) for later, entry in pairwise(chain) if later.seq <= entry.seq]
    for entry in there.values():
        result.entries += 1
        result.all_deltas += entry.delta
        message = f"entry {entry.id} ({entry.delta:+d}) is off the books; its seq does not tell what overwrote it"
        result.flaws.append(Flaw("off the books", account.id, f"account {account.id}: {message}"))
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


def _look_at(account: AccountRow, entry: EntryRow, later: EntryRow | None) -> Iterator[Flaw]:
    """Yield what is wrong with an entry by itself, or beside the one that was written right after it."""
    if entry.after != entry.before + entry.delta:
        message = f"entry {entry.id} makes {entry.after} of {entry.before} and {entry.delta:+d}"
        yield Flaw("arithmetic", account.id, message)
    if later is None:
        if entry.id != account.last_entry:
            message = f"the last write is entry {entry.id}, but the row points to {account.last_entry}"
            yield Flaw("unlinked", account.id, f"account {account.id}: {message}")
    elif later.id == entry.id:
        yield Flaw("entry twice", account.id, f"account {account.id}: entry {entry.id} is there twice")
    elif later.seq == entry.seq:
        yield _seq(account, later, entry)


def _seq(account: AccountRow, later: EntryRow, entry: EntryRow) -> Flaw:
    if later.seq == entry.seq:
        message = f"entries {min(later.id, entry.id)} and {max(later.id, entry.id)} have the same seq {entry.seq}"
    else:
        message = (
            f"entry {later.id} was made of entry {entry.id}, but its seq {later.seq} is below {entry.seq}: "
            "seq restarted, or was changed"
        )
    return Flaw("seq", account.id, f"account {account.id}: {message}")


def _break(account: AccountRow, link: int, pointer: int | None, place: Place | None) -> Flaw:
    """Return the flaw of a chain that ends at a link, which the account's row, or the entry ``pointer``, has."""
    points = "its row points to" if pointer is None else f"entry {pointer} points to"
    if place is None:
        kind, message = "missing entry", f"its lineage needs the missing entry {link}"
    elif not place.is_readable:
        kind, message = "unreadable entry", f"{points} entry {link}, which cannot be read"
    elif place.account_id != account.id:
        kind, message = "foreign entry", f"{points} entry {link}, which belongs to account {place.account_id}"
    else:
        kind, message = "cycle", f"its lineage leads back to entry {link}"
    return Flaw(kind, account.id, f"account {account.id}: {message}")


def _gap(account: AccountRow, ended: str, begin: int) -> Flaw:
    """Return the flaw of a link that does not end where the next one begins."""
    return Flaw("balance", account.id, f"account {account.id}: {ended}, but what follows begins at {begin}")
