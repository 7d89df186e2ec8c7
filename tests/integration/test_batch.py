"""A whole message in one transaction: the same outcomes and the same ledger as one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bank.audit import audit
from bank.errors import Rejected
from bank.orders import Order
from bank.postgres.database import Database
from bank.postgres.schema import open_bank
from bank.receipts import ChunkReceipt, Fate
from bank.settings import Settings
from bank.strategies import ChunkStrategy
from bankrun.results.workload import Workload
from tests.integration.conftest import Branch, BranchMaker, balances, order
from workers.submission import Submission, accept

NEVER_ACCEPTED = 99


class Delivery(NamedTuple):
    """A transfer's number in a message, and by how much the message is wrong about its amount."""

    number: int
    wrong_by: int = 0


class Leg(NamedTuple):
    """An entry, without the numbers that a sequence gave it."""

    account: int
    transfer: str
    delta: int
    before: int
    after: int
    previous_transfer: str | None


accounts = st.sampled_from([1, 2, 3, 9])  # there is no account 9
transfers = st.tuples(accounts, accounts, st.integers(1, 12)).filter(lambda leg: leg[0] != leg[1])
deliveries = st.builds(
    Delivery, st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, NEVER_ACCEPTED]), st.sampled_from([0, 0, 0, 1])
)


def in_chunks(numbers: Sequence[int]) -> list[list[Delivery]]:
    """Return one message with these transfers."""
    return [[Delivery(number) for number in numbers]]


def tampered(accepted: dict[int, Order], delivery: Delivery) -> Order:
    """Return the order as the message has it."""
    known = accepted.get(delivery.number) or order(delivery.number, 1, 2, 1)
    return order(delivery.number, known.debit, known.credit, known.amount + delivery.wrong_by)


def chunk_strategy(branch: Branch) -> ChunkStrategy:
    """Return the branch's strategy."""
    assert isinstance(branch.strategy, ChunkStrategy)
    return branch.strategy


def apply_all(branch: Branch, orders: Sequence[Order], think_seconds: float = 0.0) -> ChunkReceipt:
    """Apply a chunk in the caller's thread."""
    return branch.teller.apply_all(orders, chunk_strategy(branch), think_seconds=think_seconds)


def told(fate: Fate | Rejected) -> tuple[str, bool | None]:
    """Return what became of an order, in a form that can be compared."""
    return (str(fate), None) if isinstance(fate, Rejected) else (fate.outcome, fate.first)


def one_by_one(branch: Branch, orders: Sequence[Order]) -> list[tuple[str, bool | None]]:
    """Apply orders with the teller that takes one, and return what became of each."""
    found: list[tuple[str, bool | None]] = []
    for one in orders:
        try:
            receipt = branch.apply(one)
        except Rejected as error:
            found.append(told(error))
        else:
            found.append((receipt.outcome, receipt.first))
    return found


def accept_for(database: Database, orders: Iterable[Order], strategy: str) -> None:
    """Accept orders for a strategy."""
    accept(database, orders, Submission("test", strategy, "test"), forgettable=True)


def ledger(database: Database) -> tuple[list[int], list[tuple[object, ...]], list[Leg]]:
    """Return balances, outcomes and entries; the entries in each account's physical order."""
    with database.transaction() as transaction:
        outcomes = transaction.execute("SELECT id, status, reason FROM transfers ORDER BY id").fetchall()
        legs = transaction.execute(
            """
            SELECT e.account_id, e.transfer_id::text, e.delta, e.before, e.after, p.transfer_id::text
            FROM entries e LEFT JOIN entries p ON p.id = e.previous_entry ORDER BY e.account_id, e.seq
            """
        ).fetchall()
    return balances(database), outcomes, [Leg._make(leg) for leg in legs]


@given(st.lists(transfers, min_size=1, max_size=8), st.lists(st.lists(deliveries, min_size=1, max_size=8), max_size=3))
@example([(1, 2, 8), (1, 3, 8), (1, 2, 2)], in_chunks([1, 2, 3]))
@example([(1, 2, 10), (2, 3, 20), (3, 1, 25), (9, 1, 1), (1, 9, 1)], in_chunks([2, 1, 2, 3, 4, 5]))
@hypothesis_settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_chunk_has_the_outcomes_and_the_ledger_of_one_by_one(
    branch: BranchMaker,
    opened: list[Branch],
    database: Database,
    legs: list[tuple[int, int, int]],
    messages: list[list[Delivery]],
) -> None:
    single, batch = opened or (branch("row-lock", threads=1), branch("batch", threads=1))
    accepted = {number: order(number, *leg) for number, leg in enumerate(legs, start=1)}
    chunks = [[tampered(accepted, delivery) for delivery in message] for message in messages]
    ledgers, fates = [], []
    for one in (single, batch):
        open_bank(database, accounts=3, opening=10)
        accept_for(database, accepted.values(), one.strategy.name)
        for chunk in chunks:
            if one is batch:
                fates.append([told(fate) for fate in apply_all(batch, chunk).fates])
            else:
                fates.append(one_by_one(single, chunk))
        ledgers.append(ledger(database))
        assert audit(database).passed
    assert fates[: len(chunks)] == fates[len(chunks) :]
    assert ledgers[0] == ledgers[1]


def test_eight_eight_and_two_against_ten_applies_the_first_and_the_third(branch: BranchMaker, bank: Database) -> None:
    open_bank(bank, accounts=2, opening=10)
    orders = [order(number, 1, 2, amount) for number, amount in enumerate((8, 8, 2), start=1)]
    accept_for(bank, orders, "batch")
    assert apply_all(branch("batch"), orders).fates == [("applied", True), ("refused", True), ("applied", True)]
    assert balances(bank) == [0, 20]
    with bank.transaction() as transaction:
        row = transaction.execute("SELECT reason FROM transfers WHERE status = 'refused'").fetchone()
    assert row == ("account 1 holds 2, less than 8",)


def test_a_large_chunk_is_one_transaction_and_writes_each_account_once(branch: BranchMaker, bank: Database) -> None:
    orders = list(Workload(accounts=3, transfers=500, opening=100).orders(1))
    accept_for(bank, orders, "batch")
    receipt = apply_all(branch("batch"), orders)
    assert all(fate.first for fate in receipt.fates if isinstance(fate, Fate))
    found = audit(bank)
    assert found.passed
    assert found.transfers["applied"] + found.transfers["refused"] == 500
    with bank.transaction() as transaction:
        row = transaction.execute(
            "SELECT (SELECT count(DISTINCT xmin::text) FROM entries), (SELECT count(*) FROM accounts a"
            " WHERE a.xmin::text IN (SELECT xmin::text FROM entries))"
        ).fetchone()
    assert row == (1, 3)


def test_chunks_that_overlap_are_applied_once_whoever_comes_first(branch: BranchMaker, bank: Database) -> None:
    branches = [branch("batch"), branch("batch")]
    orders = list(Workload(accounts=3, transfers=60, opening=1000).orders(3))
    accept_for(bank, orders, "batch")
    chunks = [orders[:40], orders[20:][::-1], orders[::-1], orders[10:50]]
    futures = [
        branches[number % 2].pool.submit(apply_all, branches[number % 2], chunk, 0.01)
        for number, chunk in enumerate(chunks)
    ]
    fates = [fate for future in futures for fate in future.result().fates]
    assert sum(isinstance(fate, Fate) and fate.first for fate in fates) == len(orders)
    assert audit(bank).passed


def test_a_chunk_and_single_transfers_keep_each_others_money(branch: BranchMaker, bank: Database) -> None:
    batch, single = branch("batch"), branch("row-lock")
    orders = list(Workload(accounts=3, transfers=80, opening=1000).orders(4))
    accept_for(bank, orders[:60], "batch")
    accept_for(bank, orders[60:], "row-lock")
    futures = [batch.pool.submit(apply_all, batch, orders[first : first + 15], 0.002) for first in range(0, 60, 15)]
    receipts = list(single.pool.map(single.apply, orders[60:]))
    assert all(receipt.first for receipt in receipts)
    assert all(isinstance(fate, Fate) and fate.first for future in futures for fate in future.result().fates)
    assert audit(bank).passed


def test_after_a_conflict_the_whole_chunk_is_run_again(
    branch: BranchMaker,
    opened: list[Branch],
    settings: Settings,
    bank: Database,
    accepted: Callable[..., Order],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    branch("batch")
    hurried = settings.model_copy(update={"lock_timeout_ms": 50})
    opened.append(Branch("hurried", bank.url, opened[0].strategy, hurried, threads=1))
    orders = [accepted(1, 1, 2, 10), accepted(2, 2, 3, 10)]
    hold, held = threading.Event(), threading.Event()

    def stand_in_the_way() -> None:
        with bank.transaction() as transaction:
            transaction.execute("SELECT 1 FROM accounts WHERE id = 3 FOR UPDATE")
            held.set()
            hold.wait(10)

    monkeypatch.setattr("bank.teller.Pace.before_retry", lambda pace, seconds_max: hold.set())
    other = threading.Thread(target=stand_in_the_way)
    other.start()
    assert held.wait(10)
    receipt = apply_all(opened[1], orders)
    other.join()
    assert receipt.attempts >= 2
    assert receipt.conflicts["conflicts"] == receipt.attempts - 1
    assert receipt.fates == [("applied", True), ("applied", True)]
    assert balances(bank) == [90, 100, 110]
    assert audit(bank).passed
