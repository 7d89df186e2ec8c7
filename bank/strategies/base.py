"""What a strategy is: the naive transfer of the talk, and the places where a strategy may differ from it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, Self, TypeGuard, overload, runtime_checkable
from uuid import UUID

from bank.errors import InsufficientFunds, NotAcquired, Refused, UnknownAccount
from bank.orders import Order, Posting, Snapshot
from bank.postgres import versions
from bank.postgres.database import Database, Isolation, Transaction
from bank.settings import Settings

Think = Callable[[], None]
"""Stands for what an application does between reading a balance and writing it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a transfer that is claimed: all that its move is about, but for the transaction.

    ``entry_ids`` are those of the debit's and the credit's entry; ``prepared`` is what the strategy's ``prepare``
    returned.
    """

    order: Order
    entry_ids: tuple[int, int]
    think: Think
    prepared: object = None


@dataclass(frozen=True, slots=True)
class ChunkAttempt:
    """One attempt at all claimed transfers of a message."""

    orders: Sequence[Order]
    think: Think


class Claim(StrEnum):
    """How far a strategy says it protects a balance."""

    NOTHING = "nothing"
    PROCESS = "process"
    HOST = "host"
    EVERYWHERE = "everywhere"

    def covers(self, *, instances: int, threads: int, hosts: int) -> bool:
        """Whether the claim reaches over this topology. Where only one thread works there is nothing to protect."""
        if instances * threads == 1:
            return True
        match self:
            case Claim.NOTHING:
                return False
            case Claim.PROCESS:
                return instances == 1
            case Claim.HOST:
                return hosts == 1
            case Claim.EVERYWHERE:
                return True


class Guard(Protocol):
    """What a strategy holds around the transaction: taken before BEGIN, given back after COMMIT."""

    def enter(self, timeout_seconds: float) -> None:
        """Wait for the guard. Raises NotAcquired after ``timeout_seconds``."""

    def try_enter(self) -> bool:
        """Take the guard if that is possible at once."""

    def leave(self) -> None:
        """Give the guard back."""


@runtime_checkable
class Lease(Guard, Protocol):
    """A guard that can run out: another can take it once its time is over, whether or not its holder has noticed.

    A strategy whose guard is one says by ``survives_pause`` what then becomes of its claim.
    """

    def expire(self) -> None:
        """Do to the lease what running out of time does. Its holder learns nothing of it."""


class ThreadGuard:
    """A ``threading.Lock`` as a guard, or several that are taken in this order and all held.

    It reaches no further than its process: the proof relies on that, and lets two instances pass each other here.
    """

    def __init__(self, *locks: threading.Lock) -> None:
        self._locks = locks

    def enter(self, timeout_seconds: float) -> None:
        """Wait for one lock after the other. Raises NotAcquired, holding none, after ``timeout_seconds`` in all."""
        deadline = time.monotonic() + timeout_seconds
        if not self._take(lambda lock: lock.acquire(timeout=max(0.0, deadline - time.monotonic()))):
            raise NotAcquired(f"the thread lock was not free within {timeout_seconds:g} s")

    def try_enter(self) -> bool:
        """Take all locks if all are free."""
        return self._take(lambda lock: lock.acquire(blocking=False))

    def leave(self) -> None:
        """Release all locks."""
        for lock in self._locks:
            lock.release()

    def _take(self, acquire: Callable[[threading.Lock], bool]) -> bool:
        for number, lock in enumerate(self._locks):
            if not acquire(lock):
                for taken in self._locks[:number]:
                    taken.release()
                return False
        return True


class Strategy:
    """Read both balances, compute, write both: the talk's transfer, with nothing to keep others out.

    One object lives in each instance, so a lock it holds is an in-process lock by construction. Override ``guard``,
    ``isolation``, ``read`` or ``write`` — or ``move``, if the strategy does not read before it writes. Claiming,
    retrying and measuring are the teller's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for the table of strategies."""
    claim: ClassVar[Claim] = Claim.NOTHING
    survives_pause: ClassVar[bool | None] = None
    """Whether the claim also holds when a holder stops for longer than its lease, and then goes on. None: its guard is
    no Lease."""
    routed_to_one: ClassVar[bool] = False
    """Whether the claim rests on routing: all of its transfers go to one instance, one at a time."""
    isolation: ClassVar[Isolation] = "READ COMMITTED"
    postgres_min: ClassVar[int] = versions.OLDEST // 10_000
    """The oldest Postgres that has all that its SQL asks for: 18, for example. On an older one it is left out."""

    READ: ClassVar[str] = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts
        WHERE id IN (%(debit)s, %(credit)s) ORDER BY id
    """
    WRITE: ClassVar[str] = (
        "UPDATE accounts SET balance = %(after)s, last_entry = %(entry_id)s WHERE id = %(account_id)s"
    )

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the object that one instance uses. ``settings`` say where the servers are, and how long to wait."""
        return cls()

    @classmethod
    def install(cls, transaction: Transaction) -> None:
        """Make what it needs in the bank's schema, a function for example, and nothing elsewhere.

        The lab does this, as the schema's owner, before the first transfer: workers may not make anything. It may be
        there already: use CREATE OR REPLACE, or IF NOT EXISTS.
        """

    def close(self) -> None:
        """Give back what ``open`` took."""

    def guard(self, order: Order) -> Guard | None:
        """Return what to hold around the transaction that applies ``order``, if anything.

        Two threads may hold guards of one strategy at the same time: a guard that remembers its acquisition is made
        anew for each call.
        """
        return None

    def prepare(self, database: Database, order: Order) -> object:
        """Do what must be done under the guard before the transaction begins, in transactions of its own.

        What it returns is the attempt's ``prepared``.
        """
        return None

    def apply_at_once(self, transaction: Transaction, parameters: Mapping[str, object], think: Think) -> bool:
        """Apply a whole transfer, its claim included, by one statement that commits itself; return whether it did so.

        It inserts the entries last. One that changes nothing, or none at all as here, leaves the transfer to the usual
        way. ``parameters`` are ``id``, ``debit``, ``credit``, ``amount``, ``strategy``, ``instance``, ``thread`` and
        ``attempts``.
        """
        return False

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        """Move the money of one claimed order. Raises Refused if it may not move, Conflict to be run again.

        A refusal that comes after an account was written has to undo the write: see ``Transaction.savepoint``.
        """
        debit, credit = self.read(transaction, attempt)
        amount = attempt.order.amount
        if debit.balance < amount:
            raise InsufficientFunds(f"account {debit.id} holds {debit.balance}, less than {amount}")
        attempt.think()
        debit_entry, credit_entry = attempt.entry_ids
        self.post(transaction, (debit.post(debit_entry, -amount), credit.post(credit_entry, amount)), attempt)

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        """Return the debit and the credit account as they are now."""
        order = attempt.order
        rows = transaction.execute(self.READ, {"debit": order.debit, "credit": order.credit}).fetchall()
        return in_order(order, [Snapshot._make(row) for row in rows])

    def post(self, transaction: Transaction, postings: tuple[Posting, Posting], attempt: Attempt) -> None:
        """Write both balances, then the entries."""
        # In id order, as SQLAlchemy's unit of work flushes them in the talk: an UPDATE locks its row until COMMIT, so
        # another order could end in a deadlock even without a lock that was asked for.
        for posting in sorted(postings, key=_account_id):
            self.write(transaction, posting)
        transaction.record(postings, attempt.order.id)

    def write(self, transaction: Transaction, posting: Posting) -> None:
        """Write one account's new balance."""
        transaction.execute(self.WRITE, posting._asdict())

    def before_commit(self, leave_guard: Callable[[], None]) -> None:
        """Do what is left when everything is written, and not committed. The guard is given back after the COMMIT."""


class ChunkStrategy(Strategy, ABC):
    """A strategy that applies all orders of a message in one transaction: all of them have their outcome, or none.

    It has no guard, and ``move_all`` takes the place of ``move``.
    """

    messages_at_a_time: ClassVar[int] = 1
    """How many messages an instance applies at the same time. Where most messages share rows, more than one would wait
    in line for them, and keep Postgres from clearing away the versions that those before it leave behind."""

    @abstractmethod
    def move_all(self, transaction: Transaction, attempt: ChunkAttempt) -> Mapping[UUID, Refused]:
        """Move the money of claimed orders, as if one after another, and return those that may not move, with why.

        Raises Conflict to be run again, all of them.
        """


@overload
def takes_chunks(strategy: Strategy) -> TypeGuard[ChunkStrategy]: ...
@overload
def takes_chunks(strategy: type[Strategy]) -> TypeGuard[type[ChunkStrategy]]: ...
def takes_chunks(strategy: Strategy | type[Strategy]) -> bool:
    """Whether a strategy applies all orders of a message in one transaction."""
    return issubclass(strategy if isinstance(strategy, type) else type(strategy), ChunkStrategy)


def in_order(order: Order, found: list[Snapshot]) -> tuple[Snapshot, Snapshot]:
    """Return the snapshots as (debit, credit). Raises UnknownAccount if one is missing."""
    by_id = {snapshot.id: snapshot for snapshot in found}
    for account in (order.debit, order.credit):
        if account not in by_id:
            raise UnknownAccount(f"there is no account {account}")
    return by_id[order.debit], by_id[order.credit]


def _account_id(posting: Posting) -> int:
    return posting.account_id
