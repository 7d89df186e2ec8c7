"""Who holds a connection of the pool, and where it was taken: to name the strategy that does not give one back."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event

from bank.errors import StrategyFault
from bank.outside.places import Stack, find_place, home_of, stack_from
from bank.strategies.base import Strategy


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


def take_back(strategy: Strategy, borrowed: Borrowed) -> StrategyFault | None:
    """Take back what a strategy has not given back in this thread, and return what to say of it; None if nothing."""
    found = borrowed.take_back()
    return found and StrategyFault(strategy.name, f"{found[0]} ({find_place(found[1], home_of(strategy))})")


def _gone() -> None:
    return None
