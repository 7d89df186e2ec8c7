"""A real worker whose queue holds anything at all: it drops what is no job, says why, and goes on."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from bank.audit import audit
from bank.orders import Order
from bank.postgres.schema import open_bank
from bankrun.runs.comparison import Lab
from tests import hostile
from tests.waiting import wait_until
from workers.submission import Submission, accept, publish

DRAWN = 400


def logged(state_dir: Path) -> list[str]:
    """Return what the instance has said so far."""
    return (state_dir / "lab" / "logs" / "w1.log").read_text(errors="replace").splitlines()


def test_whatever_lies_in_its_queue_a_worker_drops_it_with_a_reason_and_applies_what_comes_next(
    lab: Lab, state_dir: Path
) -> None:
    open_bank(lab.database, accounts=3, opening=1_000)
    good = Order(uuid4(), 1, 2, 10)
    queue = lab.next_name()
    submission = Submission(queue, "row-lock", queue)
    accept(lab.database, [good], submission, forgettable=True)
    payloads = [*hostile.known(good.id), *hostile.drawn(hostile.payloads, DRAWN)]
    first = next(info for info in lab.instances if info.instance == "w1")
    said = len(logged(state_dir))
    with lab.app.connection_for_write() as connection:
        client = connection.default_channel.client
        client.delete("unacked", "unacked_index")  # what instances held that other tests have killed
        client.lpush(queue, *payloads)
        client.publish("/0.celery.pidbox", b"[" * 100_000)  # and the channel of remote control
        client.publish("/0.celery.pidbox", b'{"body": 5}')
        publish(lab.app, [good], submission)
        lab.fleet.join(queue, [first])
        assert wait_until(lambda: audit(lab.database).transfers["pending"] == 0, 30), logged(state_dir)[-20:]
        assert wait_until(lambda: client.zcard("unacked_index") == client.llen(queue) == 0, 10)
    lab.fleet.leave(queue, [first])
    reasons = logged(state_dir)[said:]
    assert [line for line in reasons if "rejected: " not in line] == []
    assert sum("command" not in line for line in reasons) == len(payloads)
    assert max(map(len, reasons)) < 600, max(reasons, key=len)
    found = audit(lab.database)
    assert found.passed
    assert (found.transfers["applied"], found.entries) == (1, 2)
    with lab.database.transaction() as transaction:
        assert transaction.execute("SELECT balance FROM accounts ORDER BY id").fetchall() == [
            (990,),
            (1_010,),
            (1_000,),
        ]
    assert next(info for info in lab.fleet.discover(2) if info.instance == "w1").pid == first.pid
