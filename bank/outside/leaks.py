"""Who holds a connection of the pool, and where it was taken: to name whoever does not give one back."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event

STACK_MAX = 40


class Spot(NamedTuple):
    """A line of a stack. No frame: that would keep alive what its function had in its hands."""

    module: str
    file: str
    line: int
    function: str


Stack = list[Spot]


def stack_from(frame: Any) -> Stack:
    """Return where a frame stands, and who called it, the innermost first."""
    stack: Stack = []
    while frame is not None and len(stack) < STACK_MAX:
        code = frame.f_code
        stack.append(Spot(frame.f_globals.get("__name__", ""), code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return stack


class Borrowed:
    """Notes, for each thread, the connections of one pool that it has taken and not given back.

    Also one that it gave back with its transaction open: the next to take it would have worked in there. Thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._taken: dict[int, tuple[int, weakref.ref[Any], Stack]] = {}
        self._left_open: dict[int, Stack] = {}
        event.listen(engine, "checkout", self._out)
        event.listen(engine, "checkin", self._in)

    def take_back(self) -> tuple[str, Stack] | None:
        """Close what this thread should have given back; return what it was and where it was taken, None if nothing."""
        thread = threading.get_ident()
        mine = [key for key, (holder, _, _) in list(self._taken.items()) if holder == thread]
        stack = self._left_open.pop(thread, None)
        what = "gives a connection back with its transaction open" if stack is not None else ""
        for key in mine:
            _, pooled, taken_at = self._taken.pop(key, (0, _gone, []))
            connection = pooled()
            if connection is not None and connection.is_valid:
                connection.invalidate()
                what, stack = "leaks a connection: it was taken, and never given back", taken_at
        return (what, stack) if stack is not None else None

    def _out(self, connection: object, record: object, pooled: Any) -> None:
        # traceback.extract_stack would read the source files.
        stack = stack_from(sys._getframe(1))  # noqa: SLF001
        self._taken[id(record)] = (threading.get_ident(), weakref.ref(pooled), stack)

    def _in(self, connection: object, record: object) -> None:
        thread, _, stack = self._taken.pop(id(record), (0, None, []))
        if isinstance(connection, psycopg.Connection) and not connection.closed:
            status = connection.info.transaction_status
            if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
                psycopg.Connection.rollback(connection)  # in the proof its own would wait for its turn
                self._left_open[thread] = stack


def _gone() -> None:
    return None
