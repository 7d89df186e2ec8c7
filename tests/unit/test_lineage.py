"""The lineage on histories that were written by hand, and against a slow and obvious oracle."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from bank.lineage import AccountLineage, AccountRow, EntryRow, Place, straighten, trace

OPENING = 100


@dataclass
class History:
    """One account's writes in physical order. ``write`` takes the entry that was read, None for the opening."""

    entries: list[EntryRow]

    @classmethod
    def of(cls, *writes: tuple[int, int | None]) -> History:
        """Make a history of (delta, entry read); entries are numbered from 1 in the order of writing."""
        entries: list[EntryRow] = []
        for number, (delta, read) in enumerate(writes, start=1):
            before = OPENING if read is None else entries[read - 1].after
            entries.append(EntryRow(1, number, 10 * number, read, delta, before, before + delta))
        return cls(entries)

    @property
    def account(self) -> AccountRow:
        if not self.entries:
            return AccountRow(1, OPENING, OPENING, None)
        return AccountRow(1, OPENING, self.entries[-1].after, self.entries[-1].id)

    def trace(self, account: AccountRow | None = None) -> AccountLineage:
        places = {entry.id: Place(1, is_readable=True) for entry in self.entries}
        return trace(account or self.account, reversed(self.entries), lambda entry, _: places.get(entry))


def lost(history: History) -> dict[int, int]:
    return {posting.entry: posting.culprit for posting in history.trace().lost}


def chain(history: History, last: int | None) -> set[int]:
    """Return the entries on the chain when ``last`` was the latest write."""
    on: set[int] = set()
    while last is not None:
        on.add(last)
        last = history.entries[last - 1].previous_entry
    return on


def oracle(history: History) -> dict[int, int]:
    """Replay the writes one by one: an entry's culprit is the last write that took it off the chain."""
    blamed: dict[int, int] = {}
    for entry in history.entries[1:]:
        for gone in chain(history, entry.id - 1) - chain(history, entry.id):
            blamed[gone] = entry.id
    final = chain(history, history.entries[-1].id) if history.entries else set()
    return {entry: culprit for entry, culprit in blamed.items() if entry not in final}


def test_an_account_without_entries_has_nothing_to_explain() -> None:
    result = History.of().trace()
    assert (result.lost, result.flaws, result.unexplained) == ([], [], 0)


def test_writers_that_each_read_the_last_entry_lose_nothing() -> None:
    result = History.of((5, None), (-3, 1), (7, 2)).trace()
    assert (result.lost, result.flaws, result.unexplained, result.clobbers) == ([], [], 0, 0)


def test_the_second_of_two_that_read_the_opening_overwrites_the_first() -> None:
    result = History.of((5, None), (-3, None)).trace()
    assert [(posting.entry, posting.culprit, posting.delta, posting.same_read) for posting in result.lost] == [
        (1, 2, 5, True)
    ]
    assert result.unexplained == 0


def test_of_three_writers_each_is_blamed_on_the_one_that_overwrote_it() -> None:
    # All three read the opening: 2 overwrites 1, then 3 overwrites 2. 3 never touched 1's balance.
    assert lost(History.of((1, None), (2, None), (4, None))) == {1: 2, 2: 3}


def test_the_surviving_sibling_is_not_to_blame_when_another_did_it() -> None:
    # 1 and 3 both read the opening, and 3 survives; but it was 2 that took 1 off the books.
    history = History.of((1, None), (2, None), (4, None), (8, 3))
    assert lost(history) == {1: 2, 2: 3}


def test_an_entry_that_falls_with_its_descendant_is_blamed_on_the_write_that_felled_both() -> None:
    # 2 and 3 build on 1; 4 had read the opening long ago and overwrites all of it at once.
    result = History.of((1, None), (2, 1), (4, 2), (8, None)).trace()
    assert {posting.entry: posting.culprit for posting in result.lost} == {1: 4, 2: 4, 3: 4}
    assert {posting.entry for posting in result.lost if posting.direct} == {3}


def test_an_entry_that_came_back_and_fell_again_is_blamed_on_the_last_culprit() -> None:
    # 2 takes 1 off the chain, 3 had read 1 and puts it back, 4 takes it off for good.
    assert lost(History.of((1, None), (2, None), (4, 1), (8, None))) == {1: 4, 2: 3, 3: 4}


def test_an_entry_that_came_back_to_stay_is_not_lost() -> None:
    assert lost(History.of((1, None), (2, None), (4, 1))) == {2: 3}


def test_a_balance_that_was_changed_by_hand_is_named_and_unexplained() -> None:
    history = History.of((5, None))
    result = history.trace(history.account._replace(balance=999))
    assert [flaw.kind for flaw in result.flaws] == ["balance"]
    assert result.unexplained == 999 - 105


def test_a_changed_balance_without_any_entry_is_named() -> None:
    result = History.of().trace(AccountRow(1, OPENING, 90, None))
    assert [flaw.kind for flaw in result.flaws] == ["balance"]
    assert result.unexplained == -10


def test_an_entry_deleted_from_the_chain_is_missing_and_nothing_below_is_called_lost() -> None:
    history = History.of((1, None), (2, 1), (4, 2))
    account = history.account
    del history.entries[1]
    result = history.trace(account)
    assert [flaw.kind for flaw in result.flaws] == ["missing entry"]
    assert result.lost == []
    assert result.unexplained


def test_a_deleted_last_entry_is_missing() -> None:
    history = History.of((1, None), (2, 1))
    account = history.account
    history.entries.pop()
    assert "missing entry" in [flaw.kind for flaw in history.trace(account).flaws]


def test_a_lineage_that_leads_back_up_is_a_cycle() -> None:
    history = History.of((1, None), (2, 1), (4, 2))
    history.entries[1] = history.entries[1]._replace(previous_entry=3)
    assert "cycle" in [flaw.kind for flaw in history.trace().flaws]


def test_an_entry_that_names_itself_is_a_cycle() -> None:
    history = History.of((1, None), (2, 1))
    history.entries[1] = history.entries[1]._replace(previous_entry=2)
    assert "cycle" in [flaw.kind for flaw in history.trace().flaws]


def test_a_link_to_an_entry_of_another_account_is_told_as_that() -> None:
    history = History.of((1, None), (2, 1))
    for pointer, damaged in (("its row", history.account._replace(last_entry=9)), ("entry 2", history.account)):
        entries = [history.entries[1]._replace(previous_entry=9), history.entries[0]]
        result = trace(damaged, entries, lambda entry, _: Place(2, is_readable=True))
        assert [flaw.kind for flaw in result.flaws][-1] == "foreign entry"
        assert f"{pointer} points to entry 9, which belongs to account 2" in result.flaws[-1].message


def test_two_entries_with_the_same_seq_are_named() -> None:
    history = History.of((1, None), (2, 1), (4, 2))
    history.entries[1] = history.entries[1]._replace(seq=10)
    assert [(flaw.kind, flaw.message) for flaw in history.trace().flaws] == [
        ("seq", "account 1: entries 1 and 2 have the same seq 10")
    ]


def test_an_entry_that_is_there_twice_is_named_and_not_lost() -> None:
    history = History.of((1, None), (2, 1), (4, 2))
    history.entries.insert(1, history.entries[1])
    result = trace(History(history.entries[-1:]).account, reversed(history.entries), lambda entry, account: None)
    assert [flaw.kind for flaw in result.flaws] == ["entry twice"]
    assert result.lost == []


def test_an_entry_whose_sum_is_wrong_is_named() -> None:
    history = History.of((1, None))
    history.entries[0] = history.entries[0]._replace(delta=2)
    assert "arithmetic" in [flaw.kind for flaw in history.trace().flaws]


def test_a_row_that_does_not_point_to_its_last_entry_is_named() -> None:
    history = History.of((1, None), (2, 1))
    result = history.trace(AccountRow(1, OPENING, 101, 1))
    assert "unlinked" in [flaw.kind for flaw in result.flaws]


def test_a_balance_below_zero_counts_also_when_it_recovered() -> None:
    result = History.of((-150, None), (200, 1)).trace()
    assert result.overdrawn == 1


def test_an_overdraft_that_was_itself_overwritten_does_not_count() -> None:
    assert History.of((-150, None), (5, None)).trace().overdrawn == 0


def test_a_seq_that_restarted_is_told_as_that_and_loses_nothing() -> None:
    history = History.of((1, None), (2, 1), (4, 2), (8, 3))
    account = history.account
    history.entries = [entry._replace(seq=seq) for entry, seq in zip(history.entries, (5, 9, 1, 7), strict=True)]
    result = straighten(account, history.entries)
    assert result is not None
    assert (result.lost, result.unexplained, result.entries, result.all_deltas) == ([], 0, 4, 15)
    assert [flaw.message for flaw in result.flaws] == [
        "account 1: entry 3 was made of entry 2, but its seq 1 is below 9: seq restarted, or was changed"
    ]


def test_what_is_off_the_chain_beside_a_seq_that_restarted_has_no_culprit() -> None:
    history = History.of((1, None), (2, None), (4, 2))
    account = history.account
    history.entries = [entry._replace(seq=30 - entry.seq) for entry in history.entries]
    result = straighten(account, history.entries)
    assert result is not None
    assert {flaw.kind for flaw in result.flaws} == {"seq", "off the books"}
    assert (result.lost, result.entries, result.all_deltas) == ([], 3, 7)


def test_links_that_go_round_in_a_circle_cannot_be_straightened() -> None:
    history = History.of((1, None), (2, 1))
    history.entries[0] = history.entries[0]._replace(previous_entry=2)
    assert straighten(history.account, history.entries) is None


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw any history that transactions could leave: each write has read some earlier state."""
    length = draw(st.integers(0, 12))
    writes = []
    for number in range(1, length + 1):
        read = draw(st.integers(0, number - 1))
        writes.append((draw(st.integers(-50, 50)), read or None))
    return History.of(*writes)


@given(histories())
def test_lost_postings_and_their_culprits_are_what_a_replay_finds(history: History) -> None:
    assert lost(history) == oracle(history)


@given(histories())
def test_the_lost_postings_explain_the_drift_exactly(history: History) -> None:
    result = history.trace()
    drift = history.account.balance - OPENING
    assert drift == result.all_deltas - sum(posting.delta for posting in result.lost)
    assert result.unexplained == 0
    assert result.flaws == []


@given(histories())
def test_every_culprit_is_a_clobber(history: History) -> None:
    for posting in history.trace().lost:
        culprit = history.entries[posting.culprit - 1]
        assert culprit.previous_entry != culprit.id - 1


@given(st.lists(st.integers(-50, 50), max_size=12))
def test_a_serial_history_passes(deltas: list[int]) -> None:
    result = History.of(*[(delta, number or None) for number, delta in enumerate(deltas)]).trace()
    assert (result.lost, result.flaws, result.unexplained, result.clobbers) == ([], [], 0, 0)


@given(histories().filter(lambda history: bool(history.entries)), st.integers(1, 1000))
def test_money_added_by_hand_to_any_history_is_found(history: History, amount: int) -> None:
    result = history.trace(history.account._replace(balance=history.account.balance + amount))
    assert "balance" in [flaw.kind for flaw in result.flaws]
    assert result.unexplained == amount


@given(histories().filter(lambda history: bool(history.entries)), st.data())
def test_an_entry_deleted_from_any_lineage_is_found(history: History, data: st.DataObject) -> None:
    account = history.account
    victim = data.draw(st.sampled_from(sorted(chain(history, account.last_entry))))
    history.entries = [entry for entry in history.entries if entry.id != victim]
    assert history.trace(account).flaws
