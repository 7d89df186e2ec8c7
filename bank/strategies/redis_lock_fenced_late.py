"""Almost right: the fence is there, and the read is in front of it."""

from __future__ import annotations

from typing import ClassVar

from bank.errors import Conflict
from bank.orders import Order, Posting
from bank.postgres.database import Database, Transaction
from bank.strategies.base import Attempt, Claim
from bank.strategies.redis_lock import RedisLock


class RedisLockFencedLate(RedisLock):
    """``redis-lock`` with a token that is checked when the balances are written.

    Claims nothing. People believe in it because it is the well-known picture (Kleppmann, 2016): the store refuses a
    write whose token is lower than one it has seen, so the holder that overslept is turned away. It is, if the next one
    has written before it wakes. If the next one has only *read*, the sleeper writes first and is let in, and the next
    one then writes what it computed from the old balance, with the higher token: that posting is lost. A read that
    decides a write belongs behind the fence too, as in ``redis-lock-fenced``.
    """

    name = "redis-lock-fenced-late"
    summary = "almost right: fenced on write only"
    claim = Claim.NOTHING

    DRAW: ClassVar[str] = "SELECT nextval('fence_tokens')"
    MARK: ClassVar[str] = """
        INSERT INTO fences (name, fence) VALUES (%(name)s, %(token)s)
        ON CONFLICT (name) DO UPDATE SET fence = excluded.fence WHERE fences.fence < excluded.fence
        RETURNING fence
    """

    def prepare(self, database: Database, order: Order) -> object:
        """Draw a token."""
        with database.transaction() as transaction:
            drawn = transaction.execute(self.DRAW).fetchone()
        assert drawn is not None
        return drawn[0]

    def post(self, transaction: Transaction, postings: tuple[Posting, Posting], attempt: Attempt) -> None:
        """Pass the fence, then write. Raises Conflict if a later holder has passed it."""
        passed = transaction.execute(self.MARK, {"name": self.name, "token": attempt.prepared}).fetchone()
        if passed is None:
            raise Conflict("the lease ran out, and a later holder has written")
        super().post(transaction, postings, attempt)
