"""A time limit for what no server can limit: a network that says nothing any more."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from typing import Any

import psycopg

logger = logging.getLogger("bankrun")


class Watchdog:
    """Shuts the socket of a connection that is watched for longer than ``seconds_max``, or up to a quarter more.

    A thread that waits on that connection then finds it dead. Postgres' own timeouts end what the server does; where
    its answer is lost on the way, or the server is frozen, they do not help (libpq waits without an end: manual,
    section 32.3). Thread-safe; its own thread starts with the first connection and ends with ``close``.
    """

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._tickets = itertools.count()
        self._watched: dict[int, tuple[float, psycopg.Connection[Any]]] = {}  # in order of time, all limits being equal
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, connection: psycopg.Connection[Any]) -> int:
        """Begin to watch; returns what ``release`` takes."""
        ticket = next(self._tickets)
        with self._lock:
            self._watched[ticket] = (time.monotonic() + self._seconds_max, connection)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
        return ticket

    def release(self, ticket: int) -> None:
        """Cease to watch. Call it before the connection is closed."""
        with self._lock:
            self._watched.pop(ticket, None)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._seconds_max / 4):
            now = time.monotonic()
            with self._lock:
                late = [ticket for ticket, (until, _) in self._watched.items() if until < now]
                for ticket in late:
                    _, connection = self._watched.pop(ticket)
                    logger.warning("no end after %g s: the connection is shut", self._seconds_max)
                    _shut(connection)


def _shut(connection: psycopg.Connection[Any]) -> None:
    """Shut a connection's socket under a thread that waits on it; the descriptor itself stays its owner's to close."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as handle:
            handle.shutdown(socket.SHUT_RDWR)
    except (psycopg.Error, OSError) as error:
        logger.warning("it was closed already: %s", error)
