"""A bank that is opened anew for each test, and instances that live in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from bank.orders import Order
from bank.outside import strategy_named
from bank.postgres.database import Database
from bank.postgres.schema import open_bank
from bank.receipts import Receipt
from bank.settings import Settings
from bank.strategies import Strategy
from bank.teller import Teller
from bankrun.proof.prover import Prover
from workers.submission import Submission, accept


@pytest.fixture(scope="session")
def own_settings(settings: Settings, state_dir: Path) -> Settings:
    """Settings for servers of a proof's own."""
    return settings.model_copy(update={"state_dir": state_dir})


@pytest.fixture(scope="session")
def prover(own_settings: Settings) -> Iterator[Prover]:
    """A prover for two transfers."""
    with Prover(own_settings) as opened:
        yield opened


class Branch:
    """An instance without Celery: a teller, a strategy object and a thread pool of its own."""

    def __init__(self, name: str, url: str, strategy: Strategy, settings: Settings, threads: int) -> None:
        self.strategy = strategy
        self.database = Database.for_instance(url, instance=name, threads=threads, settings=settings)
        self.teller = Teller(self.database, instance=name, guard_timeout_seconds=5, patience_seconds=30)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def apply(self, order: Order, *, think_seconds: float = 0.0) -> Receipt:
        """Apply one order in the caller's thread."""
        return self.teller.apply(order, self.strategy, think_seconds=think_seconds)

    def close(self) -> None:
        """Let the threads finish and close the connections."""
        self.pool.shutdown()
        self.strategy.close()
        self.database.close()


BranchMaker = Callable[..., Branch]


@pytest.fixture
def opened() -> list[Branch]:
    """The branches that this test has made so far."""
    return []


@pytest.fixture
def branch(database: Database, worker_url: str, settings: Settings, opened: list[Branch]) -> Iterator[BranchMaker]:
    """Return a maker of branches, with the rights of workers; they are closed after the test."""

    def make(strategy: str | Strategy, *, threads: int = 4) -> Branch:
        made = strategy_named(strategy).open(settings) if isinstance(strategy, str) else strategy
        opened.append(Branch(f"b{len(opened) + 1}", worker_url, made, settings, threads))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def bank(database: Database) -> Database:
    """Three accounts with 100 each, as in the talk."""
    open_bank(database, accounts=3, opening=100)
    return database


def order(number: int, debit: int, credit: int, amount: int) -> Order:
    """Return an order with a fixed id."""
    return Order(UUID(int=number), debit, credit, amount)


@pytest.fixture
def accepted(bank: Database, opened: list[Branch]) -> Callable[..., Order]:
    """Return a function that makes an order and accepts it for the latest branch's strategy."""

    def make(number: int, debit: int, credit: int, amount: int) -> Order:
        made = order(number, debit, credit, amount)
        accept(
            bank, [made], Submission("test", opened[-1].strategy.name if opened else "none", "test"), forgettable=True
        )
        return made

    return make


def balances(database: Database) -> list[int]:
    """Return all balances in id order."""
    with database.transaction() as transaction:
        return [row[0] for row in transaction.execute("SELECT balance FROM accounts ORDER BY id")]
