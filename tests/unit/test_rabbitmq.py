"""What is decided about RabbitMQ without one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from celery import Celery

from bank.errors import CannotStart, Rejected
from bank.settings import Settings
from bank.strategies import STRATEGIES, check_settings
from bankrun.chaos.faults import FAULTS, RABBITMQ, REDIS, faults_with
from bankrun.chaos.targets import can_be_cut
from bankrun.runs.environment import describe_servers
from workers.app import QUEUE, TASK, broker_of, create_app
from workers.broker import envelope
from workers.broker.brokers import RABBITMQ as RABBITMQ_BROKER

SETTINGS = Settings.model_validate({"broker_url": "amqp://u:p@h/", "visibility_timeout_ms": 60_000})


@pytest.fixture
def app() -> Iterator[Celery]:
    with create_app(SETTINGS) as made:
        yield made


def test_every_queue_is_a_durable_quorum_queue_that_nothing_is_dropped_from(app: Celery) -> None:
    assert broker_of(app) is RABBITMQ_BROKER
    asked = app.amqp.queues.select_add("asked", exchange="asked", exchange_type="direct", routing_key=None)
    for queue in (app.amqp.queues[QUEUE], app.amqp.queues["run-1"], asked):
        assert queue.durable
        assert not queue.auto_delete
        assert queue.exchange.name == ""
        assert queue.routing_key == queue.name
        assert queue.queue_arguments["x-queue-type"] == "quorum"
        assert queue.queue_arguments["x-delivery-limit"] > 1_000_000
    assert "x-expires" in asked.queue_arguments
    assert "x-expires" not in app.amqp.queues[QUEUE].queue_arguments


def test_an_instance_that_is_silent_is_given_up_when_its_messages_are_to_come_back(app: Celery) -> None:
    assert 2 * app.conf["broker_heartbeat"] == SETTINGS.visibility_timeout_ms / 1_000


def test_redis_stays_as_it_was() -> None:
    with create_app(Settings.model_validate({"broker_url": "redis://h/0"})) as made:
        assert made.amqp.queues["run-1"].queue_arguments is None
        assert made.conf["broker_heartbeat"] == 120  # Celery's own


@pytest.mark.parametrize(
    "address",
    ["amqp://h", "amqp://u:p@h:5672/", "amqp://u:p@h//", "amqp://u:p@h/bank", "amqps://h/a%2Fb?ssl_ca_certs=/ca.pem"],
)
def test_an_address_of_rabbitmq_is_taken(address: str) -> None:
    Settings.model_validate({"broker_url": address})


def test_strategies_that_lock_in_redis_cannot_be_opened_and_all_others_can() -> None:
    in_redis = ("redis-lock", "redis-lock-fenced", "redis-lock-fenced-late")
    for name in in_redis:
        with pytest.raises(CannotStart, match=f"^{name} needs Redis"):
            check_settings(name, SETTINGS)
    for name in STRATEGIES.keys() - in_redis:
        check_settings(name, SETTINGS)


def test_faults_of_rabbitmq_are_none_of_redis_and_those_of_redis_are_named() -> None:
    assert not [name for name in faults_with(REDIS) if name.startswith("rabbitmq")]
    assert faults_with(RABBITMQ) == tuple(FAULTS)
    assert can_be_cut("amqp://h")
    assert not can_be_cut("amqps://h")


def test_a_delivery_is_written_anew_or_rejected() -> None:
    job = [{"run": "r", "strategy": "none", "orders": []}]
    body = json.dumps([job, {}, {"callbacks": None}])
    given = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": {"task": TASK, "id": "x-1", "retries": 3, "group": "g", "argsrepr": "long"},
        "reply_to": "somebody",
        "priority": 9,
    }
    anew, opened = envelope.open_delivery(body, given)
    assert opened[:2] == (job, {})
    assert (anew["priority"], anew["correlation_id"], "reply_to" in anew) == (0, "x-1", False)
    headers = anew["application_headers"]
    assert (headers["task"], headers["retries"]) == (TASK, 3)
    assert not {"group", "argsrepr"} & headers.keys()
    for wrong in (
        {**given, "content_type": "application/x-yaml"},
        {**given, "application_headers": {**given["application_headers"], "eta": "2999-01-01"}},
        {**given, "application_headers": {**given["application_headers"], "task": "celery.chord"}},
        {},
    ):
        with pytest.raises(Rejected, match="not a message"):
            envelope.open_delivery(body, wrong)
    for nothing in ("", b"{", json.dumps([job, {}, {"callbacks": [1]}]), json.dumps([[], {}, {}])):
        with pytest.raises(Rejected, match="not a message"):
            envelope.open_delivery(nothing, given)
    with pytest.raises(Rejected, match="not a command"):
        envelope.check_delivered_command(b"{}", {"application_headers": {"compression": "application/x-gzip"}})


def test_a_result_says_which_broker_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bankrun.runs.environment.server_settings", lambda *_: {})
    for server, key in (("rabbitmq", "rabbitmq"), ("valkey", "redis"), ("redis", "redis")):
        found = describe_servers(None, {"server": server, "version": "1"}, "given")  # type: ignore[arg-type]
        assert found[key] == {"server": server, "version": "1"}
        assert len({"redis", "rabbitmq"} & found.keys()) == 1
