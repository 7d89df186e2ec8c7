"""The audit on a real database that was damaged on purpose: each damage is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bank.audit import Audit, audit
from bank.orders import Order
from bank.postgres.database import Database
from tests.integration.conftest import BranchMaker, balances

Accepted = Callable[..., Order]


@pytest.fixture
def busy_bank(branch: BranchMaker, bank: Database, accepted: Accepted) -> Database:
    """A bank in which three transfers were applied, one after another."""
    one = branch("row-lock")
    for number, (debit, credit, amount) in enumerate([(1, 2, 10), (2, 3, 20), (3, 1, 30)], start=1):
        one.apply(accepted(number, debit, credit, amount))
    return bank


def kinds(found: Audit) -> set[tuple[str, str]]:
    return {(finding.invariant, finding.kind) for finding in found.findings}


def by_hand(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_a_serial_history_passes(busy_bank: Database) -> None:
    found = audit(busy_bank)
    assert found.passed
    assert (found.accounts, found.entries, found.transfers["applied"]) == (3, 6, 3)


def test_one_of_two_transfers_on_the_same_pair_is_overwritten_and_the_total_does_not_notice(
    branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one = branch("none")
    one.apply(accepted(1, 1, 2, 10))
    # The second transfer read the openings, as if the first had not been.
    by_hand(bank, "UPDATE accounts SET balance = 100, last_entry = NULL WHERE id IN (1, 2)")
    one.apply(accepted(2, 1, 2, 5))
    assert balances(bank) == [95, 105, 100]
    found = audit(bank)
    assert (found.drift, found.lost_postings, found.unexplained) == (0, 2, 0)
    assert ("lineage", "lost posting") in kinds(found)
    assert found.example is not None
    lost, culprit = found.example
    assert (lost.entry, culprit.entry) in ((1, 3), (2, 4))
    assert lost.before == culprit.before
    assert (lost.instance, culprit.instance) == ("b1", "b1")
    with bank.transaction() as transaction:
        kept = transaction.execute("SHOW track_commit_timestamp").fetchone()
    assert (lost.committed_at is not None) is (kept == ("on",))


def test_three_writers_are_each_blamed_on_the_one_that_physically_overwrote_them(
    branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one = branch("none")
    for number, amount in enumerate((1, 2, 4), start=1):
        by_hand(bank, "UPDATE accounts SET balance = 100, last_entry = NULL WHERE id IN (1, 2)")
        one.apply(accepted(number, 1, 2, amount))
    found = audit(bank)
    examples = next(finding.examples for finding in found.findings if finding.kind == "lost posting")
    assert found.lost_postings == 4
    # Entries 1, 2 are the first transfer's, 3, 4 the second's, 5, 6 the third's.
    assert any("entry 4 (+2) is off the books, overwritten by entry 6" in example for example in examples)
    assert any("entry 2 (+1) is off the books, overwritten by entry 4" in example for example in examples)


def test_an_entry_deleted_by_hand_is_named(busy_bank: Database) -> None:
    by_hand(busy_bank, "DELETE FROM entries WHERE id = 3")
    found = audit(busy_bank)
    assert ("lineage", "missing entry") in kinds(found)
    assert ("once", "missing entry") in kinds(found)
    assert found.unexplained


def test_a_balance_changed_by_hand_is_named(busy_bank: Database) -> None:
    by_hand(busy_bank, "UPDATE accounts SET balance = balance + 7 WHERE id = 2")
    found = audit(busy_bank)
    assert {("total", "drift"), ("total", "unexplained"), ("accounts", "balance"), ("lineage", "balance")} <= kinds(
        found
    )
    assert (found.drift, found.unexplained) == (7, 7)


def test_two_balances_changed_by_hand_so_that_the_total_fits_are_still_unexplained(busy_bank: Database) -> None:
    by_hand(busy_bank, "UPDATE accounts SET balance = balance + (CASE id WHEN 1 THEN 7 ELSE -7 END) WHERE id IN (1, 2)")
    found = audit(busy_bank)
    assert (found.drift, found.unexplained) == (0, 14)
    assert not found.passed


def test_a_transfer_applied_twice_is_named(busy_bank: Database) -> None:
    by_hand(
        busy_bank,
        "ALTER TABLE entries DROP CONSTRAINT one_entry_per_leg",
        "INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)"
        " SELECT id + 100, transfer_id, account_id, delta, after, after + delta, id, read_at FROM entries"
        " WHERE id IN (5, 6)",
        "UPDATE accounts SET balance = e.after, last_entry = e.id FROM entries e"
        " WHERE e.account_id = accounts.id AND e.id > 100",
    )
    try:
        found = audit(busy_bank)
        assert ("once", "applied twice") in kinds(found)
        assert (found.duplicates, found.drift) == (1, 0)
    finally:
        by_hand(
            busy_bank,
            "TRUNCATE entries",
            "ALTER TABLE entries ADD CONSTRAINT one_entry_per_leg UNIQUE (transfer_id, account_id)",
        )


def test_a_cycle_is_named(busy_bank: Database) -> None:
    by_hand(busy_bank, "UPDATE entries SET previous_entry = 6 WHERE id = 1")  # account 1: entry 6 came after entry 1
    assert ("lineage", "cycle") in kinds(audit(busy_bank))


def test_a_pending_transfer_with_entries_is_named(busy_bank: Database) -> None:
    by_hand(busy_bank, "UPDATE transfers SET status = 'pending' WHERE amount = 10")
    assert ("once", "not applied") in kinds(audit(busy_bank))


def test_entries_of_no_transfer_are_named(busy_bank: Database) -> None:
    by_hand(busy_bank, "DELETE FROM transfers WHERE amount = 10")
    assert ("once", "no transfer") in kinds(audit(busy_bank))


def test_entries_of_a_deleted_account_are_named_whichever_it_is(busy_bank: Database) -> None:
    for account in (1, 3):
        by_hand(busy_bank, f"DELETE FROM accounts WHERE id = {account}")
        assert ("accounts", "no account") in kinds(audit(busy_bank))


def test_legs_that_are_not_what_was_ordered_are_named(busy_bank: Database) -> None:
    by_hand(busy_bank, "UPDATE transfers SET amount = 11 WHERE amount = 10")
    assert ("once", "wrong legs") in kinds(audit(busy_bank))


def test_an_overdraft_is_named(
    branch: BranchMaker, bank: Database, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = branch("none")
    monkeypatch.setattr(
        "bank.teller.Pace.think",
        lambda pace, transaction, seconds: transaction.execute("UPDATE accounts SET balance = -1 WHERE id = 3"),
    )
    one.apply(accepted(1, 1, 2, 10))
    found = audit(bank)
    assert ("overdraft", "overdraft") in kinds(found)


def test_a_pending_transfer_is_no_failure(bank: Database, accepted: Accepted) -> None:
    accepted(1, 1, 2, 10)
    found = audit(bank)
    assert found.passed
    assert found.transfers["pending"] == 1
