"""A lock that all instances share: a key in Redis, with a time to live."""

from __future__ import annotations

from contextlib import suppress
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.exceptions import RedisError

from bank.errors import CannotStart, NotAcquired
from bank.orders import Order
from bank.settings import Settings, is_rabbitmq
from bank.strategies.base import Claim, Lease, Strategy

KEY = "bankrun:transfers-lock"
POLL_SECONDS = 0.01  # redis-py's own default, 100 ms, is twenty transfers long
ANSWER_SECONDS = 5


def redis_url(broker_url: str) -> str:
    """Return a broker's address as redis-py writes it: Kombu has a form of its own for sockets and for certificates."""
    url = urlsplit(broker_url)
    query = dict(parse_qsl(url.query))
    if "ssl_cert_reqs" in query:
        query["ssl_cert_reqs"] = query["ssl_cert_reqs"].lower().removeprefix("cert_")
    if url.scheme in ("redis+socket", "unix"):
        query["db"] = query.pop("virtual_host", query.get("db", "0"))
        return f"unix://{url.netloc}{url.path}?{urlencode(query)}"
    return url._replace(query=urlencode(query)).geturl()


class RedisLease:
    """A key in Redis as a guard, for one acquisition: it remembers the token by which its own key is known."""

    def __init__(self, client: redis.Redis, ttl_seconds: float) -> None:
        # Not thread_local: time, which lets a lease run out, is a thread of its own in the proof.
        self._lock = client.lock(KEY, timeout=ttl_seconds, sleep=POLL_SECONDS, thread_local=False)

    def enter(self, timeout_seconds: float) -> None:
        """Ask again and again for the key. Raises NotAcquired after ``timeout_seconds``, or without a Redis."""
        if not self._acquire(blocking=True, blocking_timeout=timeout_seconds):
            raise NotAcquired(f"{KEY} was not free within {timeout_seconds:g} s")

    def try_enter(self) -> bool:
        """Take the key if it is free."""
        return self._acquire(blocking=False)

    def leave(self) -> None:
        """Delete the key if it is still ours. What cannot be deleted runs out by itself, so nothing is raised."""
        with suppress(RedisError):  # LockError is one
            self._lock.release()

    def expire(self) -> None:
        """Delete the key, as Redis does when its time is over. ``leave`` then finds that there is nothing to do."""
        self.leave()

    def _acquire(self, *, blocking: bool, blocking_timeout: float | None = None) -> bool:
        try:
            return bool(self._lock.acquire(blocking=blocking, blocking_timeout=blocking_timeout))
        except RedisError as error:
            raise NotAcquired(f"{KEY}: {error}") from error


class RedisLock(Strategy):
    """redis-py's ``Lock``: one key for all accounts, ``SET … NX PX``, deleted only by the holder that set it.

    Claims everywhere, as long as a holder is faster than its lease. The time to live frees the key of a holder that
    died, and cannot tell that one from a holder that is merely slow: paused (a garbage collection, SIGSTOP, a virtual
    machine that moves) for longer than that, it wakes up, still believes that it holds the lock, and writes over what
    the next holder did (Kleppmann, "How to do distributed locking", 2016). No length of the lease cures that.
    """

    name = "redis-lock"
    summary = "redis-py's Lock, a key that expires"
    claim = Claim.EVERYWHERE
    survives_pause = False

    def __init__(self, client: redis.Redis, ttl_seconds: float) -> None:
        self._client = client
        self._ttl_seconds = ttl_seconds

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Make a pool with a connection for each thread; the first guard connects."""
        if settings.broker_url is None:
            raise CannotStart(f"{cls.name} needs BANKRUN_BROKER_URL: the lock is kept in the broker's Redis")
        url = settings.broker_url.get_secret_value()
        if is_rabbitmq(url):
            raise CannotStart(f"{cls.name} needs Redis: the lock is kept in the broker, and RabbitMQ has no such thing")
        pool = redis.BlockingConnectionPool.from_url(
            redis_url(url),
            max_connections=settings.threads,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
        )
        return cls(redis.Redis.from_pool(pool), settings.lease_ttl_ms / 1000)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def guard(self, order: Order) -> Lease:
        """Return a guard for one acquisition."""
        return RedisLease(self._client, self._ttl_seconds)
