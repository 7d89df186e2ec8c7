"""A connection whose statements go to libpq directly: half of what a transfer cost its client was the way there."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count, islice
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import abc, sql
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

INT4, INT8, UUID_TYPE, UNKNOWN = 23, 20, 2950, 0  # Postgres' type numbers; it finds out the unknown
INVALID_STATEMENT_NAME = b"26000"  # a SQLSTATE
INT4_MIN, INT4_MAX = -(2**31), 2**31 - 1
STATEMENTS_MAX = 100
"""How many statements a connection keeps prepared. What is seen once is not prepared: values may be in its text."""

Query = str | bytes | sql.SQL | sql.Composed
Parameters = Mapping[str, Any] | Sequence[Any]

_PLACEHOLDER = re.compile(r"%(?:\((\w+)\))?[sbt]|%%")
_SUCCESSES = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY)


class Column(NamedTuple):
    """What is known of a column of a result (PEP 249)."""

    name: str
    type_code: int
    display_size: int | None = None
    internal_size: int | None = None
    precision: int | None = None
    scale: int | None = None
    null_ok: bool | None = None


class Rows:
    """What a statement returned, as a cursor has it. It stays, also after the next one.

    ``rowcount`` is how many rows it returned or changed.
    """

    __slots__ = ("_next", "_result", "rowcount")

    def __init__(self, rows: list[tuple[Any, ...]], rowcount: int, result: PGresult) -> None:
        self.rowcount = rowcount
        self._next = iter(rows)
        self._result = result

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._rows()

    @property
    def description(self) -> list[Column] | None:
        """Return the columns, or None where a statement has none."""
        result = self._result
        names = [(result.fname(number) or b"").decode() for number in range(result.nfields)]
        return [Column(name, result.ftype(number)) for number, name in enumerate(names)] or None

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, or None."""
        return next(self._rows(), None)

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        """Return so many of the rows that are left."""
        return list(islice(self._rows(), size))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        return list(self._rows())

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        if self._result.status != ExecStatus.TUPLES_OK:
            status = (self._result.command_status or b"").decode()
            raise psycopg.ProgrammingError(f"the last operation didn't produce records (command status: {status})")
        return self._next


class LeanConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which ``run`` takes the place of a cursor.

    It prepares every statement that comes again, and waits for its answer inside libpq, without the
    GIL; a cursor waits in Python, where every answer has to get the GIL back several times. What it gives up: a
    signal handler does not run before the answer is there. So it is for the threads of an instance, and not for a
    program that a user may want to interrupt. Everything else, the ORM's cursors among it, works as on any connection.
    """

    _statements: OrderedDict[tuple[str, tuple[int, ...]], bytes]
    _seen_once: OrderedDict[tuple[str, tuple[int, ...]], None]
    _names: Iterator[int]
    _adapter: abc.Transformer

    def run(self, query: Query, parameters: Parameters | None = None) -> Rows:
        """Run a query in a transaction, which it begins if need be.

        Its parameters are bound: a mapping to ``%(name)s``, a sequence to ``%s``. Without parameters it goes as it is,
        and may be several statements; the rows are the last one's.
        """
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            self._check(self.pgconn.exec_(self._begin()))
        return self.run_as_is(query, parameters)

    def run_as_is(self, query: Query, parameters: Parameters | None = None) -> Rows:
        """Run a query as ``run`` does, but begin nothing: where no transaction is open it commits itself."""
        if not hasattr(self, "_statements"):
            self._statements, self._seen_once, self._names = OrderedDict(), OrderedDict(), count()
            self._adapter = Transformer.from_context(self)
        text = self.as_text(query)
        result = self.pgconn.exec_(text.encode()) if parameters is None else self._run_bound(text, parameters)
        self._check(result)
        if not result.ntuples:
            return Rows([], 0 if result.nfields else result.command_tuples or 0, result)
        self._adapter.set_pgresult(result)
        return Rows(self._adapter.load_rows(0, result.ntuples, tuple), result.ntuples, result)

    def _run_bound(self, text: str, parameters: Parameters) -> PGresult:
        command, keys = number_placeholders(text)
        types: list[int] = []
        try:
            values = [self._bind(parameters[key], types) for key in keys]  # type: ignore[index]
        except (KeyError, IndexError, TypeError) as error:
            raise psycopg.ProgrammingError(f"no parameter for a placeholder: {error}") from error
        key = (text, tuple(types))
        statement = self._statements.get(key)
        if statement is None and not self._comes_again(key):
            return self.pgconn.exec_params(command, values, types)
        if statement is None:
            statement = self._prepare(key, command)
        else:
            self._statements.move_to_end(key)
        result = self.pgconn.exec_prepared(statement, values)  # type: ignore[arg-type] # None is NULL
        self._forget_if_gone(result)
        return result

    def _comes_again(self, key: tuple[str, tuple[int, ...]]) -> bool:
        """Whether a statement was run before, not long ago. Once it is prepared that need not be known any more."""
        if key in self._seen_once:
            del self._seen_once[key]
            return True
        self._seen_once[key] = None
        if len(self._seen_once) > STATEMENTS_MAX:
            self._seen_once.popitem(last=False)
        return False

    def _prepare(self, key: tuple[str, tuple[int, ...]], command: bytes) -> bytes:
        if len(self._statements) >= STATEMENTS_MAX:
            _, oldest = self._statements.popitem(last=False)
            result = self.pgconn.exec_(b"DEALLOCATE " + oldest)
            self._forget_if_gone(result)
            self._check(result)
        statement = f"lean_{next(self._names)}".encode()
        self._check(self.pgconn.prepare(statement, command, key[1]))
        self._statements[key] = statement
        return statement

    def _forget_if_gone(self, result: PGresult) -> None:
        """Prepare all anew after a DEALLOCATE ALL, as a cursor runs it after ROLLBACK TO SAVEPOINT."""
        if result.error_field(DiagnosticField.SQLSTATE) == INVALID_STATEMENT_NAME:
            self._statements.clear()

    def as_text(self, query: Query) -> str:
        """Return the text of a query, however it is written."""
        if isinstance(query, str):
            return query
        return query.decode() if isinstance(query, bytes) else query.as_string(self)

    def commit(self) -> None:
        """COMMIT, if there is a transaction."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            self._check(self.pgconn.exec_(b"COMMIT"))

    def rollback(self) -> None:
        """ROLLBACK, if there is a transaction.

        psycopg's own also deallocates every prepared statement once its cursors have prepared one: ours too.
        """
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            self._check(self.pgconn.exec_(b"ROLLBACK"))

    def _begin(self) -> bytes:
        level = self.isolation_level
        return b"BEGIN" if level is None else b"BEGIN ISOLATION LEVEL " + level.name.replace("_", " ").encode()

    def _bind(self, value: object, types: list[int]) -> bytes | None:
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

    def _check(self, result: PGresult) -> None:
        if result.status in _SUCCESSES:
            return
        error = error_from_result(result)
        if self.pgconn.status == ConnStatus.BAD and error.sqlstate is None:
            raise psycopg.OperationalError(str(error) or "the connection is lost")
        raise error


@lru_cache(maxsize=500)
def number_placeholders(text: str) -> tuple[bytes, tuple[str | int, ...]]:
    """Return a query with ``$1`` for its first placeholder, and what is bound to each number: a name, or a position."""
    keys: dict[str | int, str] = {}

    def number(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        key = len(keys) if match[1] is None else match[1]
        return keys.setdefault(key, f"${len(keys) + 1}")

    return _PLACEHOLDER.sub(number, text).encode(), tuple(keys)
