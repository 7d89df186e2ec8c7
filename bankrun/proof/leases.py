"""Guards that can run out without having said so: keys in Redis that have a time to live.

A lock made with redis-py's ``lock(timeout=…)`` is a lease, whatever its strategy says of it. Left to the clock it would
run out in some executions and not in others. So the clock is taken from it, and is a step like any other: what the
guard has put into the proof's own Redis with a time to live is kept there (PERSIST), and deleted when its time is over.
"""

from __future__ import annotations

import redis

from bank.settings import Settings
from bank.strategies.base import Guard
from bank.strategies.redis_lock import redis_url


class Leases:
    """Looks for keys with a time to live that appear while a guard is entered; ``found`` has each with its ms."""

    def __init__(self, settings: Settings | None) -> None:
        url = None if settings is None or settings.broker_url is None else settings.broker_url.get_secret_value()
        self._redis = None if url is None else redis.Redis.from_url(redis_url(url))
        self.found: dict[str, int] = {}
        self._held: list[bytes] = []

    def try_enter(self, guard: Guard) -> bool:
        """Take the guard if that is possible at once, and the clock from what it put into Redis."""
        if self._redis is None:
            return guard.try_enter()
        before = self._with_time_to_live()
        entered = guard.try_enter()
        for key in self._with_time_to_live() - before if entered else ():
            milliseconds = self._redis.pttl(key)
            self._redis.persist(key)
            self._held.append(key)
            self.found[key.decode(errors="replace")] = int(milliseconds)
        return entered

    def has_found(self) -> bool:
        """Whether what was entered can run out."""
        return bool(self._held)

    def expire(self) -> None:
        """Do what Redis does when their time is over."""
        assert self._redis is not None
        self._redis.delete(*self._held)

    def close(self) -> None:
        """Close the connection."""
        if self._redis is not None:
            self._redis.close()

    def _with_time_to_live(self) -> set[bytes]:
        assert self._redis is not None
        return {key for key in self._redis.scan_iter() if self._redis.pttl(key) >= 0}
