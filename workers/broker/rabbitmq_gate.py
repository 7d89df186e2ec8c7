"""The transport of workers on RabbitMQ: what lies in a queue may be anything, and no worker ends of it.

As in ``gate``: what is no message of ours is dropped, with its reason in the log, and goes where the queue's policy
sends what is dropped (a dead-letter exchange), if it has one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import amqp
from amqp.method_framing import frame_handler
from amqp.serialization import decode_properties_basic
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, pyamqp

from bank.errors import Rejected, one_line
from workers.broker import envelope, rabbitmq
from workers.broker.messages import REASON_MAX

HEADER = 2
"""The kind of frame that holds a message's properties, from this byte on (AMQP 0-9-1, section 4.2.6)."""
PROPERTIES_AT = 12
NO_PROPERTIES = b"\0\0"
Frame = tuple[int, int, bytes]
LOSSES_MAX = 3
"""So many connections are lost over one queue, one after the other, before it is taken for damaged."""
CONNECT_SECONDS = 5

_losses: Counter[tuple[str, str]] = Counter()

logger = logging.getLogger("bankrun")


class Message(pyamqp.Message):
    """A message that was opened when it came."""

    def __init__(self, raw: Any, channel: Any = None, **options: Any) -> None:
        super().__init__(raw, channel, **options)  # type: ignore[no-untyped-call]
        self._decoded_cache = getattr(raw, "opened", None)


class Channel(rabbitmq.Channel):
    """Lets jobs and remote-control commands pass, and nothing else."""

    Message = Message  # type: ignore[assignment]
    received: Callable[[], None] | None = None
    """A failpoint: reached with each job that has just come."""

    def basic_consume(self, queue: str = "", *, callback: Any = None, no_ack: bool = False, **options: Any) -> Any:
        """Consume from a queue. Commands are those that need no acknowledgement."""

        def receive(raw: Any) -> None:
            try:
                if no_ack:
                    envelope.check_delivered_command(raw.body, raw.properties)
                else:
                    self._write_anew(raw, queue)
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises, it is the message's fault
                said = str(error) if isinstance(error, Rejected) else f"{type(error).__name__}: {error}"
                logger.warning("rejected: %s", one_line(said, REASON_MAX))
                if not no_ack:
                    self.basic_reject(raw.delivery_tag, requeue=False)
                return
            reach = type(self).received
            if reach is not None and not no_ack:
                reach()
            callback(raw)

        with self._watch("consume", queue):
            return super().basic_consume(queue, callback=receive, no_ack=no_ack, **options)

    def queue_declare(self, queue: str = "", *arguments: Any, **options: Any) -> Any:
        """Declare a queue."""
        with self._watch("declare", queue):
            return super().queue_declare(queue, *arguments, **options)

    @contextmanager
    def _watch(self, act: str, queue: str) -> Iterator[None]:
        """Remove a queue over which every connection is lost: no other queue, and no command, would be served again.

        RabbitMQ has such queues after it was killed just as they were made. What was in one is pending in Postgres.
        """
        client = getattr(self.connection, "client", None)
        try:
            yield
        except (amqp.ConnectionError, OSError):
            _losses[act, queue] += 1
            if client is not None and _losses[act, queue] % LOSSES_MAX == 0:
                logger.warning("%d connections were lost over %s: it is removed, and made anew", LOSSES_MAX, queue)
                with suppress(amqp.AMQPError, OperationalError, OSError), client.clone() as other:
                    other.ensure_connection(max_retries=1, timeout=CONNECT_SECONDS)
                    other.default_channel.queue_delete(queue)
            raise
        del _losses[act, queue]

    def _write_anew(self, raw: Any, queue: str) -> None:
        raw.properties, raw.opened = envelope.open_delivery(raw.body, raw.properties)
        raw.delivery_info |= {"exchange": "", "routing_key": queue}  # where it goes if it is sent again


class Connection(rabbitmq.Connection):
    """A connection with these channels, which properties that py-amqp cannot read do not end."""

    Channel = Channel

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, frame_handler=_handle_frames, **options)


def _handle_frames(connection: Any, callback: Any) -> Callable[[Frame], Any]:
    """Return py-amqp's own handler of what comes; properties that it cannot read are as none."""
    handle = frame_handler(connection, callback)

    def on_frame(frame: Frame) -> Any:
        kind, channel, content = frame
        if kind == HEADER:
            try:
                decode_properties_basic(content, PROPERTIES_AT)
            except Exception:  # noqa: BLE001 - a time that is none, a table in a table in a table
                frame = (kind, channel, bytes(content[:PROPERTIES_AT]) + NO_PROPERTIES)
        return handle(frame)

    return on_frame


class Transport(rabbitmq.Transport):
    """The transport of these connections."""

    Connection = Connection


class TlsTransport(rabbitmq.TlsTransport):
    """The same with TLS."""

    Connection = Connection


def take_place() -> None:
    """Be the transport of every connection that this process makes from now on."""
    TRANSPORT_ALIASES.update(amqp=f"{__name__}:Transport", amqps=f"{__name__}:TlsTransport")
