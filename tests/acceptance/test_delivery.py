"""Real workers behind a real broker: whatever is delivered, and however often, money moves once."""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import uuid4

import pytest

from bank.audit import Audit, audit
from bank.orders import Order
from bank.postgres.schema import open_bank
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Lab
from tests.waiting import wait_until
from workers.app import TASK
from workers.broker.messages import message
from workers.process.affinity import cores_for
from workers.submission import Submission, accept, publish


def send_twice(lab: Lab, orders: list[Order]) -> tuple[Audit, int]:
    """Publish every order twice, shuffled into each other; return the audit and how many deliveries found it done."""
    queue = lab.next_name()
    submission = Submission(queue, "row-lock", queue)
    open_bank(lab.database, accounts=4, opening=1_000)
    accept(lab.database, orders, submission)
    for _ in range(2):
        publish(lab.app, orders, submission)
    lab.fleet.join(queue, lab.instances)
    assert wait_until(lambda: lab.fleet.queue_length(queue) == 0, 30)
    lab.fleet.leave(queue, lab.instances)
    return audit(lab.database), lab.fleet.read_meters(queue, lab.instances).counts["repeated"]


def test_every_message_published_twice_moves_its_money_once(lab: Lab) -> None:
    orders = list(Workload(accounts=4, transfers=200).orders(7))
    found, repeated = send_twice(lab, orders)
    assert found.passed, found.findings
    assert (found.transfers["applied"], found.duplicates, repeated) == (200, 0, 200)


def test_each_worker_stays_on_the_core_that_it_says(lab: Lab) -> None:
    expected = cores_for([info.instance for info in lab.instances])
    for info in lab.instances:
        assert info.core == expected.get(info.instance)
        if info.core is not None:
            assert os.sched_getaffinity(info.pid) == {info.core}


def test_a_message_that_comes_back_from_the_broker_moves_its_money_once(lab: Lab) -> None:
    # An unacknowledged message is delivered again when its time is over. Here that time is made to be over while the
    # first delivery still works: the broker's own bookkeeping says so, as after a pause of the instance.
    open_bank(lab.database, accounts=2, opening=1_000)
    order = Order(uuid4(), 1, 2, 10)
    queue = lab.next_name()
    submission = Submission(queue, "row-lock", queue, think_ms=1_500)
    accept(lab.database, [order], submission)
    with lab.app.connection_for_write() as connection:
        client = connection.default_channel.client
        client.delete("unacked", "unacked_index")  # what instances held that other tests have killed
        publish(lab.app, [order], submission)
        lab.fleet.join(queue, lab.instances)
        assert wait_until(lambda: client.zcard("unacked_index") == 1, 5)
        for tag in client.zrange("unacked_index", 0, -1):
            client.zadd("unacked_index", {tag: 0})

    def deliveries() -> Any:
        with lab.database.transaction() as transaction:
            return transaction.execute("SELECT status FROM transfers").fetchone() == ("applied",)

    assert wait_until(deliveries, 20)
    time.sleep(2)
    lab.fleet.leave(queue, lab.instances)
    counts = lab.fleet.read_meters(queue, lab.instances).counts
    found = audit(lab.database)
    assert found.passed, found.findings
    assert (found.transfers["applied"], counts["deliveries"], counts["repeated"]) == (1, 2, 1)


@pytest.mark.parametrize(
    "body",
    [
        "not a job",
        {"run": "r", "strategy": "none", "orders": []},
        {"run": "r", "strategy": "no-such-strategy", "orders": [[str(uuid4()), 1, 2, 3]]},
        {"run": "r", "strategy": "none", "orders": [[str(uuid4()), 1, 2, 3]]},
        {"run": "r", "strategy": "none", "orders": [[str(uuid4()), 1, 2, -3]]},
    ],
    ids=["text", "no orders", "unknown strategy", "never accepted", "negative"],
)
def test_a_message_that_is_no_job_moves_nothing_and_stops_nobody(lab: Lab, body: object) -> None:
    open_bank(lab.database, accounts=2, opening=1_000)
    order = Order(uuid4(), 1, 2, 10)
    queue = lab.next_name()
    accept(lab.database, [order], Submission(queue, "row-lock", queue))
    lab.app.send_task(TASK, args=(body,), queue=queue)
    lab.app.send_task(TASK, args=(message([order], run=queue, strategy="row-lock"),), queue=queue)
    lab.fleet.join(queue, lab.instances)

    def is_applied() -> bool:
        return audit(lab.database).transfers["applied"] == 1

    assert wait_until(is_applied, 10)
    lab.fleet.leave(queue, lab.instances)
    found = audit(lab.database)
    assert found.passed
    assert found.entries == 2


def test_a_chunk_of_orders_in_one_message_is_applied_one_by_one(lab: Lab) -> None:
    open_bank(lab.database, accounts=4, opening=1_000)
    orders = list(Workload(accounts=4, transfers=100).orders(3))
    queue = lab.next_name()
    submission = Submission(queue, "row-lock", queue, chunk=30)
    accept(lab.database, orders, submission)
    publish(lab.app, orders, submission)
    assert lab.fleet.queue_length(queue) == 4
    lab.fleet.join(queue, lab.instances)
    assert wait_until(lambda: audit(lab.database).transfers["applied"] == 100, 20)
    lab.fleet.leave(queue, lab.instances)
    assert lab.fleet.read_meters(queue, lab.instances).counts["deliveries"] == 100


def test_nothing_that_is_published_can_swallow_an_interruption(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.app.AsyncResult, "__init__", lambda *_: pytest.fail("a result, with its __del__"))
    queue = lab.next_name()
    publish(lab.app, [Order(uuid4(), 1, 2, 10)], Submission(queue, "row-lock", queue))
    lab.fleet.leave(queue, [])
