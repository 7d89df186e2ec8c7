"""Messages that are none, in this process: each is refused with a reason in one line, and no money moves."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bank.audit import audit
from bank.errors import Rejected
from bank.orders import Order
from bank.postgres.database import Database
from bank.settings import Settings
from tests import hostile
from tests.integration.conftest import balances
from workers.app import NOOP_TASK, TASK
from workers.broker import envelope
from workers.broker.messages import Job
from workers.process.instance import Instance
from workers.submission import Submission, accept

LINE_MAX = 600


def is_one_line(reason: str) -> bool:
    return 0 < len(reason) <= LINE_MAX and all(character.isprintable() for character in reason)


@settings(max_examples=1_000, deadline=None)
@given(hostile.envelopes())
def test_whatever_json_lies_in_the_queue_is_a_job_written_anew_or_rejected_with_a_reason(whole: Any) -> None:
    try:
        opened = envelope.job(json.loads(json.dumps(whole)), "q")
    except Rejected as error:
        reason = str(error)
    else:
        reason = "none"
        check(opened)
    assert is_one_line(reason)


def check(opened: dict[str, Any]) -> None:
    assert opened["headers"]["task"] in (TASK, NOOP_TASK)
    assert (opened["headers"]["eta"], opened["headers"]["expires"]) == (None, None)
    assert set(opened["headers"]["id"]) <= set(string.ascii_letters + string.digits + "_.-")
    assert opened["properties"]["delivery_info"]["routing_key"] == "q"
    assert "argsrepr" not in opened["headers"]  # nothing of what was sent beside what is checked


def test_what_celery_itself_publishes_passes() -> None:
    opened = envelope.job(hostile.envelope(), "q")
    assert opened["body"] == opened["body"]
    assert opened["headers"]["task"] == TASK


@pytest.fixture(scope="module")
def instance(database: Database, settings: Settings) -> Iterator[Instance]:
    """An instance without Celery, for all examples."""
    opened = Instance(settings.model_copy(update={"threads": 2, "patience_ms": 200}))
    yield opened
    opened.close()


@st.composite
def jobs(draw: st.DrawFn, order: Order) -> dict[str, Any]:
    """A message about an accepted transfer, of which something was changed that must not be."""
    message = {**hostile.job(), "orders": [[str(order.id), order.debit, order.credit, order.amount]]}
    how = draw(st.sampled_from(["field", "leg", "strategy", "extra", "other"]))
    if how == "field":
        message[draw(st.sampled_from(["orders", "think_ms", "threads", "again"]))] = draw(
            hostile.json_values.filter(lambda value: not isinstance(value, (bool, int, float, type(None))))
        )
    elif how == "leg":
        message["orders"][0][draw(st.integers(1, 3))] = draw(
            hostile.json_values.filter(lambda value: value not in (1, 2, 10))
        )
    elif how == "strategy":
        message["strategy"] = "no-" + draw(st.text(max_size=30))
    elif how == "extra":
        message[draw(st.text(max_size=300).filter(lambda name: name not in message))] = draw(hostile.json_values)
    else:
        message["orders"][0][0] = str(draw(st.uuids()))
    return message


def test_no_message_about_a_transfer_moves_it_otherwise_than_it_was_accepted(
    bank: Database, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    order = Order(uuid4(), 1, 2, 10)
    accept(bank, [order], Submission("test", "row-lock", "test"))

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(jobs(order))
    def try_it(message: dict[str, Any]) -> None:
        caplog.clear()
        try:
            instance.apply(Job.parse(json.loads(json.dumps(message))))
        except Rejected as error:
            reasons = [str(error)]
        else:
            reasons = [record.getMessage() for record in caplog.records]
        assert reasons
        assert all(is_one_line(reason) for reason in reasons), reasons

    try_it()
    assert balances(bank) == [100, 100, 100]
    found = audit(bank)
    assert (found.entries, found.transfers["pending"]) == (0, 1)
