"""What strategies leave in Redis, and guards that can run out without having said so: keys that have a time to live.

A lock made with redis-py's ``lock(timeout=…)`` is a lease, whatever its strategy says of it. Left to the clock it would
run out in some executions and not in others. So the clock is taken from it, and is a step like any other: what the
guard has put into the proof's own Redis with a time to live is kept there (PERSIST), and deleted when its time is over.
"""

from __future__ import annotations

from typing import Self

import redis
from redis.connection import parse_url

from bank.settings import Settings
from bank.strategies.base import Guard
from bank.strategies.redis_lock import redis_url

Key = tuple[int, bytes]
"""The number of a database in Redis, and a key in it."""


class EmptyRedis:
    """A Redis for a proof alone, emptied where something was written to it. Use as a context manager."""

    def __init__(self, broker_url: str) -> None:
        self._client = redis.Redis.from_url(redis_url(broker_url))
        self._changes = -1
        self.was_written = False
        """Whether anybody wrote to it while this was open."""

    def __enter__(self) -> Self:
        self.empty()
        self.was_written = False
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def empty(self) -> None:
        """Remove all keys of all databases."""
        if self._count_changes() != self._changes:
            self.was_written = True
            self._client.flushall()
            self._changes = self._count_changes()

    def _count_changes(self) -> int:
        return int(self._client.info("persistence")["rdb_changes_since_last_save"])


class Leases:
    """Looks for keys with a time to live that appear while a guard is entered; ``found`` has each with its ms.

    What gets one later, while the guard is held, is in ``late``: it could have run out, and was not asked to.
    """

    def __init__(self, settings: Settings | None) -> None:
        url = None if settings is None or settings.broker_url is None else settings.broker_url.get_secret_value()
        self._options = None if url is None else parse_url(redis_url(url))  # type: ignore[no-untyped-call]
        self._clients: dict[int, redis.Redis] = {}
        self.found: dict[str, int] = {}
        self.late: dict[str, int] = {}
        self._held: list[Key] = []
        self._known: set[Key] = set()

    def try_enter(self, guard: Guard) -> bool:
        """Take the guard if that is possible at once, and the clock from what it put into Redis."""
        if self._options is None:
            return guard.try_enter()
        before = set(self._with_time_to_live())
        entered = guard.try_enter()
        after = self._with_time_to_live()
        self._known = set(after)
        for database, key in after.keys() - before if entered else ():
            self._client(database).persist(key)
            self._held.append((database, key))
            self.found[key.decode(errors="replace")] = after[database, key]
        return entered

    def look_again(self) -> None:
        """Note what has got a time to live since the guard was entered."""
        if self._options is not None and self._clients:
            for (database, key), milliseconds in self._with_time_to_live().items():
                if (database, key) not in self._known:
                    self.late[key.decode(errors="replace")] = milliseconds

    def has_found(self) -> bool:
        """Whether what was entered can run out."""
        return bool(self._held)

    def expire(self) -> None:
        """Do what Redis does when their time is over."""
        for database, key in self._held:
            self._client(database).delete(key)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def _client(self, database: int) -> redis.Redis:
        if database not in self._clients:
            pool = redis.ConnectionPool(**{**(self._options or {}), "db": database})
            self._clients[database] = redis.Redis(connection_pool=pool)
        return self._clients[database]

    def _with_time_to_live(self) -> dict[Key, int]:
        """Return the keys of all databases that have one, and how many milliseconds it is."""
        found: dict[Key, int] = {}
        for name in self._client(0).info("keyspace"):
            database = int(name.removeprefix("db"))
            client = self._client(database)
            for key in client.scan_iter():
                milliseconds = int(client.pttl(key))
                if milliseconds >= 0:
                    found[database, key] = milliseconds
        return found
