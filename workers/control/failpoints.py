"""Places in a transaction at which an instance can be made to die or to stop. Only `bankrun chaos` arms them.

They are in the connection, not in the teller or in a strategy: what is tried is the code that always runs.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, LiteralString, Self, get_args
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from pydantic import SecretStr

from bank.errors import Rejected
from bank.postgres.connection import LeanConnection, Rows

Point = Literal["claim", "after-read", "between-writes", "before-commit", "after-commit"]
"""``after-read`` is after the first statement that touches an account, which may write it too; ``between-writes`` after
the first that writes one, which may write both. Where one statement is the whole transfer, ``claim`` is before it, and
the others are after its COMMIT."""
Action = Literal["kill", "stop", "exit"]
"""SIGKILL, SIGSTOP, or an end of the process as after a fault in an extension module."""

READS = re.compile(r"\bFROM\s+(ONLY\s+)?(bankrun\.)?accounts\b", re.IGNORECASE)
WRITES = re.compile(r"\bUPDATE\s+(ONLY\s+)?(bankrun\.)?accounts\b", re.IGNORECASE)
CLAIMS = re.compile(
    r"\bUPDATE\s+transfers\s+SET\s+status\s*=\s*'applied'|\bFROM\s+transfers\b.*\bFOR\s+NO\s+KEY\s+UPDATE\b",
    re.IGNORECASE | re.DOTALL,
)
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
    """What is armed in one instance. Whoever arms something shows the key that the instance was started with.

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
        connection.reach = self.reach
        return connection


class Connection(LeanConnection):
    """A worker's connection that looks at what goes through it. Each failpoint is reached once in a transaction."""

    reach: Callable[..., None]
    read = written = False

    def run_as_is(self, sql: LiteralString, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Run a statement, then reach what it leads to: of ``run`` too, which ends in this."""
        commits_itself = self.pgconn.transaction_status == TransactionStatus.IDLE
        if commits_itself:
            self.look_at_claim(sql, parameters)
        rows = super().run_as_is(sql, parameters)
        if not commits_itself:
            self.look_at_claim(sql, parameters)
        self.look_at(sql)
        return rows

    def look_at_claim(self, sql: str, parameters: Mapping[str, Any] | None) -> None:
        """Reach the failpoint of each transfer that a statement claims."""
        if CLAIMS.search(sql) and parameters is not None:
            for transfer in _claimed(parameters):
                self.reach("claim", transfer)

    def look_at(self, sql: str) -> None:
        """Reach the failpoints that are behind a statement that touches an account."""
        writes = WRITES.search(sql) is not None
        if (writes or READS.search(sql)) and not self.read:
            self.read = True
            self.reach("after-read")
        if writes and not self.written:
            self.written = True
            self.reach("between-writes")

    def commit(self) -> None:
        """Commit, and reach the failpoints before and after it; those of transactions that moved no money are none."""
        moved = self.written
        if moved:
            self.reach("before-commit")
        super().commit()
        self._begin_anew()
        if moved:
            self.reach("after-commit")

    def rollback(self) -> None:
        """Roll back."""
        self._begin_anew()
        super().rollback()

    def _begin_anew(self) -> None:
        self.read = self.written = False


def _claimed(parameters: Mapping[str, Any]) -> list[str]:
    """Return the transfers of a claim: one, or a message's."""
    given = [str(parameters["id"])] if "id" in parameters else str(parameters["ids"]).strip("{}").split(",")
    return [str(UUID(one)) for one in given]


class Cursor(psycopg.Cursor[Any]):
    """A cursor on such a connection: the ORM's."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """Run a statement, then reach what it leads to."""
        result = super().execute(query, params, **options)
        self._look_at(query)
        return result

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """Run a statement several times, then reach what it leads to: the ORM writes both accounts like this."""
        super().executemany(query, params_seq, **options)
        self._look_at(query)

    def _look_at(self, query: Any) -> None:
        assert isinstance(self.connection, Connection)
        self.connection.look_at(query.decode() if isinstance(query, bytes) else str(query))
