"""The lock in Redis, and a fence in Postgres against a holder that comes back too late."""

from __future__ import annotations

from typing import ClassVar

from bank.errors import Conflict
from bank.orders import Order, Snapshot
from bank.postgres.database import Database, Transaction
from bank.strategies.base import Attempt, Claim
from bank.strategies.redis_lock import RedisLock


class RedisLockFenced(RedisLock):
    """``redis-lock``, where each holder also gets a token, higher than all before it, and Postgres knows the highest.

    Claims everywhere, paused holders included. The token is registered and committed before anything is read. The
    money transaction then keeps that row locked (``FOR SHARE``: manual, section 13.3.2) until its own COMMIT, and gives
    up if the token in it is not its own: a holder that overslept meets the fence of the next one, and a next one that
    comes in between waits in its registration. Both must come before the read; checked only on write, the token is not
    enough (``redis-lock-fenced-late``). What keeps the money is the row in Postgres, and it would do so without Redis:
    the lock only spares the collisions.
    """

    name = "redis-lock-fenced"
    summary = "the same, with a fence in Postgres"
    claim = Claim.EVERYWHERE
    survives_pause = True

    REGISTER: ClassVar[str] = """
        INSERT INTO fences (name, fence) VALUES (%(name)s, nextval('fence_tokens'))
        ON CONFLICT (name) DO UPDATE SET fence = excluded.fence WHERE fences.fence < excluded.fence
        RETURNING fence
    """
    HOLD: ClassVar[str] = "SELECT fence FROM fences WHERE name = %(name)s FOR SHARE"

    def prepare(self, database: Database, order: Order) -> object:
        """Draw a token and register it. Raises Conflict if a later holder was faster."""
        with database.transaction() as transaction:
            registered = transaction.execute(self.REGISTER, {"name": self.name}).fetchone()
        if registered is None:
            raise Conflict("a later holder of the lease has registered already")
        return registered[0]

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        """Hold the fence, then read. Raises Conflict if it is no longer ours."""
        if transaction.execute(self.HOLD, {"name": self.name}).fetchone() != (attempt.prepared,):
            raise Conflict("the lease ran out, and a later holder has registered")
        return super().read(transaction, attempt)
