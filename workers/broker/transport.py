"""Kombu's Redis transport, less what would end a worker.

Kombu finds a transport by the scheme of the broker's address, in ``TRANSPORT_ALIASES``; importing this module puts ours
there for Redis. A process that is no part of bankrun is not touched by it.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError as RedisConnectionError


class Channel(redis.Channel):
    """A channel that keeps its client, and says that it is closed in a way that Kombu and Celery are prepared for.

    Kombu makes a client for each command that it sends: twice for a message, and a fifth of what a message costs. One
    client does as well, since the connections are the pool's. The transport option ``reuse_client`` says whether.

    When Redis goes away while a thread is at work, that work's message is acknowledged on a channel whose connection
    has been closed meanwhile. Kombu (5.7.0) then fails with an AttributeError, which takes the whole worker along,
    where a connection error is logged and the worker connects again.

    Kombu has a list for each priority of a queue. Here a queue is one list, and taken in order: a message with a
    priority is refused when it is sent.
    """

    priority_steps = [0]  # noqa: RUF012 - as Kombu has it
    reuse_client = True
    from_transport_options = (*redis.Channel.from_transport_options, "reuse_client")  # type: ignore[assignment]
    _kept_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - Kombu's signature
        if asynchronous or not self.reuse_client:
            return super()._create_client(asynchronous)  # type: ignore[no-untyped-call]
        kept = self._kept_client
        if kept is None or kept.connection_pool is not self.pool:  # after a reconnection there is another pool
            kept = self._kept_client = super()._create_client()  # type: ignore[no-untyped-call]
        return kept

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        priority = self._get_message_priority(message)  # type: ignore[no-untyped-call]
        if priority:
            raise ValueError(
                f"priority={priority}: messages have none here; they are taken in the order of their queue"
            )
        super()._put(queue, message, **options)  # type: ignore[no-untyped-call]

    def _connparams(self, *arguments: Any, **options: Any) -> Any:
        if self.connection.client is None:
            raise RedisConnectionError("this connection to the broker is closed")
        return super()._connparams(*arguments, **options)  # type: ignore[no-untyped-call]


class Transport(redis.Transport):
    """The transport of these channels."""

    Channel = Channel


TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
