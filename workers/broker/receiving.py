"""Kombu's Redis transport with a receiver in place of BRPOP.

Whether it is used is the transport option ``receive_many``; and there has to be an event loop: without one, as in a
process that only waits for replies, Kombu's own way stays. What is noted in Redis is noted as Kombu does it, so workers
of both ways can share their queues, and each gives back what another left.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import loads

from workers.broker import transport
from workers.broker.receiver import RECEIVE_MAX, Loop, Receiver, Taken

TURNS_MAX = 100


class Message(virtual.Message):
    """A message that may have been opened when it was received."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **options: Any) -> None:
        super().__init__(payload, channel, **options)  # type: ignore[no-untyped-call]
        self._decoded_cache = payload.get("opened")


class QoS(redis.QoS):
    """What is unacknowledged: noted already when it was taken, and forgotten together with the next that is."""

    channel: Channel

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message."""
        if self.channel.receiver is None:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]
        else:
            virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message: at once if no more are taken, as at the end of a worker."""
        receiver = self.channel.receiver
        if receiver is None or not self.channel.active_queues:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        else:
            receiver.acknowledge(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Kombu's signature
        """Put a message back where it was taken from, or forget it."""
        if requeue:
            super().reject(delivery_tag, requeue=True)  # type: ignore[no-untyped-call]
        else:
            self.ack(delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002
        """Put a message back into its queue, whoever took it."""

        def restore(pipe: Any) -> None:
            noted = pipe.hget(self.unacked_key, tag)
            pipe.multi()
            self._remove_from_indices(tag, pipe)  # type: ignore[no-untyped-call]
            if noted:
                self.channel.put_back(noted, pipe, leftmost)

        with self.channel.conn_or_acquire(client) as connected:
            connected.transaction(restore, self.unacked_key)

    def room(self) -> tuple[int, int]:
        """Return how many messages may be taken to be worked at, and how many more ahead."""
        most = self.prefetch_count or RECEIVE_MAX
        at_once = -(-most // self.channel.prefetch)
        held = len(self._delivered) - len(self._dirty)
        return max(0, at_once - held), max(0, most - max(at_once, held))

    def expect(self, tags: list[str]) -> None:
        """Hold what may have been taken: if nothing more is heard of it, it is put back when the channel is closed."""
        self._delivered.update(dict.fromkeys(tags))

    def is_held(self, tag: str) -> bool:
        """Whether a message that was expected has found its consumer."""
        return self._delivered.get(tag) is not None

    def forget(self, tag: str) -> None:
        """Hold it no longer."""
        self._delivered.pop(tag, None)


class Channel(transport.Channel):
    """A channel that receives."""

    Message = Message
    QoS = QoS
    receive_many = True
    prefetch = 1
    """Messages held for each one that is worked at: those beyond are only taken while there are enough for others."""
    from_transport_options = (*transport.Channel.from_transport_options, "receive_many", "prefetch")  # type: ignore[assignment]
    receiver: Receiver | None = None

    def basic_consume(self, queue: str, *arguments: Any, **options: Any) -> Any:
        """Consume from one more queue."""
        consumer = super().basic_consume(queue, *arguments, **options)  # type: ignore[no-untyped-call]
        loop = self.connection.loop
        if self.receiver is None and self.receive_many and loop is not None and self.active_queues:
            self.receiver = self._make_receiver(loop)
        if self.receiver is not None:
            self.receiver.look()
        return consumer

    def _make_receiver(self, loop: Loop) -> Receiver:
        def make_connection() -> Any:  # beside the pool: they are never given back, and its size is not theirs
            return self.pool.connection_class(**self.pool.connection_kwargs)

        def key_of(name: str) -> str:
            return f"{self.global_keyprefix}{name}"

        return Receiver(make_connection, (key_of(self.unacked_index_key), key_of(self.unacked_key)), key_of, loop)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        cancelled = super()._basic_cancel(consumer_tag)  # type: ignore[no-untyped-call]
        if self.receiver is not None and queue is not None and queue not in self.active_queues:
            self.receiver.leave(queue)
        return cancelled

    def receive(self, receiver: Receiver) -> None:
        """Acknowledge what is done, take as many as there is room for, and hand them to their consumers.

        Where messages are dropped, again: nothing else would wake the loop. Yet not for ever, since it has more to do.
        """
        for _ in range(TURNS_MAX):
            room, ahead = self.qos.room()
            if not receiver.has_reason(room):
                break
            self._receive_once(receiver, room, ahead)
        if room:
            receiver.wait(self.active_queues)

    def _receive_once(self, receiver: Receiver, room: int, ahead: int) -> None:
        queues = self._queue_cycle.consume(len(self._active_queues))
        try:
            taken = receiver.receive(queues, room, ahead)
        except BaseException:
            self.qos.expect(receiver.in_doubt)
            raise
        if taken:  # the first one may have given more than its share
            self._queue_cycle.rotate(taken[0].queue)
            self.qos.expect([one.tag for one in taken])
        for one in taken:
            self.deliver(one)
            if not self.qos.is_held(one.tag):  # dropped, or its consumer acknowledges nothing
                self.qos.forget(one.tag)
                receiver.acknowledge(one.tag)

    def deliver(self, taken: Taken) -> None:
        """Hand a message to its queue's consumer."""
        raise NotImplementedError

    def put_back(self, noted: bytes, pipe: Any, leftmost: bool) -> None:  # noqa: FBT001 - Kombu's order
        """Put what was noted of a message back into its queue, with a mark that it was delivered."""
        message, exchange, routing_key = loads(noted)  # type: ignore[no-untyped-call]
        self._do_restore_message(message, exchange, routing_key, pipe, leftmost)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Acknowledge what is done, put back what is not, and close."""
        if self.receiver is not None:
            self.receiver.close()
        super().close()  # type: ignore[no-untyped-call]


class Poller(redis.MultiChannelPoller):
    """Lets channels that have a receiver take messages, before each time that the loop waits for what is next."""

    def on_poll_start(self) -> None:
        """Begin to wait."""
        receiving = [channel for channel in self._channels if channel.receiver is not None and channel.active_queues]
        for channel in receiving:
            channel.receive(channel.receiver)
        super().on_poll_start()  # type: ignore[no-untyped-call]

    def _register_BRPOP(self, channel: Channel) -> None:  # noqa: N802 - Kombu's name
        if channel.receiver is None:
            super()._register_BRPOP(channel)  # type: ignore[no-untyped-call]

    def maybe_check_brpop_health(self) -> None:
        """Look for connections whose other end is gone."""
        super().maybe_check_brpop_health()  # type: ignore[no-untyped-call]
        for channel in self._channels:
            if channel.receiver is not None:
                channel.receiver.check()


class Transport(transport.Transport):
    """The transport of these channels."""

    Channel = Channel
    loop: Loop | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self.cycle = Poller()  # type: ignore[no-untyped-call, assignment]

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Take part in Celery's event loop."""
        self.loop = loop
        super().register_with_event_loop(connection, loop)  # type: ignore[no-untyped-call]
