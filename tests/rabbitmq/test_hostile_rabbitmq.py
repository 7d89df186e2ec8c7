"""What lies in a queue of RabbitMQ may be anything: no worker ends of it, and no money moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import amqp
import pytest
from pydantic import SecretStr

from bank.audit import audit
from bank.postgres.database import Database
from bank.settings import Settings
from bankrun.results.workload import Workload
from bankrun.runs.adhoc import open_fresh_bank, trigger, watch
from bankrun.runs.comparison import Lab
from bankrun.runs.session import open_lab, open_servers
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from tests.rabbitmq.server import Server
from tests.waiting import wait_until
from workers.app import QUEUE, TASK

pytestmark = pytest.mark.timeout(240)
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
BODY = json.dumps([[{"run": "r", "strategy": "none", "orders": [[str(uuid4()), 1, 2, 10]]}], {}, {}])


@pytest.fixture(scope="module")
def lab(
    stack: tuple[Keeper, Endpoints], rabbitmq: Server, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """One instance on RabbitMQ."""
    settings = Settings(
        database_url=SecretStr(stack[1].database_url),
        broker_url=SecretStr(rabbitmq.url()),
        state_dir=tmp_path_factory.mktemp("state"),
    )
    with open_servers(settings) as servers, open_lab(servers, instances=1, threads=2) as opened:
        yield opened


def log_of(lab: Lab) -> str:
    assert lab._settings.state_dir is not None
    return (Path(lab._settings.state_dir) / "logs" / "w1.log").read_text()


def headers(**more: object) -> dict[str, object]:
    return {"task": TASK, "id": "1", **more}


class Raw(amqp.Message):
    """A message with headers that py-amqp would not write."""

    def __init__(self, table: bytes) -> None:
        super().__init__(BODY)
        self.table = table

    def _serialize_properties(self) -> bytes:
        return b"\x20\x00" + len(self.table).to_bytes(4, "big") + self.table


def nested(depth: int) -> bytes:
    table = b"\x01at\x01"
    for _ in range(depth):
        table = b"\x01aF" + len(table).to_bytes(4, "big") + table
    return table


RAW = {"no time": b"\x01aT" + b"\xff" * 8, "deep": nested(10_000), "no text": b"\x02\xff\xfeS\0\0\0\x01\xff"}
HOSTILE: dict[str, tuple[bytes | str, dict[str, object]]] = {
    "no properties": (b"\xff\xfe no text", {}),
    "no JSON": (b"{not json", {**JSON, "application_headers": headers()}),
    "another type": (
        BODY,
        {**JSON, "content_type": "application/x-python-serialize", "application_headers": headers()},
    ),
    "no text at all": (b"\xff", {**JSON, "content_encoding": "no-such-code", "application_headers": headers()}),
    "no task": (BODY, JSON),
    "another task": (BODY, {**JSON, "application_headers": headers(task="celery.backend_cleanup")}),
    "waits for a time": (BODY, {**JSON, "application_headers": headers(eta="2999-01-01T00:00:00")}),
    "has expired": (BODY, {**JSON, "application_headers": headers(expires="1999-01-01T00:00:00")}),
    "compressed": (BODY, {**JSON, "application_headers": headers(compression="application/x-gzip", retries="x")}),
    "a time": (BODY, {**JSON, "application_headers": headers(retries=datetime(2000, 1, 1, tzinfo=UTC))}),
    "callbacks": (
        BODY.replace(", {}]", ', {"callbacks": [{"task": "x"}]}]'),
        {**JSON, "application_headers": headers()},
    ),
    "two arguments": (json.dumps([[1, 2], {}, {}]), {**JSON, "application_headers": headers()}),
    "deep": ("[" * 100_000, {**JSON, "application_headers": headers()}),
    "no job": (json.dumps([["x"], {}, {}]), {**JSON, "application_headers": headers()}),
    "not accepted": (BODY, {**JSON, "application_headers": headers()}),
    "late": (BODY, {**JSON, "application_headers": headers(), "timestamp": 2**63}),
}


def test_what_is_no_message_of_ours_is_dropped_and_the_worker_goes_on(lab: Lab, rabbitmq: Server) -> None:
    open_fresh_bank(lab, Workload(accounts=4, transfers=50))
    before = audit(lab.database)
    with amqp.Connection(f"127.0.0.1:{rabbitmq.port}", "bankrun", str(rabbitmq.plan["password"])) as connection:
        channel = connection.channel()
        for body, properties in HOSTILE.values():
            channel.basic_publish(amqp.Message(body, **properties), routing_key=QUEUE)
        for table in RAW.values():
            channel.basic_publish(Raw(table), routing_key=QUEUE)
        for queue in (QUEUE, "w1@bankrun.celery.pidbox"):
            channel.basic_publish(amqp.Message(b"\x00" * 10, application_headers={"compression": 1}), routing_key=queue)
        assert wait_until(lambda: log_of(lab).count("rejected: ") >= len(HOSTILE) + len(RAW) + 2, 60), log_of(lab)
        assert wait_until(lambda: channel.queue_declare(QUEUE, passive=True).message_count == 0, 30)
    assert audit(lab.database).closing_total == before.closing_total
    assert [info.instance for info in lab.fleet.discover(1)] == ["w1"]
    trigger(lab, Workload(accounts=4, transfers=50), "row-lock", seed=5)
    for _ in watch(lab):
        lab.look_after()
    found = audit(lab.database)
    assert found.passed
    assert found.transfers["pending"] == 0
    assert "Traceback" not in log_of(lab)
