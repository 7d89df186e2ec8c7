"""A connection whose statements go to libpq directly: half of what a transfer cost its client was the way there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import count
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import abc
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

INT4, INT8, UUID_TYPE, UNKNOWN = 23, 20, 2950, 0  # Postgres' type numbers; it finds out the unknown
INVALID_STATEMENT_NAME = b"26000"  # a SQLSTATE
INT4_MIN, INT4_MAX = -(2**31), 2**31 - 1
_PARAMETER = re.compile(r"%\((\w+)\)s|%%")


class Rows:
    """What a statement returned. It stays, also after the next one.

    ``rowcount`` is how many rows it returned or changed, as a cursor has it.
    """

    __slots__ = ("_next", "rowcount")

    def __init__(self, rows: list[tuple[Any, ...]], rowcount: int) -> None:
        self.rowcount = rowcount
        self._next = iter(rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._next

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, or None."""
        return next(self._next, None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        return list(self._next)


class LeanConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which ``run`` takes the place of a cursor.

    It prepares every statement and waits for its answer inside libpq, which takes the GIL from nobody; a cursor waits
    in Python, where every answer has to get the GIL back several times. What it gives up: a signal handler does not
    run before the answer is there. So it is for the threads of an instance, and not for a program that somebody may
    want to interrupt. Everything else, the ORM's cursors among it, works as on any connection.
    """

    _statements: dict[tuple[str, tuple[int, ...]], bytes]
    _names: Iterator[int]
    _adapter: abc.Transformer

    def run(self, sql: LiteralString, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Run one statement with bound parameters, ``%(name)s``, in a transaction, which it begins if need be."""
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            self._succeeded(self.pgconn.exec_(self._begin()))
        return self.run_as_is(sql, parameters)

    def run_as_is(self, sql: LiteralString, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Run one statement as ``run`` does, but begin nothing: where no transaction is open it commits itself."""
        if not hasattr(self, "_statements"):
            self._statements, self._names = {}, count()
            self._adapter = Transformer.from_context(self)
        text, names = _numbered(sql)
        types: list[int] = []
        values = [self._bound(parameters[name], types) for name in names] if parameters else None
        key = (sql, tuple(types))
        statement = self._statements.get(key)
        if statement is None:
            statement = f"lean_{next(self._names)}".encode()
            self._succeeded(self.pgconn.prepare(statement, text, types))
            self._statements[key] = statement
        result = self.pgconn.exec_prepared(statement, values)  # type: ignore[arg-type] # None is NULL
        if result.error_field(DiagnosticField.SQLSTATE) == INVALID_STATEMENT_NAME:
            self._statements.clear()  # somebody ran DEALLOCATE ALL, as a cursor does after ROLLBACK TO SAVEPOINT
        self._succeeded(result)
        if not result.ntuples:
            return Rows([], 0 if result.nfields else result.command_tuples or 0)
        self._adapter.set_pgresult(result)
        return Rows(self._adapter.load_rows(0, result.ntuples, tuple), result.ntuples)

    def commit(self) -> None:
        """COMMIT, if there is a transaction."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            self._succeeded(self.pgconn.exec_(b"COMMIT"))

    def rollback(self) -> None:
        """ROLLBACK, if there is a transaction.

        psycopg's own also deallocates every prepared statement once its cursors have prepared one: ours too.
        """
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            self._succeeded(self.pgconn.exec_(b"ROLLBACK"))

    def _begin(self) -> bytes:
        level = self.isolation_level
        return b"BEGIN" if level is None else b"BEGIN ISOLATION LEVEL " + level.name.replace("_", " ").encode()

    def _bound(self, value: object, types: list[int]) -> bytes | None:
        """Return a parameter as text, and add its type to ``types``."""
        if type(value) is int:
            # The driver knows smaller ones too, and each mixture of types would be a statement of its own.
            types.append(INT4 if INT4_MIN <= value <= INT4_MAX else INT8)
            return b"%d" % value
        if value is None:
            types.append(UNKNOWN)
            return None
        if type(value) is str:
            types.append(UNKNOWN)
            return value.encode()
        if type(value) is UUID:
            types.append(UUID_TYPE)
            return value.hex.encode()
        (dumped,) = self._adapter.dump_sequence([value], [PyFormat.TEXT])
        types.append((self._adapter.types or (UNKNOWN,))[0])
        return None if dumped is None else bytes(dumped)

    def _succeeded(self, result: PGresult) -> None:
        if result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            return
        error = error_from_result(result)
        if self.pgconn.status == ConnStatus.BAD and error.sqlstate is None:
            raise psycopg.OperationalError(str(error) or "the connection is lost")
        raise error


@lru_cache(maxsize=500)
def _numbered(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a statement with ``$1`` for ``%(name)s``, and the names in the order of their numbers."""
    names: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return "%" if match[1] is None else names.setdefault(match[1], f"${len(names) + 1}")

    return _PARAMETER.sub(number, sql).encode(), tuple(names)
