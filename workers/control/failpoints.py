"""Places in a transaction at which an instance can be made to die or to stop. Only `bankrun chaos` arms them.

They are in the connection, not in the teller or in a strategy: what is tried is the code that always runs.
"""

from __future__ import annotations

import hmac
import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from pydantic import SecretStr

from bank.errors import Rejected
from bank.ledger import CLAIM, CLAIM_ALL, Statement
from bank.postgres.connection import LeanConnection, Parameters, Query, Rows
from bank.postgres.models import SCHEMA
from bank.strategies.single_statement import SingleStatement

Point = Literal["receive", "claim", "after-read", "between-writes", "before-commit", "after-commit"]
"""``receive`` is when a message has just come, and is in nobody's hands yet; ``after-read`` is after the first
statement that reads an account, which may write it too; ``between-writes`` after the first that writes one, which may
write both. Where one statement is the whole transfer, ``claim`` is before it, and the others are after its COMMIT."""
Action = Literal["kill", "stop", "exit"]
"""SIGKILL, SIGSTOP, or an end of the process as after a fault in an extension module."""

CLAIMS = {statement.name for statement in (CLAIM, CLAIM_ALL, SingleStatement.AT_ONCE)}
READ_LOCKS = {"AccessShareLock", "RowShareLock"}
WRITE_LOCK = "RowExclusiveLock"
LOCKS = """
    SELECT mode FROM pg_catalog.pg_locks
    WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relation = %(accounts)s::regclass
"""
"""What this session has done to the accounts, by the locks that it has until its transaction ends, whatever the SQL was
(manual, section 13.3.1): a SELECT takes the first of the read locks, with FOR UPDATE the second; an UPDATE the write
lock."""
EXIT_STATUS = 70

logger = logging.getLogger("bankrun")


@dataclass(frozen=True, slots=True)
class Failpoint:
    """Do ``action`` once ``point`` was passed ``passes`` times; with ``transfer``, at each time of that one alone."""

    point: Point
    action: Action
    transfer: str | None = None
    passes: int = 0


class Failpoints:
    """What is armed in one instance. Arming takes the key that the instance was started with.

    So a message to the broker is not enough to stop an instance by it. Thread-safe.
    """

    def __init__(self, key: SecretStr) -> None:
        self._key = key.get_secret_value()
        self._armed: Failpoint | None = None
        self._lock = threading.Lock()

    def arm(self, key: str, failpoint: Failpoint | None) -> None:
        """Arm this one instead of what was armed before; None disarms. Raises Rejected for a wrong key or place."""
        if not hmac.compare_digest(key.encode(), self._key.encode()):
            raise Rejected("a failpoint needs the key that this instance was started with")
        if failpoint is not None and (
            failpoint.point not in get_args(Point) or failpoint.action not in get_args(Action)
        ):
            raise Rejected(f"there is no failpoint {failpoint.point!r} with {failpoint.action!r}")
        with self._lock:
            self._armed = failpoint

    @property
    def is_armed(self) -> bool:
        """Whether it is worth looking where a transaction stands."""
        return self._armed is not None

    def reach(self, point: Point, transfer: str | None = None) -> None:
        """Do what is armed for this point, if anything is."""
        with self._lock:
            armed = self._armed
            if armed is None or armed.point != point or (armed.transfer is not None and armed.transfer != transfer):
                return
            if armed.passes:
                self._armed = replace(armed, passes=armed.passes - 1)
                return
            if armed.transfer is None:
                self._armed = None
        logger.warning("failpoint %s: %s", point, armed.action)
        if armed.action == "exit":
            os._exit(EXIT_STATUS)
        os.kill(os.getpid(), signal.SIGKILL if armed.action == "kill" else signal.SIGSTOP)

    def connect(self, *arguments: Any, **options: Any) -> psycopg.Connection[Any]:
        """Open a connection that reaches failpoints: for ``Database``."""
        connection = Connection.connect(*arguments, **options, cursor_factory=Cursor)
        connection.failpoints = self
        return connection


class Connection(LeanConnection):
    """A worker's connection that looks at what goes through it. Each failpoint is reached once in a transaction."""

    failpoints: Failpoints
    read = written = False

    def run_as_is(self, query: Query, parameters: Parameters | None = None) -> Rows:
        """Run a query, then reach what it leads to: of ``run`` too, which ends in this."""
        claimed = _claimed_transfers(query, parameters)
        commits_itself = self.pgconn.transaction_status == TransactionStatus.IDLE
        if commits_itself:
            self._reach_claims(claimed)
        rows = super().run_as_is(query, parameters)
        if not commits_itself:
            self._reach_claims(claimed)
            self.look()
        elif claimed and rows.rowcount:
            for point in ("after-read", "between-writes", "before-commit", "after-commit"):
                self.failpoints.reach(point)
        return rows

    def look(self) -> None:
        """Reach the failpoints that are behind what the transaction has done to the accounts by now."""
        if not self.failpoints.is_armed or self.written:
            return
        if self.pgconn.transaction_status != TransactionStatus.INTRANS:
            return
        modes = {mode for (mode,) in super().run_as_is(LOCKS, {"accounts": f"{SCHEMA}.accounts"})}
        writes = WRITE_LOCK in modes
        if (writes or modes & READ_LOCKS) and not self.read:
            self.read = True
            self.failpoints.reach("after-read")
        if writes:
            self.written = True
            self.failpoints.reach("between-writes")

    def commit(self) -> None:
        """Commit, and reach the failpoints before and after it; those of transactions that moved no money are none."""
        moved = self.written
        if moved:
            self.failpoints.reach("before-commit")
        super().commit()
        self._begin_anew()
        if moved:
            self.failpoints.reach("after-commit")

    def rollback(self) -> None:
        """Roll back."""
        self._begin_anew()
        super().rollback()

    def _reach_claims(self, transfers: list[str]) -> None:
        for transfer in transfers:
            self.failpoints.reach("claim", transfer)

    def _begin_anew(self) -> None:
        self.read = self.written = False


def _claimed_transfers(query: Query, parameters: Parameters | None) -> list[str]:
    """Return the transfers that a statement claims: one, or a message's."""
    if not isinstance(query, Statement) or query.name not in CLAIMS or not isinstance(parameters, Mapping):
        return []
    given = [str(parameters["id"])] if "id" in parameters else str(parameters["ids"]).strip("{}").split(",")
    return [str(UUID(one)) for one in given]


class Cursor(psycopg.Cursor[Any]):
    """A cursor on such a connection: the ORM's."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """Run a statement, then reach what it leads to."""
        result = super().execute(query, params, **options)
        self._look()
        return result

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """Run a statement several times, then reach what it leads to: the ORM writes both accounts like this."""
        super().executemany(query, params_seq, **options)
        self._look()

    def _look(self) -> None:
        assert isinstance(self.connection, Connection)
        self.connection.look()
