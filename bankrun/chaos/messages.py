"""What lies in the broker, and ways to hurt it: a class for each kind of broker."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import redis
from celery import Celery

from bank.strategies.redis_lock import redis_url
from bankrun.chaos.poison import GARBAGE, GARBLED, poison, poison_body
from bankrun.runs.boundary import LOST_SERVER
from workers.broker.rabbitmq import declare_queue

MESSAGES_HURT = 20


class Messages(Protocol):
    """The messages of a queue while workers take them. What a method does not find is gone already."""

    def delete_some(self, queue: str, chance: random.Random) -> None:
        """Lose some messages."""

    def delete_all(self, queue: str) -> None:
        """Lose all messages."""

    def repeat_some(self, queue: str) -> None:
        """Put some there twice more."""

    def poison_some(self, queue: str, chance: random.Random) -> None:
        """Change some to nonsense, and add others that are no messages."""

    def close(self) -> None:
        """Close what is open."""


class RedisMessages:
    """Messages in a list of Redis."""

    def __init__(self, broker_url: str) -> None:
        url = redis_url(broker_url)
        self.client = redis.Redis.from_url(url, socket_timeout=5, decode_responses=True, encoding_errors="replace")

    def delete_some(self, queue: str, chance: random.Random) -> None:
        """As above."""
        for _ in range(MESSAGES_HURT):
            message = self.client.lindex(queue, chance.randint(0, MESSAGES_HURT))
            if message is not None:
                self.client.lrem(queue, 1, str(message))

    def delete_all(self, queue: str) -> None:
        """As above."""
        self.client.delete(queue)

    def repeat_some(self, queue: str) -> None:
        """As above."""
        for message in self.client.lrange(queue, 0, MESSAGES_HURT):
            self.client.lpush(queue, message)
            self.client.rpush(queue, message)

    def poison_some(self, queue: str, chance: random.Random) -> None:
        """As above."""
        # From the end at which messages are put: they keep their places while others are taken from the other end.
        for index in chance.sample(range(2 * MESSAGES_HURT), MESSAGES_HURT):
            message = self.client.lindex(queue, index)
            if message is not None:
                with suppress(*LOST_SERVER, *GARBLED):  # the queue is shorter by now
                    self.client.lset(queue, index, poison(str(message), chance))
        for garbage in GARBAGE:
            self.client.rpush(queue, garbage)

    def close(self) -> None:
        """As above."""
        self.client.close()


class RabbitMQMessages:
    """Messages in a queue of RabbitMQ: what is to be hurt is taken from it first."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    @contextmanager
    def _taken(self, queue: str) -> Iterator[tuple[Any, list[Any]]]:
        """Take some messages for the block; what it does not acknowledge goes back."""
        with self._app.connection_for_write() as connection:
            channel = connection.default_channel
            declare_queue(channel, queue)
            found = (channel.basic_get(queue) for _ in range(MESSAGES_HURT))
            yield channel, [message for message in found if message is not None]

    def delete_some(self, queue: str, chance: random.Random) -> None:
        """As above."""
        with self._taken(queue) as (channel, messages):
            for message in chance.sample(messages, len(messages) * 3 // 4):
                channel.basic_ack(message.delivery_tag)

    def delete_all(self, queue: str) -> None:
        """As above."""
        with self._app.connection_for_write() as connection:
            connection.default_channel.queue_purge(queue)

    def repeat_some(self, queue: str) -> None:
        """As above."""
        with self._taken(queue) as (channel, messages):
            for message in [one for one in messages for _ in range(2)]:
                channel.basic_publish(message, routing_key=queue)

    def poison_some(self, queue: str, chance: random.Random) -> None:
        """As above."""
        with self._taken(queue) as (channel, messages):
            for message in messages:
                with suppress(*GARBLED):
                    message.body = poison_body(message.body, chance)
                channel.basic_publish(message, routing_key=queue)
                channel.basic_ack(message.delivery_tag)
            for garbage in GARBAGE:
                channel.basic_publish(channel.prepare_message(garbage), routing_key=queue)
            nobody = {"task": "os.system", "id": "1", "argsrepr": json.dumps({"$": 1})}
            stranger = channel.prepare_message(
                b"[[], {}, {}]", content_type="application/json", content_encoding="utf-8", headers=nobody
            )
            channel.basic_publish(stranger, routing_key=queue)

    def close(self) -> None:
        """As above."""
