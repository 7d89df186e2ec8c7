"""Taking messages from a real Redis, without Celery: how many at a time, what is noted of them, and what comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue, pools
from kombu import transport as transports
from kombu.asynchronous import Hub
from kombu.transport import TRANSPORT_ALIASES
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bank.settings import Settings
from bank.strategies.redis_lock import redis_url
from tests import hostile
from workers.broker.receiver import LONG
from workers.process.request import Request

THREADS = 4


class Taker:
    """A worker's consumer with an event loop of its own, which turns only when it is told to."""

    def __init__(self, url: str, queues: list[str], *, threads: int = THREADS, **options: Any) -> None:
        prefetch = options.setdefault("prefetch", 1)
        # Long enough for what is held here; the loop looks for what others have left each second.
        options = {"visibility_timeout": 60, "unacked_restore_interval": 1, "unacked_restore_throttle": 1, **options}
        self.hub = Hub()
        self.connection = Connection(url, transport_options=options)
        self.connection.connect()
        self.connection.transport.register_with_event_loop(self.connection.connection, self.hub)
        self.channel = self.connection.default_channel
        self.channel.basic_qos(0, threads * prefetch, False)
        self.taken: list[Any] = []
        self.taken_at = 0.0
        self.consumer = Consumer(
            self.channel, [self.queue(name) for name in queues], on_message=self._take, accept=["json"]
        )
        self.consumer.consume()

    def _take(self, message: Any) -> None:
        self.taken.append(message)
        self.taken_at = time.monotonic()  # the loop may wait a while before it lets anybody look

    @staticmethod
    def queue(name: str) -> Queue:
        return Queue(name, Exchange(name), routing_key=name)

    def turn(self, until: Callable[[], object] = lambda: False, seconds: float = 5.0) -> bool:
        """Turn the loop until something is so; return whether it is."""
        tick = self.hub.call_repeatedly(0.02, lambda: None)  # so that it looks whether it is so
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            next(self.hub.loop)
        tick.cancel()
        return bool(until())

    def turn_until(self, count: int) -> bool:
        """Turn the loop until so many messages were taken in all."""
        return self.turn(lambda: len(self.taken) >= count)

    def order(self) -> list[str]:
        """Return the ids of what was taken, in order."""
        return [message.headers["id"] for message in self.taken]

    def acknowledge(self) -> None:
        """Acknowledge all that is held."""
        for message in self.taken:
            if not message.acknowledged:
                message.ack()

    def vanish(self) -> None:
        """End as a killed worker does: it gives nothing back."""
        self.channel.qos._delivered.clear()
        self.channel.qos._dirty.clear()
        if self.channel.receiver is not None:
            self.channel.receiver._done.clear()
        self.connection.close()


@pytest.fixture
def broker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """An empty broker; what is connected to it with Kombu goes through the gate."""
    for scheme in ("redis", "rediss"):
        monkeypatch.setitem(TRANSPORT_ALIASES, scheme, "workers.broker.gate:Transport")
    monkeypatch.setattr(transports, "_transport_cache", {})  # Kombu keeps what a scheme meant at first
    assert settings.broker_url is not None
    client = Redis.from_url(redis_url(settings.broker_url.get_secret_value()))
    client.flushdb()
    pools.reset()  # type: ignore[no-untyped-call]
    yield client
    pools.reset()  # type: ignore[no-untyped-call]  # whoever connects next is to have Kombu's transport again
    client.flushdb()
    client.close()


@pytest.fixture
def take(broker: Redis, settings: Settings) -> Iterator[Callable[..., Taker]]:
    """Return a maker of takers; they are closed after the test."""
    assert settings.broker_url is not None
    url = settings.broker_url.get_secret_value()
    made: list[Taker] = []

    def make(*queues: str, **options: Any) -> Taker:
        made.append(Taker(url, list(queues), **options))
        return made[-1]

    yield make
    for taker in made:
        taker.connection.close()
        taker.hub.close()


def send(broker: Redis, queue: str, count: int = 1) -> list[str]:
    """Send jobs as any Celery does, with LPUSH and nothing else; return their ids."""
    envelopes = [hostile.envelope() for _ in range(count)]
    broker.lpush(queue, *map(json.dumps, envelopes))
    return [envelope["headers"]["id"] for envelope in envelopes]


def noted(broker: Redis) -> list[Any]:
    """Return what is noted as unacknowledged."""
    assert broker.zcard("unacked_index") == broker.hlen("unacked")
    return [json.loads(value) for value in broker.hvals("unacked")]


def calls(broker: Redis, command: str) -> int:
    """Return how often a command was called."""
    return int(broker.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def test_it_takes_as_many_as_it_has_room_for_in_one_round_trip_and_each_is_noted(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    ids = send(broker, "q", 10)
    taker = take("q")
    before = calls(broker, "evalsha") + calls(broker, "eval")
    assert taker.turn_until(THREADS)
    assert calls(broker, "evalsha") + calls(broker, "eval") - before <= 2  # the first may be one for the script
    assert taker.order() == ids[:THREADS]
    assert sorted(message["headers"]["id"] for message, _, _ in noted(broker)) == sorted(ids[:THREADS])
    assert {(exchange, queue) for _, exchange, queue in noted(broker)} == {("", "q")}
    assert all(abs(score - time.time()) < 5 for _, score in broker.zrange("unacked_index", 0, -1, withscores=True))
    assert broker.llen("q") == 6


def test_a_message_is_opened_once_and_celery_is_handed_what_was_in_it(
    broker: Redis, take: Callable[..., Taker], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(broker, "q")
    taker = take("q")
    assert taker.turn_until(1)
    (message,) = taker.taken
    monkeypatch.setattr(message, "_decode", lambda: pytest.fail("it is opened again"))
    request = Request(message, app=None, task=SimpleNamespace(ignore_result=True), hostname="h")
    assert (request.body, request.content_type, request.content_encoding) == (message.payload, None, None)
    assert json.loads(message.body) == list(message.payload)
    assert request.args[0]["run"] == "hostile"


def test_what_is_done_is_forgotten_together_with_the_next_that_is_taken(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    ids = send(broker, "q", 10)
    taker = take("q")
    assert taker.turn_until(4)
    before = calls(broker, "evalsha")
    taker.acknowledge()
    assert taker.turn_until(8)
    assert calls(broker, "evalsha") == before + 1
    assert sorted(message["headers"]["id"] for message, _, _ in noted(broker)) == sorted(ids[4:8])
    taker.acknowledge()
    assert taker.turn_until(10)
    taker.acknowledge()
    assert taker.turn(lambda: not noted(broker))


def test_while_it_waits_it_takes_nothing_and_what_comes_is_there_at_once(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    taker = take("q", "other")
    assert taker.turn(lambda: broker.info("clients")["blocked_clients"] == 2)
    for push in (broker.lpush, broker.rpush):  # as Celery sends, and as what is unacknowledged is put back
        before = len(taker.taken)
        push("q", json.dumps(hostile.envelope()))
        time.sleep(0.05)
        assert broker.llen("q") == 1  # still there for others, while this one does not look
        began = time.monotonic()
        assert taker.turn_until(before + 1)
        assert taker.taken_at - began < 0.5
        taker.acknowledge()
    assert taker.turn(lambda: not noted(broker))


def test_one_that_waits_does_not_ask_all_the_time(broker: Redis, take: Callable[..., Taker]) -> None:
    taker = take("q")
    assert taker.turn(lambda: broker.info("clients")["blocked_clients"] == 1)
    before = calls(broker, "evalsha"), calls(broker, "blmove")
    taker.turn(seconds=2)
    assert (calls(broker, "evalsha") - before[0], calls(broker, "blmove") - before[1]) <= (4, 1)  # restoring has a lock


@pytest.mark.parametrize("theirs", [True, False], ids=["as here", "as Kombu does"])
@pytest.mark.parametrize("ours", [True, False], ids=["as here", "as Kombu does"])
def test_what_a_killed_worker_held_comes_back_with_a_mark_to_either_kind_of_worker(
    broker: Redis, take: Callable[..., Taker], theirs: bool, ours: bool
) -> None:
    ids = send(broker, "q", 2)
    killed = take("q", receive_many=theirs)
    assert killed.turn_until(2)
    assert [message.delivery_info["redelivered"] for message in killed.taken] == [False, False]
    killed.vanish()
    assert len(noted(broker)) == 2
    taker = take("q", receive_many=ours, visibility_timeout=1)
    assert taker.turn_until(2)
    assert sorted(taker.order()) == sorted(ids)
    assert [message.delivery_info["redelivered"] for message in taker.taken] == [True, True]
    taker.acknowledge()
    assert taker.turn(lambda: not noted(broker))


def test_queues_are_emptied_in_fair_turns(broker: Redis, take: Callable[..., Taker]) -> None:
    for queue in ("a", "b", "c"):
        send(broker, queue, 40)
    taker = take("a", "b", "c")
    while len(taker.taken) < 60:
        assert taker.turn_until(len(taker.taken) + 1)
        taker.acknowledge()
    shares = [sum(message.delivery_info["routing_key"] == queue for message in taker.taken) for queue in "abc"]
    assert max(shares) - min(shares) <= THREADS


def test_more_than_it_works_at_is_taken_only_while_there_is_enough_for_others(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    send(broker, "q", LONG + 2 * THREADS)
    taker = take("q", prefetch=2)
    assert taker.turn_until(2 * THREADS)
    taker.acknowledge()
    assert taker.turn_until(3 * THREADS)
    taker.turn(seconds=0.1)
    assert len(taker.taken) == 3 * THREADS
    assert broker.llen("q") == LONG - THREADS


def test_a_queue_that_is_left_is_not_taken_from_and_one_that_is_joined_is(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    taker = take("a", "b")
    assert taker.turn(lambda: broker.info("clients")["blocked_clients"] == 2)
    taker.consumer.cancel_by_queue("a")
    taker.consumer.add_queue(taker.queue("c"))
    taker.consumer.consume()
    assert taker.turn(lambda: broker.info("clients")["blocked_clients"] == 2)
    send(broker, "a")
    ids = send(broker, "b") + send(broker, "c")
    assert taker.turn_until(2)
    assert sorted(taker.order()) == sorted(ids)
    assert broker.llen("a") == 1


def test_what_comes_from_a_queue_that_was_just_left_is_put_back(broker: Redis, take: Callable[..., Taker]) -> None:
    (left,) = send(broker, "a")
    (kept,) = send(broker, "b")
    taker = take("a", "b")
    taker.connection.transport._callbacks.pop("a")  # it was left while the answer was on its way
    deliver = taker.channel.deliver

    def cancel_then_deliver(taken: Any) -> None:
        taker.consumer.cancel_by_queue("a")
        deliver(taken)

    taker.channel.deliver = cancel_then_deliver
    assert taker.turn_until(1)
    assert taker.order() == [kept]
    assert [json.loads(value)["headers"]["id"] for value in broker.lrange("a", 0, -1)] == [left]
    taker.acknowledge()
    assert taker.turn(lambda: not noted(broker))


def test_a_server_that_has_forgotten_the_script_gets_it_again(broker: Redis, take: Callable[..., Taker]) -> None:
    taker = take("q")
    for _ in range(2):
        before = len(taker.taken)
        broker.script_flush()
        send(broker, "q")
        assert taker.turn_until(before + 1)
        taker.acknowledge()
    assert taker.turn(lambda: not noted(broker))


def test_what_is_no_message_is_dropped_and_the_next_one_comes_at_once(
    broker: Redis, take: Callable[..., Taker], caplog: pytest.LogCaptureFixture
) -> None:
    garbage = [b"\xff", b"{", b"[]", b"{}", b"5", b'{"properties": []}', b'{"properties": {"delivery_tag": 1}}'] * 5
    broker.lpush("q", *garbage)
    (good,) = send(broker, "q")
    taker = take("q")
    began = time.monotonic()
    assert taker.turn_until(1)
    assert taker.taken_at - began < 0.5
    assert taker.order() == [good]
    assert len([record for record in caplog.records if "rejected: not a message" in record.getMessage()]) == 35
    taker.acknowledge()
    assert taker.turn(lambda: broker.zcard("unacked_index") == broker.hlen("unacked") == 0)


def test_garbage_that_a_killed_worker_held_is_dropped_and_what_another_application_noted_is_not(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    theirs = hostile.envelope()
    theirs["headers"]["task"] = "their.task"
    for number, value in enumerate((b"[\xff", b'[{,"","q"]', b'[5,"","q"]', b'[{},"","q"]', b"5")):
        broker.zadd("unacked_index", {f"bad{number}": 1})
        broker.hset("unacked", f"bad{number}", value)
    broker.zadd("unacked_index", {"theirs": 1})
    broker.hset("unacked", "theirs", json.dumps([theirs, "", "their-queue"]))
    taker = take("q", visibility_timeout=1)
    assert taker.turn(lambda: broker.zcard("unacked_index") == broker.hlen("unacked") == 0)
    assert broker.llen("their-queue") == 1
    assert broker.llen("q") == 0


def test_one_that_is_closed_has_given_back_what_it_held_and_forgotten_what_is_done(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    ids = send(broker, "q", 4)
    taker = take("q")
    assert taker.turn_until(4)
    for message in taker.taken[:2]:
        message.ack()
    taker.connection.close()
    assert noted(broker) == []
    assert sorted(json.loads(value)["headers"]["id"] for value in broker.lrange("q", 0, -1)) == sorted(ids[2:])


def test_what_is_done_after_the_last_queue_was_left_is_forgotten_at_once(
    broker: Redis, take: Callable[..., Taker]
) -> None:
    send(broker, "q", 2)
    taker = take("q")
    assert taker.turn_until(2)
    taker.consumer.cancel()
    taker.acknowledge()  # as at the end of a worker: nothing is taken any more, and the loop does not turn
    assert noted(broker) == []


def test_what_was_taken_when_the_connection_broke_is_put_back(broker: Redis, take: Callable[..., Taker]) -> None:
    taker = take("q")
    assert taker.turn(lambda: broker.info("clients")["blocked_clients"] == 1)
    ids = send(broker, "q", 2)
    receiver = taker.channel.receiver
    read = receiver._connection.read_response

    def break_off(*arguments: Any, **options: Any) -> Any:
        read(*arguments, **options)
        raise RedisConnectionError("gone")

    receiver._connection.read_response = break_off
    with pytest.raises(RedisConnectionError):
        taker.turn_until(1)
    assert len(noted(broker)) == 2
    receiver._connection.read_response = read
    taker.connection.close()
    assert sorted(json.loads(value)["headers"]["id"] for value in broker.lrange("q", 0, -1)) == sorted(ids)


def test_nothing_is_taken_that_cannot_be_noted(broker: Redis, take: Callable[..., Taker]) -> None:
    broker.set("unacked", "something else")
    ids = send(broker, "q", 2)
    taker = take("q")
    assert not taker.turn(lambda: taker.taken, seconds=0.5)
    assert broker.llen("q") == 2
    broker.delete("unacked")
    assert taker.turn_until(2)
    assert taker.order() == ids


def test_a_queue_that_is_no_list_keeps_nobody_from_the_others(broker: Redis, take: Callable[..., Taker]) -> None:
    taker = take("bad", "q")
    broker.set("bad", "no list")
    for _ in range(2):
        before = len(taker.taken)
        send(broker, "q")
        assert taker.turn_until(before + 1)
        taker.acknowledge()


def test_a_message_with_a_priority_is_refused_when_it_is_sent(broker: Redis, take: Callable[..., Taker]) -> None:
    with take("q").connection.Producer() as producer, pytest.raises(ValueError, match="priority=5: messages have none"):
        producer.publish({}, routing_key="q", priority=5)
    assert broker.llen("q") == 0


def test_an_identifier_is_never_used_twice(broker: Redis, take: Callable[..., Taker]) -> None:
    send(broker, "q", 3 * THREADS)
    takers = [take("q"), take("q")]
    tags = []
    for taker in (*takers, takers[0]):
        before = len(taker.taken)
        assert taker.turn_until(before + THREADS)
        taker.acknowledge()
        tags += [message.delivery_tag for message in taker.taken[before:]]
    assert len(set(tags)) == 3 * THREADS
