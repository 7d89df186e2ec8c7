"""A worker's reader of messages, fed what is nearly one: each is handed on whole or dropped with a reason.

The inputs are messages that were really sent, of which something was changed. Kombu's consumer and a real Redis carry
them; there are no threads that would work at them.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, suppress
from uuid import UUID, uuid4

import pytest
from redis import Redis

from bank.errors import Rejected
from bank.orders import Order
from bank.settings import Settings
from bank.strategies.redis_lock import redis_url
from tests.integration.test_receiving import Taker, broker  # noqa: F401 - a fixture
from tests.mutations import LARGE, mutate
from workers.app import create_app
from workers.broker import envelope
from workers.broker.messages import Job
from workers.submission import Submission, publish

INPUTS = 10_000 if LARGE else 400
BATCH = 50
MEMORY_MAX = 8_000_000
REASON_MAX = 600
VALUES = (
    0,
    1,
    -1,
    2**63,
    2**64,
    10**400,
    1.5,
    1e308,
    True,
    None,
    "",
    "1",
    "a" * 5_000,
    "\ud800",
    "\0",
    [],
    [[]],
    {},
    str(UUID(int=7)),
)


class Reasons(logging.Filter):
    """Counts what was dropped, looks at the reason, and lets nobody keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Look at one."""
        said = record.getMessage()
        assert said.startswith("rejected: ")
        assert len(said) < REASON_MAX
        assert said.isprintable()
        self.count += 1
        return False


@pytest.fixture
def reasons() -> Iterator[Reasons]:
    """What bankrun would log meanwhile."""
    found, logger = Reasons(), logging.getLogger("bankrun")
    logger.addFilter(found)
    yield found
    logger.removeFilter(found)


@pytest.fixture
def client(settings: Settings) -> Iterator[Redis]:
    """The broker that the taker uses."""
    assert settings.broker_url is not None
    with closing(Redis.from_url(redis_url(settings.broker_url.get_secret_value()))) as opened:
        yield opened


def send_some(settings: Settings, client: Redis) -> list[bytes]:
    """Return messages as they lie in the queue when they were sent."""
    with closing(create_app(settings)) as app:
        for chunk in (1, 3, 40):
            orders = [Order(uuid4(), 1, 2, 10 + number) for number in range(40)]
            publish(app, orders, Submission("fuzz", "row-lock", "sent", chunk))
    sent = client.lrange("sent", 0, -1)
    client.delete("sent")
    assert len(sent) == 40 + 14 + 1
    return [bytes(one) for one in sent]


def spoil(originals: list[bytes], chosen: random.Random) -> bytes:
    """Return a message of which something was changed: its bytes, its body's, or a value; or what never was one."""
    original = chosen.choice(originals)
    how = chosen.randrange(10)
    if how == 0:
        return chosen.randbytes(chosen.randint(1, 2_000))
    if how < 4:
        return mutate(original, chosen, originals)
    whole = json.loads(original)
    body = base64.b64decode(whole["body"])
    if how < 7:
        body = mutate(body, chosen, originals)
    else:
        job = (said := json.loads(body))[0][0]
        inner = chosen.choice([job, job["orders"][0]])
        inner[chosen.choice(list(inner) if inner is job else range(4))] = chosen.choice(VALUES)
        body = json.dumps(said).encode()
    whole["body"] = base64.b64encode(body).decode()
    return json.dumps(whole).encode()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("broker")
def test_each_message_is_handed_on_whole_or_dropped_with_a_reason_and_memory_stays_bounded(
    settings: Settings, client: Redis, reasons: Reasons
) -> None:
    originals = send_some(settings, client)
    assert settings.broker_url is not None
    taker = Taker(settings.broker_url.get_secret_value(), ["q"], threads=BATCH)
    handed_on = applicable = 0
    tracemalloc.start()
    for first in range(0, INPUTS, BATCH):
        if first == BATCH:  # what is made once is there now
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        messages = [spoil(originals, random.Random(seed)) for seed in range(first, first + BATCH)]
        client.lpush("q", *messages)
        seen = first + BATCH - handed_on
        assert taker.turn(lambda seen=seen: len(taker.taken) + reasons.count >= seen), first  # type: ignore[misc]
        for message in taker.taken:
            handed_on += 1
            (argument,) = message.payload[0]
            with suppress(Rejected):
                Job.parse(argument).parsed_orders()
                applicable += 1
        taker.acknowledge()
        taker.taken.clear()
    assert taker.turn(lambda: client.zcard("unacked_index") == client.hlen("unacked") == client.llen("q") == 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - before < MEMORY_MAX
    assert handed_on + reasons.count == INPUTS
    assert min(reasons.count, handed_on - applicable, applicable) > INPUTS / 50  # all happen, or the inputs are no test
    taker.connection.close()
    taker.hub.close()


@pytest.mark.usefixtures("broker")
def test_what_is_noted_as_unacknowledged_is_put_back_or_dropped(
    settings: Settings, client: Redis, reasons: Reasons
) -> None:
    originals = [b'[%s,"","back"]' % one for one in send_some(settings, client)]
    count = INPUTS // 10
    for number in range(count):
        chosen = random.Random(number)
        client.zadd("unacked_index", {f"tag{number}": 1})
        client.hset("unacked", f"tag{number}", mutate(chosen.choice(originals), chosen, originals))
    assert settings.broker_url is not None
    taker = Taker(settings.broker_url.get_secret_value(), ["q"], visibility_timeout=1)
    assert taker.turn(lambda: client.zcard("unacked_index") == client.hlen("unacked") == 0, 60)
    assert reasons.count > count / 10
    assert client.llen("back") > count / 50
    taker.connection.close()
    taker.hub.close()


def test_a_command_is_passed_on_or_rejected() -> None:
    original = json.dumps(
        {
            "body": "e30=",
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {},
            "properties": {"delivery_tag": "t", "body_encoding": "base64"},
        }
    ).encode()
    envelope.check_command(json.loads(original))
    reasons: list[str] = []
    for seed in range(INPUTS):
        try:
            envelope.check_command(json.loads(mutate(original, random.Random(seed), [original])))
        except Rejected as error:
            reasons.append(str(error))
        except (ValueError, RecursionError):  # of the decoder: it is no JSON, and the gate drops it
            continue
    assert len(reasons) > INPUTS / 50
    assert max(map(len, reasons)) < REASON_MAX
