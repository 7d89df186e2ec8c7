"""What every strategy must do, on a real Postgres."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from bank.audit import Audit, audit
from bank.errors import Rejected
from bank.orders import Order
from bank.postgres.connection import LeanConnection
from bank.postgres.database import Database, Transaction
from bank.postgres.schema import open_bank
from bank.strategies import STRATEGIES
from bankrun.results.workload import Workload
from tests.integration.conftest import Branch, BranchMaker, balances, order
from workers.submission import Submission, accept

every_strategy = pytest.mark.parametrize("name", STRATEGIES)
# Where a claim rests on routing, two at once are what must not happen: test_gallery has that.
LOCKS = {name: one.claim for name, one in STRATEGIES.items() if one.claim != "nothing" and not one.routed_to_one}
SLOW = ("row-lock-unordered", "share-lock")  # right by deadlocks
Accepted = Callable[..., Order]


@every_strategy
def test_a_transfer_moves_the_money_and_leaves_two_entries(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    receipt = branch(name).apply(accepted(1, 1, 2, 10))
    assert (receipt.outcome, receipt.first, receipt.attempts) == ("applied", True, 1)
    assert balances(bank) == [90, 110, 100]
    found = audit(bank)
    assert found.passed
    assert found.entries == 2


@every_strategy
def test_the_talks_four_transfers_one_after_another_end_at_90_100_110(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    bank_branch = branch(name)
    for number, (debit, credit) in enumerate([(1, 2), (2, 3), (1, 3), (3, 1)], start=1):
        bank_branch.apply(accepted(number, debit, credit, 10))
    assert balances(bank) == [90, 100, 110]
    assert audit(bank).passed


@every_strategy
def test_a_second_delivery_moves_nothing(name: str, branch: BranchMaker, bank: Database, accepted: Accepted) -> None:
    bank_branch, transfer = branch(name), accepted(1, 1, 2, 10)
    bank_branch.apply(transfer)
    again = bank_branch.apply(transfer)
    assert (again.outcome, again.first) == ("applied", False)
    assert balances(bank) == [90, 110, 100]
    assert audit(bank).passed


@every_strategy
def test_too_large_a_transfer_is_refused_whichever_account_comes_first(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    bank_branch = branch(name)
    for transfer in (accepted(1, 1, 2, 101), accepted(2, 2, 1, 101)):
        receipt = bank_branch.apply(transfer)
        assert (receipt.outcome, receipt.first, receipt.attempts) == ("refused", True, 1)
    assert balances(bank) == [100, 100, 100]
    found = audit(bank)
    assert found.passed
    assert (found.transfers["refused"], found.entries) == (2, 0)


@every_strategy
def test_a_refusal_is_final(name: str, branch: BranchMaker, bank: Database, accepted: Accepted) -> None:
    bank_branch, transfer = branch(name), accepted(1, 1, 2, 101)
    bank_branch.apply(transfer)
    again = bank_branch.apply(transfer)
    assert (again.outcome, again.first) == ("refused", False)


@every_strategy
def test_an_account_that_does_not_exist_is_refused(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    bank_branch = branch(name)
    for transfer in (accepted(1, 1, 9, 5), accepted(2, 9, 1, 5)):
        assert bank_branch.apply(transfer).outcome == "refused"
    assert balances(bank) == [100, 100, 100]
    assert audit(bank).passed


@every_strategy
def test_a_transfer_that_nobody_accepted_is_rejected(name: str, branch: BranchMaker, bank: Database) -> None:
    with pytest.raises(Rejected, match="never accepted"):
        branch(name).apply(order(1, 1, 2, 10))
    assert balances(bank) == [100, 100, 100]


@every_strategy
def test_a_message_that_disagrees_with_what_was_accepted_is_rejected(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one = branch(name)
    accepted(1, 1, 2, 10)
    with pytest.raises(Rejected, match="but 10 from 1 to 2 was accepted"):
        one.apply(order(1, 1, 2, 99))
    found = audit(bank)
    assert (found.transfers["pending"], found.entries) == (1, 0)


def test_a_message_for_another_strategy_than_the_accepted_one_is_rejected(
    branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    careless = branch("none")
    branch("row-lock")
    transfer = accepted(1, 1, 2, 10)
    with pytest.raises(Rejected, match="was accepted for row-lock, not for none"):
        careless.apply(transfer)
    assert balances(bank) == [100, 100, 100]


@every_strategy
def test_the_databases_check_refuses_what_slips_through(name: str, branch: BranchMaker, database: Database) -> None:
    open_bank(database, accounts=2, opening=100, constraint=True)
    transfers = [order(number, 1, 2, 60) for number in (1, 2, 3)]
    accept(database, transfers, Submission("test", name, "test"), forgettable=True)
    bank_branch = branch(name, threads=3)
    outcomes = sorted(
        receipt.outcome
        for receipt in bank_branch.pool.map(lambda one: bank_branch.apply(one, think_seconds=0.01), transfers)
    )
    assert "pending" not in outcomes
    assert all(balance >= 0 for balance in balances(database))
    assert audit(database).transfers["pending"] == 0


def under_load(branches: list[Branch], database: Database, transfers: int) -> Audit:
    """Let the branches take turns with a workload of which some is refused, and return what the audit finds."""
    workload = Workload(accounts=4, transfers=transfers, opening=100)
    open_bank(database, accounts=workload.accounts, opening=workload.opening)
    orders = list(workload.orders(7))
    accept(database, orders, Submission("test", branches[0].strategy.name, "test"), forgettable=True)
    turns = zip(itertools.cycle(branches), orders)
    futures = [one.pool.submit(one.apply, transfer) for one, transfer in turns]
    assert all(future.result().first for future in futures)
    found = audit(database)
    assert found.transfers["applied"] + found.transfers["refused"] == transfers
    assert found.transfers["refused"]
    return found


def test_the_load_breaks_the_control(branch: BranchMaker, database: Database) -> None:
    one, two = branch("none"), branch("none")
    assert any(under_load([one], database, 60).lost_postings for _ in range(5))
    assert any(under_load([one, two], database, 60).lost_postings for _ in range(5))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_that_claims_anything_keeps_the_money_in_one_instance(
    name: str, branch: BranchMaker, database: Database
) -> None:
    found = under_load([branch(name)], database, 60)
    assert found.passed, found.findings


@pytest.mark.parametrize("name", [name for name, claim in LOCKS.items() if claim != "process"])
def test_a_lock_that_claims_more_than_a_process_keeps_the_money_in_two_instances(
    name: str, branch: BranchMaker, database: Database
) -> None:
    found = under_load([branch(name), branch(name)], database, 60 if name in SLOW else 120)
    assert found.passed, found.findings


@pytest.mark.parametrize("name", ["none", "single-statement"])
def test_two_deliveries_at_once_move_the_money_once(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    branches, transfer = [branch(name), branch(name)], accepted(1, 1, 2, 10)
    futures = [one.pool.submit(one.apply, transfer, think_seconds=0.05) for one in branches for _ in range(4)]
    receipts = [future.result() for future in futures]
    assert sum(receipt.first for receipt in receipts) == 1
    assert {receipt.outcome for receipt in receipts} == {"applied"}
    assert balances(bank) == [90, 110, 100]


def test_a_single_statement_is_neither_begun_nor_committed_and_moves_the_money(
    branch: BranchMaker, bank: Database, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, transfer = branch("single-statement"), accepted(1, 1, 2, 10)
    with monkeypatch.context() as patched:
        patched.setattr(LeanConnection, "_begin", lambda _: pytest.fail("a second round trip"))
        receipt = one.apply(transfer)
    assert (receipt.outcome, receipt.first, receipt.attempts) == ("applied", True, 1)
    assert one.apply(transfer).first is False
    assert balances(bank) == [90, 110, 100]


class Meeting:
    """Transfers that all read before any of them writes: the race, forced.

    Those that a lock keeps apart give up after ``patience_seconds``. Whoever is run again after they met does not wait.
    """

    def __init__(self, parties: int, patience_seconds: float = 10) -> None:
        self.barrier = threading.Barrier(parties, timeout=patience_seconds)
        self.met = self.kept_apart = False

    def between_read_and_write(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let every transfer wait there for the others: a lost update is certain, or a lock kept them apart."""

        def wait(_: Transaction) -> None:
            if self.met:
                return
            try:
                self.barrier.wait()
                self.met = True
            except threading.BrokenBarrierError:
                self.kept_apart = True

        monkeypatch.setattr("bank.teller.Pace.think", lambda pace, transaction, seconds: wait(transaction))


def meet(
    branches: list[Branch], transfers: list[Order], monkeypatch: pytest.MonkeyPatch, *, patience_seconds: float = 10
) -> Meeting:
    """Apply each transfer in its branch, all of them meeting between read and write."""
    meeting = Meeting(len(transfers), patience_seconds)
    meeting.between_read_and_write(monkeypatch)
    futures = [one.pool.submit(one.apply, transfer) for one, transfer in zip(branches, transfers, strict=True)]
    for future in futures:
        assert future.result().outcome == "applied"
    return meeting


def test_without_a_lock_two_that_meet_lose_one_posting_on_each_shared_account(
    branch: BranchMaker, bank: Database, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = branch("none")
    meet([one, one], [accepted(1, 1, 2, 10), accepted(2, 1, 2, 5)], monkeypatch)
    found = audit(bank)
    assert found.lost_postings == 2
    assert found.drift == 0
    assert [finding.kind for finding in found.findings] == ["balance", "lost posting"]
    assert found.unexplained == 0


def test_the_talks_290_is_reached_and_explained(
    branch: BranchMaker, bank: Database, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = branch("none")
    meet([one, one], [accepted(1, 1, 2, 10), accepted(2, 2, 3, 10)], monkeypatch)
    found = audit(bank)
    assert found.lost_postings == 1
    assert abs(found.drift) == 10
    assert found.drift == -found.lost_delta


@pytest.mark.parametrize("name", ["thread-lock", "striped-lock"])
def test_a_thread_lock_keeps_two_apart_in_one_instance_and_not_in_two(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = branch(name), branch(name)
    transfers = [accepted(1, 1, 2, 10), accepted(2, 1, 2, 5)]
    assert meet([one, one], transfers, monkeypatch, patience_seconds=0.2).kept_apart
    assert audit(bank).passed
    assert not meet([one, two], [accepted(3, 1, 2, 10), accepted(4, 1, 2, 5)], monkeypatch).kept_apart
    assert audit(bank).lost_postings == 2


@pytest.mark.parametrize(
    "name",
    [
        *("row-lock", "row-lock-orm", "row-lock-unordered", "no-key-lock", "advisory-lock", "table-lock"),
        *("file-lock", "redis-lock", "redis-lock-fenced"),
    ],
)
def test_a_shared_lock_keeps_two_apart_in_two_instances(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = [branch(name), branch(name)]
    transfers = [accepted(1, 1, 2, 10), accepted(2, 1, 2, 5)]
    assert meet(branches, transfers, monkeypatch, patience_seconds=0.2).kept_apart
    assert audit(bank).passed


@pytest.mark.parametrize("name", ["version-check", "repeatable-read", "serializable", "share-lock"])
def test_a_strategy_that_does_not_wait_lets_both_read_and_runs_one_again(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = [branch(name), branch(name)]
    meeting = Meeting(2)
    meeting.between_read_and_write(monkeypatch)
    transfers = [accepted(1, 1, 2, 10), accepted(2, 1, 2, 5)]
    futures = [one.pool.submit(one.apply, transfer) for one, transfer in zip(branches, transfers, strict=True)]
    receipts = [future.result() for future in futures]
    assert sum(receipt.attempts for receipt in receipts) >= 3
    assert audit(bank).passed
    assert balances(bank) == [85, 115, 100]
