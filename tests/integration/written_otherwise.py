"""The same transfers in other words: what the proof says must follow what Postgres did, and not how it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, LiteralString, Self

import psycopg
import redis
from psycopg import sql

from bank.errors import NotAcquired
from bank.postgres.database import Database
from bankrun import (
    Account,
    Attempt,
    Claim,
    InsufficientFunds,
    Order,
    Posting,
    Settings,
    Snapshot,
    Strategy,
    ThreadGuard,
    Transaction,
)
from bankrun import psql_url as plain_url


class Written(Strategy):
    """Claims to be right everywhere, as all of these do."""

    claim = Claim.EVERYWHERE


class QuotedNames(Written):
    """No lock, and names in quotes."""

    WRITE = (
        'UPDATE "bankrun"."accounts" AS "a" SET "balance" = %(after)s, "last_entry" = %(entry_id)s '
        'WHERE "a"."id" = %(account_id)s'
    )


class UpdateInADoBlock(Written):
    """No lock, and an UPDATE whose text is a string in a block."""

    def write(self, transaction: Transaction, posting: Posting) -> None:
        update = "UPDATE acc{} SET balance = {}, last_entry = {} WHERE id = {}"
        text = update.format("'||'ounts", posting.after, posting.entry_id, posting.account_id)
        transaction.execute(sql.SQL(f"DO $do$ BEGIN EXECUTE '{text}'; END $do$"))  # type: ignore[arg-type]


class ReadByOrm(Written):
    """No lock: objects are loaded, changed and flushed."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        with transaction.orm_session() as session:
            found = [session.get_one(Account, account) for account in attempt.order.accounts]
            now = transaction.execute("SELECT clock_timestamp()").fetchone()[0]  # type: ignore[index]
            of = {row.id: Snapshot(row.id, row.balance, row.last_entry, row.version, now) for row in found}
        return of[attempt.order.debit], of[attempt.order.credit]


class LockedByOrm(Written):
    """SELECT … FOR UPDATE by an ORM."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        with transaction.orm_session() as session:
            for account in attempt.order.accounts:
                session.get_one(Account, account, with_for_update=True)
        return super().read(transaction, attempt)


class LockedInAFunction(Written):
    """A function locks both rows; nothing that Python sends names the table."""

    MAKE: ClassVar[str] = """
        CREATE OR REPLACE FUNCTION hold_both (one int, other int) RETURNS void LANGUAGE sql AS
        $$ SELECT 1 FROM bankrun.accounts WHERE id IN (one, other) ORDER BY id FOR UPDATE $$
    """

    @classmethod
    def install(cls, transaction: Transaction) -> None:
        transaction.execute(cls.MAKE)

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        one, other = attempt.order.accounts
        transaction.execute("SELECT hold_both(%(one)s, %(other)s)", {"one": one, "other": other})
        return super().read(transaction, attempt)


class WrittenByATrigger(Written):
    """No lock, and the balances are written by a trigger on the entries."""

    MAKE: ClassVar[tuple[str, ...]] = (
        """
        CREATE OR REPLACE FUNCTION follow_entry () RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = bankrun AS $$ BEGIN
            UPDATE accounts SET balance = NEW.after, last_entry = NEW.id WHERE id = NEW.account_id; RETURN NEW;
        END $$
        """,
        "CREATE OR REPLACE TRIGGER follows BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION follow_entry()",
    )

    @classmethod
    def install(cls, transaction: Transaction) -> None:
        for statement in cls.MAKE:
            transaction.execute(statement)

    def write(self, transaction: Transaction, posting: Posting) -> None:
        """The trigger does it."""


class SumsTheEntries(Written):
    """One statement locks the row and sums the entries: the row is read again after the wait, the sum is not."""

    READ = """
        SELECT a.id, a.opening + (SELECT coalesce(sum(e.delta), 0)::bigint FROM entries e WHERE e.account_id = a.id),
               a.last_entry, a.version, clock_timestamp()
        FROM accounts a WHERE a.id IN (%(debit)s, %(credit)s) ORDER BY a.id FOR UPDATE OF a
    """


class RefusesWhereItWouldWait(Written):
    """SKIP LOCKED; what it could not lock it calls short of funds."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        order = attempt.order
        words = "SELECT id FROM accounts WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR UPDATE SKIP LOCKED"
        if len(transaction.execute(words, {"debit": order.debit, "credit": order.credit}).fetchall()) < 2:
            raise InsufficientFunds("somebody else has it")
        return super().read(transaction, attempt)


class LeavesASessionLock(Written):
    """A lock of the session that nobody gives back."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        transaction.execute("SELECT pg_advisory_lock(%(id)s)", {"id": attempt.order.accounts[0]})
        return super().read(transaction, attempt)


class SerializableFromTheSecondOn(Written):
    """Makes the session serializable; its first transaction has begun by then."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        transaction.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        return super().read(transaction, attempt)


class WithASession(Written):
    """Opens sessions of its own."""

    url = ""

    @classmethod
    def open(cls, settings: Settings) -> Self:
        opened = cls()
        assert settings.database_url is not None
        opened.url = plain_url(settings.database_url.get_secret_value())
        return opened


class WritesElsewhere(WithASession):
    """No lock, and it writes the accounts in a session of its own."""

    def write(self, transaction: Transaction, posting: Posting) -> None:
        with psycopg.connect(self.url, options="-c search_path=bankrun") as own:
            own.execute(self.WRITE, posting._asdict())


class LocksFromTheSecondOn(Written):
    """The first transfer of each process takes no lock: a flag of the class."""

    is_warm: ClassVar[bool] = False

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        if not LocksFromTheSecondOn.is_warm:
            LocksFromTheSecondOn.is_warm = True
            return super().read(transaction, attempt)
        lock = "SELECT id FROM accounts WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR UPDATE"
        transaction.execute(lock, {"debit": attempt.order.debit, "credit": attempt.order.credit})
        return super().read(transaction, attempt)


class ComparesTickets(Written):
    """Locks and reads again if its two tickets are consecutive; else it keeps what it read without a lock."""

    TICKET: ClassVar[LiteralString] = "SELECT nextval('fence_tokens')"

    def draw(self, transaction: Transaction) -> int:
        row = transaction.execute(self.TICKET).fetchone()
        assert row is not None
        return int(row[0])

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        first = self.draw(transaction)
        found = super().read(transaction, attempt)
        if self.draw(transaction) != first + 1:
            return found
        lock = "SELECT id FROM accounts WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR UPDATE"
        transaction.execute(lock, {"debit": attempt.order.debit, "credit": attempt.order.credit})
        return super().read(transaction, attempt)


class KeepsTheLastTwenty(Written):
    """Refuses a transfer that leaves less than 20."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        payer, payee = super().read(transaction, attempt)
        if payer.balance - attempt.order.amount < 20:
            raise InsufficientFunds("not the last 20")
        return payer, payee


class ChecksLargeAmountsOnly(Written):
    """Any account can pay less than 10."""

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        if attempt.order.amount >= 10:
            super().move(transaction, attempt)
            return
        payer, payee = self.read(transaction, attempt)
        one, other = attempt.entry_ids
        self.post(
            transaction, (payer.post(one, -attempt.order.amount), payee.post(other, attempt.order.amount)), attempt
        )


class GoesOnAfterAFailure(Written):
    """An error is caught in a transaction that Postgres has given up by then."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        with suppress(psycopg.errors.DivisionByZero):
            transaction.execute("SELECT 1 / 0")
        return super().read(transaction, attempt)


class EntersWithoutTheLock(Written):
    """``try_enter`` is right; ``enter``, which workers call, is not."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def guard(self, order: Order) -> ThreadGuard:
        guard = ThreadGuard(self.lock)
        guard.enter = lambda _: None  # type: ignore[method-assign, misc, assignment]
        guard.leave = lambda: self.lock.release() if self.lock.locked() else None  # type: ignore[method-assign]
        return guard


class GivesUpTheLock(Written):
    """After three tries it goes in all the same."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def guard(self, order: Order) -> ThreadGuard:
        guard, tries = ThreadGuard(self.lock), iter((False, False))
        take = guard.try_enter
        guard.try_enter = lambda: take() or next(tries, True)  # type: ignore[method-assign]
        return guard


class RedisKey:
    """A key of Redis as a guard."""

    def __init__(self, client: Any, milliseconds: int | None) -> None:
        self.client, self.milliseconds = client, milliseconds

    def try_enter(self) -> bool:
        return bool(self.client.set("theirs", "1", nx=True, px=self.milliseconds))

    def enter(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not self.try_enter():
            if time.monotonic() > deadline:
                raise NotAcquired("somebody else has it")
            time.sleep(0.005)

    def leave(self) -> None:
        self.client.delete("theirs")


class LeaseInAnotherDatabase(Written):
    """A lease that nobody declared, in the sixth database of Redis."""

    client: Any

    @classmethod
    def open(cls, settings: Settings) -> Self:
        assert settings.broker_url is not None
        opened = cls()
        opened.client = redis.Redis.from_url(settings.broker_url.get_secret_value())
        opened.client.connection_pool.connection_kwargs["db"] = 5
        return opened

    def close(self) -> None:
        self.client.close()

    def guard(self, order: Order) -> RedisKey:
        return RedisKey(self.client, 30)


class LeaseFromLaterOn(LeaseInAnotherDatabase):
    """The key gets its time to live when the guard is held already."""

    def guard(self, order: Order) -> RedisKey:
        return RedisKey(self.client, None)

    def prepare(self, database: Database, order: Order) -> None:
        self.client.pexpire("theirs", 10_000)


class SessionLock:
    """A lock of a session of its own as a guard; the session ends in ``leave``."""

    def __init__(self, url: str, *, unlocks: bool) -> None:
        self.url, self.unlocks = url, unlocks

    def try_enter(self) -> bool:
        self.session = psycopg.connect(self.url, autocommit=True)
        row = self.session.execute("SELECT pg_try_advisory_lock(777)").fetchone()
        if row == (True,):
            return True
        self.session.close()
        return False

    def enter(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not self.try_enter():
            if time.monotonic() > deadline:
                raise NotAcquired("somebody else has it")
            time.sleep(0.005)

    def leave(self) -> None:
        if self.unlocks:
            self.session.execute("SELECT pg_advisory_unlock(777)")
        self.session.close()


class LocksByHash(Written):
    """An advisory lock on the hash of a text, which is another in each process."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        for account in attempt.order.accounts:
            transaction.execute("SELECT pg_advisory_xact_lock(%(key)s)", {"key": hash(f"account {account}")})
        return super().read(transaction, attempt)


class GuardedByASession(WithASession):
    """The lock is given back by the end of its session."""

    unlocks = False

    def guard(self, order: Order) -> SessionLock:
        return SessionLock(self.url, unlocks=self.unlocks)


class GuardedByASessionThatUnlocks(GuardedByASession):
    """The lock is given back before the end of its session."""

    unlocks = True


class LocksUntilTheCommit(WithASession):
    """The lock of a session of its own is given back when everything is written, and not yet committed."""

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        with psycopg.connect(self.url, autocommit=True) as own:
            own.execute("SELECT pg_advisory_lock(777)")
            super().move(transaction, attempt)


class KeepsWhatItPosts(Written):
    """Row locks; but what is to be written is kept on the object, which all threads share."""

    READ = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts
        WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR UPDATE
    """
    kept: Sequence[Posting] = ()

    def post(self, transaction: Transaction, postings: Sequence[Posting], attempt: Attempt) -> None:
        self.kept = sorted(postings, key=lambda one: one.account_id)
        self.write(transaction, self.kept[0])
        self.write(transaction, self.kept[1])
        transaction.record(postings, attempt.order.id)
