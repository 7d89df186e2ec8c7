"""Strategies that were written to fool the proof: called safe, they lost money; called broken, they did not."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import UUID

import psycopg
import redis

from bank.strategies.base import in_order
from bank.strategies.redis_lock import redis_url
from bankrun import (
    Attempt,
    Claim,
    Conflict,
    InsufficientFunds,
    NotAcquired,
    Order,
    Posting,
    Settings,
    Snapshot,
    Strategy,
    ThreadGuard,
    Transaction,
)
from bankrun import psql_url as plain_url

ROW_LOCK = Strategy.READ + " FOR UPDATE"


class Fooling(Strategy):
    """Claims to be right everywhere, as all of these do."""

    claim = Claim.EVERYWHERE


class LocksThePayerOnly(Fooling):
    """The payee is only referred to: FOR KEY SHARE. Two payers of one payee overwrite each other."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        for account in attempt.order.accounts:
            strength = "UPDATE" if account == attempt.order.debit else "KEY SHARE"
            transaction.execute(f"SELECT 1 FROM accounts WHERE id = %(id)s FOR {strength}", {"id": account})
        return super().read(transaction, attempt)


class TakesTwinsForOne(Fooling):
    """Row locks; but a transfer is known by its accounts and its amount, and not by its id."""

    READ = ROW_LOCK

    @classmethod
    def install(cls, transaction: Transaction) -> None:
        transaction.execute(
            "CREATE TABLE IF NOT EXISTS known (debit int, credit int, amount bigint, UNIQUE (debit, credit, amount))"
        )

    def is_known(self, transaction: Transaction, order: Order) -> bool:
        words = "INSERT INTO known VALUES (%(debit)s, %(credit)s, %(amount)s) ON CONFLICT DO NOTHING RETURNING 1"
        parameters = {"debit": order.debit, "credit": order.credit, "amount": order.amount}
        return transaction.execute(words, parameters).fetchone() is None

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        if self.is_known(transaction, attempt.order):
            raise InsufficientFunds("this was paid already")
        super().move(transaction, attempt)


class LeavesTwinsOut(TakesTwinsForOne):
    """The same, and nothing is said."""

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        if not self.is_known(transaction, attempt.order):
            Strategy.move(self, transaction, attempt)


class KnowsBeforeItLocks(Fooling):
    """Advisory locks; but what others of this process have read is looked up before them."""

    def __init__(self) -> None:
        self.known: dict[int, Snapshot] = {}

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        known = dict(self.known)
        for account in attempt.order.accounts:
            transaction.execute("SELECT pg_advisory_xact_lock(%(id)s)", {"id": account})
        found = super().read(transaction, attempt)
        self.known |= {one.id: one for one in found}
        debit, credit = (known.get(one.id, one) for one in found)
        return debit, credit

    def post(self, transaction: Transaction, postings: tuple[Posting, Posting], attempt: Attempt) -> None:
        super().post(transaction, postings, attempt)
        for posting in postings:
            self.known.pop(posting.account_id, None)


class WithRedis(Fooling):
    """Keeps something in Redis."""

    client: Any

    @classmethod
    def open(cls, settings: Settings) -> Self:
        opened = cls()
        assert settings.broker_url is not None
        opened.client = redis.Redis.from_url(redis_url(settings.broker_url.get_secret_value()))
        return opened

    def close(self) -> None:
        self.client.close()


class CachesByEntry(WithRedis):
    """Right: row locks, and a balance of an entry is looked up in Redis, where it never changes."""

    READ = ROW_LOCK

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        debit, credit = (self.look_up(one) for one in super().read(transaction, attempt))
        return debit, credit

    def look_up(self, one: Snapshot) -> Snapshot:
        key = f"balance of {one.id} after {one.last_entry}"
        self.client.set(key, one.balance, nx=True)
        return one._replace(balance=int(self.client.get(key)))


class CachesBeforeItLocks(WithRedis):
    """Advisory locks; but Redis is asked for the balances before them."""

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        known = {account: self.client.get(str(account)) for account in attempt.order.accounts}
        for account in attempt.order.accounts:
            transaction.execute("SELECT pg_advisory_xact_lock(%(id)s)", {"id": account})
        found = super().read(transaction, attempt)
        for one in found:
            self.client.set(str(one.id), one.balance)
        debit, credit = (one._replace(balance=int(known[one.id] or one.balance)) for one in found)
        return debit, credit

    def post(self, transaction: Transaction, postings: tuple[Posting, Posting], attempt: Attempt) -> None:
        super().post(transaction, postings, attempt)
        self.client.delete(*(str(one.account_id) for one in postings))


class LockOnDisk(ThreadGuard):
    """A thread lock and a lock file: one that reaches further than its process."""

    FILE: ClassVar[Path] = Path(tempfile.gettempdir()) / f"bankrun-fooling-{os.getuid()}.lock"

    def try_enter(self) -> bool:
        if not super().try_enter():
            return False
        try:
            self.FILE.touch(exist_ok=False)
        except FileExistsError:
            super().leave()
            return False
        return True

    def enter(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not self.try_enter():
            if time.monotonic() > deadline:
                raise NotAcquired("somebody else has it")
            time.sleep(0.005)

    def leave(self) -> None:
        self.FILE.unlink()
        super().leave()


class LeavesEarlyWithLittle(Fooling):
    """A lock file, which is given back before the COMMIT where less than 10 is moved."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.mine = threading.local()

    def guard(self, order: Order) -> LockOnDisk:
        return LockOnDisk(self.lock)

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        self.mine.amount = attempt.order.amount
        super().move(transaction, attempt)

    def before_commit(self, leave_guard: Callable[[], None]) -> None:
        if self.mine.amount < 10:
            leave_guard()


class OpenSession:
    """A session that is open from before BEGIN until after COMMIT; it keeps nobody out by itself."""

    def __init__(self, strategy: ReadsWithAnOldSnapshot) -> None:
        self.strategy = strategy

    def try_enter(self) -> bool:
        self.strategy.mine.session = psycopg.connect(self.strategy.url, options="-c search_path=bankrun")
        return True

    def enter(self, timeout_seconds: float) -> None:
        self.try_enter()

    def leave(self) -> None:
        self.strategy.mine.session.close()


class ReadsWithAnOldSnapshot(Fooling):
    """A session's lock around all of it; but a STABLE function takes it, and reads with its caller's snapshot."""

    url = ""

    def __init__(self) -> None:
        self.mine = threading.local()

    @classmethod
    def open(cls, settings: Settings) -> Self:
        opened = cls()
        assert settings.database_url is not None
        opened.url = plain_url(settings.database_url.get_secret_value())
        return opened

    @classmethod
    def install(cls, transaction: Transaction) -> None:
        transaction.execute(
            """
            CREATE OR REPLACE FUNCTION lock_and_read (one int, other int) RETURNS SETOF accounts LANGUAGE plpgsql STABLE
            AS $$ BEGIN
                PERFORM pg_advisory_lock(777);
                RETURN QUERY SELECT * FROM bankrun.accounts WHERE id IN (one, other);
            END $$
            """
        )

    def guard(self, order: Order) -> OpenSession:
        return OpenSession(self)

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        rows = self.mine.session.execute(
            "SELECT id, balance, last_entry, version, clock_timestamp() FROM lock_and_read(%s, %s)",
            attempt.order.accounts,
        )
        return in_order(attempt.order, [Snapshot._make(row) for row in rows])


class LosesPatience(Fooling):
    """Row locks that do not wait; but who was in conflict four times goes on without."""

    def __init__(self) -> None:
        super().__init__()
        self._attempts: dict[UUID, int] = {}

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        number = self._attempts[attempt.order.id] = self._attempts.get(attempt.order.id, 0) + 1
        return read_with("" if number > 4 else " FOR UPDATE NOWAIT", transaction, attempt)


class WaitsOnce(Fooling):
    """Row locks; but who has waited for them for too long goes on without."""

    def __init__(self) -> None:
        super().__init__()
        self._tried: set[UUID] = set()

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        if attempt.order.id in self._tried:
            return read_with("", transaction, attempt)
        self._tried.add(attempt.order.id)
        transaction.execute("SET LOCAL lock_timeout = '3s'")
        return read_with(" FOR UPDATE", transaction, attempt)


class GetsNowhere(Fooling):
    """Reads what a worker may not read, so it never applies anything."""

    READ = ROW_LOCK.replace("WHERE", "WHERE (SELECT count(*) FROM pg_authid) > 0 AND")


class StepsAside(Fooling):
    """Does nothing as long as anybody else has written something: two can keep each other from it for ever."""

    READ = ROW_LOCK

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        (others,) = transaction.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND pid <> pg_backend_pid()"
        ).fetchone()
        if others:
            raise Conflict("somebody else is at it")
        return super().read(transaction, attempt)


def read_with(locking: str, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
    """Read both accounts, with this locking clause."""
    order = attempt.order
    rows = transaction.execute(Strategy.READ + locking, {"debit": order.debit, "credit": order.credit}).fetchall()
    return in_order(order, [Snapshot._make(row) for row in rows])
