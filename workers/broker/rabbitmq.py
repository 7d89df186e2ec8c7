"""Kombu's AMQP transport for RabbitMQ, in which a message is published when RabbitMQ has confirmed it, and not before.

Kombu finds a transport by the scheme of the broker's address, in ``TRANSPORT_ALIASES``; importing this module puts ours
there for AMQP. Queues are quorum queues: they survive a restart, and the loss of a minority of a cluster's nodes.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

import amqp
from celery.app.amqp import Queues
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, pyamqp

from workers.broker.messages import QUEUE

CONFIRM_SECONDS = 20.0
"""The longest that a confirmation is waited for: RabbitMQ gives none while it is short of memory or disk."""
DAY_MS = 24 * 3_600_000
NO_LIMIT = 2**31 - 1


def queue_arguments(name: str) -> dict[str, Any]:
    """Return how a queue of ours is declared.

    RabbitMQ 4 drops what it has delivered 20 times; here Postgres counts deliveries, and an outage does not count. A
    message may be held for a day, where RabbitMQ takes it back after half an hour by default: an instance that has died
    is known by its connection. What belongs to one run or one instance goes when it has not been used for a day.
    """
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT, "x-consumer-timeout": DAY_MS}
    return arguments if name == QUEUE else {**arguments, "x-expires": DAY_MS}


def make_queue(name: str) -> Queue:
    """Return a queue of ours. Its messages go by the default exchange: none is made for each queue, as Celery does."""
    exchange = Exchange("", type="direct")  # type: ignore[no-untyped-call]
    return Queue(name, exchange, routing_key=name, queue_arguments=queue_arguments(name))  # type: ignore[no-untyped-call]


def declare_queue(channel: Any, name: str) -> None:
    """Declare a queue of ours. Raises PreconditionFailed where there is another one of its name."""
    make_queue(name)(channel).declare()  # type: ignore[no-untyped-call]


class QuorumQueues(Queues):  # type: ignore[misc]
    """Celery's table of queues, in which each is a queue of ours, however it was asked for."""

    def _add(self, queue: Queue) -> Queue:
        ours = self[queue.name] = make_queue(queue.name)
        return ours


class PublishBatch:
    """Messages that are sent one after the other, and confirmed together. Kombu makes one in ``Producer.batch``."""

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._sent = 0

    def publish(self, message: Any, **options: Any) -> None:
        """Send a message."""
        self.channel.send(message, **options)
        self._sent += 1
        if self._sent >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Wait until all are confirmed. Raises OperationalError if one is not taken."""
        self._sent = 0
        self.channel.await_confirmations()

    def discard(self) -> None:
        """Wait for nothing: what was sent may have been taken."""

    def close(self) -> None:
        """Leave the channel as it is."""


class Bounded:
    """Waits for an answer no longer than for a confirmation: while an alarm is on, RabbitMQ answers nothing at all."""

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, **options: Any) -> Any:
        """Wait for an answer. Raises TimeoutError."""
        return super().wait(method, callback, timeout or CONFIRM_SECONDS, **options)  # type: ignore[misc]


class Channel(Bounded, pyamqp.Channel):
    """A channel on which everything that is published is confirmed.

    A job for which there is no queue is refused, where RabbitMQ confirms it and drops it.
    """

    confirm_seconds = CONFIRM_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._refused: list[str] = []
        super().__init__(*arguments, **options)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return a batch, as Kombu asks for it."""
        return PublishBatch(self, max_size)

    def basic_publish(self, message: Any, **options: Any) -> None:
        """Publish a message, and wait until it is confirmed. Raises OperationalError if it is not taken."""
        self.send(message, **options)
        self.await_confirmations()

    def send(self, message: Any, *, exchange: str = "", mandatory: bool = False, **options: Any) -> None:
        """Send a message, which is not confirmed yet."""
        if not self._confirm_selected:
            self.confirm_select()
            self._confirm_selected: bool = True
            self._sent = 0
            self._unconfirmed.clear()
        self._basic_publish(message, exchange=exchange, mandatory=mandatory or not exchange, **options)
        self._sent += 1
        self._unconfirmed.add(self._sent)

    def await_confirmations(self) -> None:
        """Wait until all that was sent is confirmed. Raises OperationalError if it is not, or not taken."""
        deadline = time.monotonic() + self.confirm_seconds
        try:
            while self._unconfirmed:
                if self.connection is None:
                    raise amqp.RecoverableConnectionError("the connection was closed")
                self.connection.drain_events(timeout=max(0.001, deadline - time.monotonic()))
            refused = self._refused
        except TimeoutError:
            assert self.connection is not None
            alarm = self.connection.is_blocked
            self.connection.collect()  # RabbitMQ reads no more from it, not even that it is to be closed
            why = "an alarm is on: it is short of memory or disk" if alarm else "it says nothing"
            raise OperationalError(
                f"RabbitMQ has not confirmed {len(self._unconfirmed)} messages in {self.confirm_seconds:g} s: {why}"
            ) from None
        finally:
            self._unconfirmed, self._refused = set(), []
        if refused:
            raise OperationalError(f"RabbitMQ did not take {len(refused)} messages: {refused[0]}")

    def _on_basic_ack(self, delivery_tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        if multiple:
            self._unconfirmed = {sent for sent in self._unconfirmed if sent > delivery_tag}
        else:
            self._unconfirmed.discard(delivery_tag)

    def _on_basic_nack(self, delivery_tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        self._refused.append("it could not keep them")
        self._on_basic_ack(delivery_tag, multiple)

    def _on_basic_return(self, code: int, text: str, exchange: str, routing_key: str, message: Any) -> None:
        self._refused.append(f"{text}: {routing_key}")  # a confirmation follows


class Connection(Bounded, pyamqp.Connection):
    """A connection that knows whether RabbitMQ blocks those who publish."""

    Channel = Channel
    is_blocked = False

    def _on_blocked(self) -> None:
        self.is_blocked = True

    def _on_unblocked(self) -> None:
        self.is_blocked = False


class Transport(pyamqp.Transport):
    """The transport of these connections.

    Its type is not "amqp": there Celery makes 28 queues for messages that wait in RabbitMQ until their time has come. A
    pause is made before publishing here.
    """

    Connection = Connection
    driver_type = "rabbitmq"

    def establish_connection(self) -> Any:
        """Connect; with TLS, to a server that has the right name and a certificate that can be verified.

        ``ssl_cert_reqs=none`` in the address verifies nothing. py-amqp has other names for what the address says.
        """
        client: Any = self.client
        if client.ssl:
            given = client.ssl if isinstance(client.ssl, dict) else {}
            options = {name.removeprefix("ssl_"): value for name, value in given.items()}
            if options.get("cert_reqs") != ssl.CERT_NONE:
                options["server_hostname"] = client.hostname
            client.ssl = options
        return super().establish_connection()  # type: ignore[no-untyped-call]

    def verify_connection(self, connection: Any) -> bool:
        """Whether a connection can still be used, also if nobody has read from it since its other end went.

        A pool would hand out dead ones otherwise. Those that messages come by are read by their owner alone.
        """
        if connection.connected and not any(getattr(one, "callbacks", None) for one in connection.channels.values()):
            try:
                while True:
                    connection.drain_events(timeout=0)
            except TimeoutError:
                pass  # there is nothing more to read
            except (*self.connection_errors, *self.channel_errors):
                connection.transport.connected = False
        if connection.connected:
            return True
        connection.collect()  # another will take its place, and nobody else closes this one's socket
        return False

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Yes: quorum queues count what is taken ahead by consumer, in every version."""
        return True

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Take part in Celery's event loop, and begin with what was read ahead: no socket would tell of it."""
        super().register_with_event_loop(connection, loop)  # type: ignore[no-untyped-call]
        loop.call_soon(self.on_readable, connection, loop)


class TlsTransport(Transport):
    """The same with TLS."""

    def __init__(self, client: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(client, *arguments, **options)  # type: ignore[no-untyped-call]
        client.ssl = client.ssl or True


TRANSPORT_ALIASES.update(amqp=f"{__name__}:Transport", amqps=f"{__name__}:TlsTransport")
