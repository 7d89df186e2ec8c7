"""What differs between Redis and RabbitMQ, for all who would have to ask which one it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import amqp
from celery import Celery
from celery.app.amqp import Queues
from redis.exceptions import AuthenticationError

from bank.settings import Settings, is_rabbitmq
from workers.broker import gate, rabbitmq, rabbitmq_gate
from workers.broker.messages import QUEUE


class Broker(Protocol):
    """A kind of broker."""

    @property
    def name(self) -> str:
        """As a sentence names it."""

    @property
    def queues(self) -> type[Any]:
        """The kind of Celery's table of queues."""

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        """What is raised where the broker answers, and refuses us."""

    def configuration(self, settings: Settings) -> dict[str, Any]:
        """Return what Celery needs to know for it."""

    def close_gate(self) -> None:
        """Let only what is ours come through to this process, on each connection that is made from now on."""

    def tell_of_jobs(self, received: Callable[[], None]) -> None:
        """Have this called with each job that has just come: a failpoint."""

    def check(self, channel: Any) -> None:
        """Raise one of its errors if the broker cannot be used."""

    def queue_length(self, app: Celery, queue: str) -> int:
        """Return how many messages wait in a queue, without those that are held; 0 if there is no such queue."""

    def describe(self, app: Celery) -> dict[str, str]:
        """Return its kind and version, and the settings that can lose messages."""


class Redis:
    """Redis or Valkey: fast, and may lose and repeat messages."""

    name = "Redis"
    queues = Queues
    refusals = (AuthenticationError,)

    def configuration(self, settings: Settings) -> dict[str, Any]:
        """Return the options of our own transport, and of Kombu's below it."""
        return {
            "broker_transport_options": {
                "visibility_timeout": settings.visibility_timeout_ms / 1000,
                # Messages of a killed instance come back when their time is over, not minutes later.
                "unacked_restore_interval": 1,
                "unacked_restore_throttle": 1,
                "reuse_client": settings.reuse_client,
                "receive_many": settings.receive_many,
                "prefetch": settings.prefetch,
                "socket_timeout": 10,
                "health_check_interval": 25,
            },
            "worker_prefetch_multiplier": settings.prefetch if settings.receive_many else 1,
        }

    def close_gate(self) -> None:
        """As above."""
        gate.take_place()

    def tell_of_jobs(self, received: Callable[[], None]) -> None:
        """As above."""
        gate.Transport.received = received

    def check(self, channel: Any) -> None:
        """Ask for an answer."""
        channel.client.ping()

    def queue_length(self, app: Celery, queue: str) -> int:
        """Ask for the length of the list."""
        with app.connection_for_write() as connection:
            return int(connection.default_channel.client.llen(queue))

    def describe(self, app: Celery) -> dict[str, str]:
        """Ask for what the server says of itself."""
        with app.connection_for_write() as connection:
            return describe_redis(connection.default_channel.client)


class RabbitMQ:
    """RabbitMQ: messages are on disk before they are accepted, and those of a dead instance come back at once."""

    name = "RabbitMQ"
    queues = rabbitmq.QuorumQueues
    refusals = (amqp.AccessRefused, amqp.NotAllowed, amqp.PreconditionFailed)

    def configuration(self, settings: Settings) -> dict[str, Any]:
        """Return what keeps Celery to quorum queues, and says when an instance that is silent is given up."""
        return {
            "broker_transport_options": {},
            # RabbitMQ gives up a connection that has said nothing for two heartbeats, and delivers again what it held.
            "broker_heartbeat": max(1, settings.visibility_timeout_ms // 2_000),
            "worker_prefetch_multiplier": settings.prefetch,
            # One connection's own, a queue of commands would be locked to an instance that was cut off and is back.
            "control_queue_exclusive": False,
            "control_queue_durable": True,
            # What ends a channel ends no worker: a run's queue may be removed between declaring and consuming it.
            "broker_channel_error_retry": True,
        }

    def close_gate(self) -> None:
        """As above."""
        rabbitmq_gate.take_place()

    def tell_of_jobs(self, received: Callable[[], None]) -> None:
        """As above."""
        rabbitmq_gate.Channel.received = received

    def check(self, channel: Any) -> None:
        """Declare the queue that all instances share: it says so if there is another one of its name."""
        rabbitmq.declare_queue(channel, QUEUE)

    def queue_length(self, app: Celery, queue: str) -> int:
        """Ask for the queue: those that are held by instances are not counted."""
        with app.connection_for_write() as connection:
            try:
                return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
            except amqp.NotFound:
                return 0

    def describe(self, app: Celery) -> dict[str, str]:
        """Say what the server said when it was connected to."""
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            said = connection.connection.server_properties
        return {"server": str(said.get("product", "unknown")).lower(), "version": str(said.get("version", "unknown"))}


REDIS, RABBITMQ = Redis(), RabbitMQ()


def broker_at(url: str) -> Broker:
    """Return the kind of broker at an address."""
    return RABBITMQ if is_rabbitmq(url) else REDIS


def describe_redis(client: Any) -> dict[str, str]:
    """Return a Redis server's kind, version and the settings that can lose messages."""
    server = client.info("server")
    memory = client.info("memory")
    persistence = client.info("persistence")
    kind = "valkey" if "valkey_version" in server else "redis"
    return {
        "server": kind,
        "version": str(server.get("valkey_version") or server.get("redis_version")),
        "maxmemory_policy": str(memory.get("maxmemory_policy")),
        "appendonly": str(persistence.get("aof_enabled")),
    }
