"""What is delivered again, and what is published again: counted, forgiven, and in the end decided."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from celery import Celery

from bank.audit import audit
from bank.errors import OutcomeUnknown, Transient, Unavailable
from bank.orders import Order
from bank.postgres.database import Database
from bank.postgres.schema import open_bank
from bank.postgres.watchdog import Watchdog
from bank.settings import Settings
from bank.strategies import STRATEGIES, Attempt, Strategy
from workers.app import TASK, create_app
from workers.broker.messages import Job, message
from workers.process import reconciler as reconcilers
from workers.process.instance import Instance
from workers.process.reconciler import Reconciler
from workers.submission import Submission, abandon, accept


class Faulty(Strategy):
    """Raises whatever the test puts into ``error``."""

    name = "faulty"
    summary = "raises"
    error: Exception | None = None

    def move(self, *arguments: object) -> None:
        if self.error is not None:
            raise self.error
        super().move(*arguments)  # type: ignore[arg-type]


@pytest.fixture
def instance(bank: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """An instance that knows a strategy which raises, and has little patience."""
    monkeypatch.setitem(STRATEGIES, "faulty", Faulty)
    Faulty.error = None
    quick = settings.model_copy(update={"patience_ms": 100, "redeliveries_max": 2, "threads": 4})
    opened = Instance(quick)
    yield opened
    opened.close()


def accepted(database: Database, strategy: str, count: int = 1) -> list[Order]:
    """Accept transfers from account 1 to account 2."""
    orders = [Order(uuid4(), 1, 2, 10) for _ in range(count)]
    accept(database, orders, Submission("test", strategy, "test"))
    return orders


def job(orders: list[Order], strategy: str, *, again: bool = True) -> Job:
    """Return the message as a worker gets it."""
    return Job.parse(message(orders, run="test", strategy=strategy, again=again))


def row(database: Database, order: Order) -> tuple[str, int, str | None]:
    """Return a transfer's status, its repeated deliveries and its reason."""
    with database.transaction() as transaction:
        found = transaction.execute(
            "SELECT status, redeliveries, reason FROM transfers WHERE id = %(id)s", {"id": order.id}
        ).fetchone()
    assert found is not None
    return found  # type: ignore[return-value]


def test_a_strategys_name_is_accepted_as_it_is_whatever_copy_makes_of_it(bank: Database) -> None:
    name = "a\\tb\\\\n\tc\nd\re\\."
    accepted(bank, name)
    with bank.transaction() as transaction:
        assert transaction.execute("SELECT strategy FROM transfers").fetchall() == [(name,)]


def test_a_fault_in_a_strategy_fails_its_transfer_with_the_reason_and_nobody_elses(
    instance: Instance, bank: Database
) -> None:
    bad, good = accepted(bank, "faulty")[0], accepted(bank, "row-lock")[0]
    Faulty.error = ZeroDivisionError("by zero")
    for again in (False, True, True):
        with pytest.raises(ZeroDivisionError):
            instance.apply(job([bad], "faulty", again=again))
        assert row(bank, bad)[0] == "pending"
    instance.apply(job([bad], "faulty"))
    status, _, reason = row(bank, bad)
    assert status == "failed"
    assert reason == "delivered again 2 times, and never came to an end: ZeroDivisionError: by zero"
    instance.apply(job([good], "row-lock", again=False))
    assert row(bank, good)[0] == "applied"
    assert audit(bank).passed


def test_an_order_behind_a_faulty_one_in_the_same_message_is_applied_all_the_same(
    instance: Instance, bank: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = accepted(bank, "faulty", 2)
    moved = Faulty.move

    def move(self: Faulty, transaction: object, attempt: Attempt) -> None:
        if attempt.order.id == first.id:
            raise ZeroDivisionError
        moved(self, transaction, attempt)

    monkeypatch.setattr(Faulty, "move", move)
    with pytest.raises(ZeroDivisionError):
        instance.apply(job([first, second], "faulty", again=False))
    assert row(bank, first)[0] == "pending"
    assert row(bank, second)[0] == "applied"
    ((fault, count),) = (instance.read_meter("test") or {})["faults"].items()
    assert fault.startswith("faulty raises ZeroDivisionError (")
    assert count == 1


@pytest.mark.parametrize("error", [OutcomeUnknown(), Unavailable()])
def test_an_outage_counts_for_nothing_however_often_it_is_met(
    instance: Instance, bank: Database, error: Transient
) -> None:
    (order,) = accepted(bank, "faulty")
    Faulty.error = error
    for _ in range(4):
        with pytest.raises(type(error)):
            instance.apply(job([order], "faulty"))
    assert row(bank, order)[:2] == ("pending", 0)
    Faulty.error = None
    instance.apply(job([order], "faulty"))
    assert row(bank, order)[0] == "applied"


def test_a_delivery_is_counted_before_it_begins_since_a_dead_instance_counts_nothing(
    instance: Instance, bank: Database
) -> None:
    (order,) = accepted(bank, "row-lock")
    for count in (1, 2):
        with pytest.raises(SystemExit), instance.redeliveries.count(order.id):
            raise SystemExit  # as when the process ends: nothing is forgiven
        assert row(bank, order)[:2] == ("pending", count)
    instance.apply(job([order], "row-lock"))
    assert row(bank, order)[0] == "failed"
    assert "its instance ended each time" in (row(bank, order)[2] or "")
    assert audit(bank).passed


def test_what_the_broker_calls_redelivered_is_counted_as_well(instance: Instance, bank: Database) -> None:
    (order,) = accepted(bank, "row-lock")
    instance.apply(job([order], "row-lock", again=False), redelivered=True)
    assert row(bank, order)[:2] == ("applied", 1)


def test_a_forgiveness_that_an_outage_prevents_is_made_up_for(
    instance: Instance, bank: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (order,) = accepted(bank, "row-lock")

    def outage() -> None:
        with monkeypatch.context() as patched, instance.redeliveries.count(order.id):
            patched.setattr(instance.redeliveries, "_execute", raises(OutcomeUnknown()))
            raise Unavailable

    with pytest.raises(Unavailable):
        outage()
    assert row(bank, order)[1] == 1
    with instance.redeliveries.count(order.id):
        assert row(bank, order)[1] == 1


def raises(error: Exception) -> object:
    """Return a function that raises."""

    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_a_count_whose_commit_has_no_answer_is_made_up_for(instance: Instance, bank: Database) -> None:
    order, *_ = orders = accepted(bank, "row-lock")
    begun = instance.redeliveries._begin

    def begin_without_an_answer(transfer: UUID) -> None:
        begun(transfer)
        raise OutcomeUnknown("no answer")

    for _ in range(5):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(instance.redeliveries, "_begin", begin_without_an_answer)
            with pytest.raises(OutcomeUnknown):
                instance.apply(job(orders, "row-lock"))
        assert row(bank, order)[:2] == ("pending", 1)
    instance.apply(job(orders, "row-lock"))
    assert row(bank, order)[0] == "applied"


def test_repeated_deliveries_take_turns_so_that_the_innocent_do_not_die_with_the_guilty(
    instance: Instance, bank: Database
) -> None:
    guilty, innocent = accepted(bank, "row-lock", 2)
    with instance.redeliveries.count(guilty.id):
        waiting = threading.Thread(target=instance.apply, args=(job([innocent], "row-lock"),))
        waiting.start()
        time.sleep(0.02)
        assert row(bank, innocent)[1] == 0  # not counted before its turn
    waiting.join()
    assert row(bank, innocent)[:2] == ("applied", 1)


def test_a_strategy_that_does_not_exist_fails_the_transfers_accepted_for_it_and_no_others(
    instance: Instance, bank: Database
) -> None:
    unknown, known = accepted(bank, "no-such-lock")[0], accepted(bank, "row-lock")[0]
    for order in (unknown, known):
        with pytest.raises(Exception, match="there is no strategy"):
            instance.apply(job([order], "no-such-lock", again=False))
    assert row(bank, unknown)[0] == "failed"
    assert "there is no strategy 'no-such-lock'" in (row(bank, unknown)[2] or "")
    assert row(bank, known)[0] == "pending"


@pytest.mark.parametrize(
    ("sqlstate", "named"),
    [("53100", Unavailable), ("53300", Unavailable), ("25006", Unavailable), ("42501", Unavailable)],
)
def test_what_the_server_cannot_do_now_is_transient(bank: Database, sqlstate: str, named: type[Exception]) -> None:
    with pytest.raises(named, match="now"), bank.transaction() as transaction:
        transaction.execute(f"DO $$ BEGIN RAISE EXCEPTION 'now' USING ERRCODE = '{sqlstate}'; END $$")  # type: ignore[arg-type]


# --- the reconciler ---


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """An application that publishes to the test's broker."""
    made = create_app(settings)
    yield made
    made.close()


@pytest.fixture
def reconciler(bank: Database, app: Celery) -> Reconciler:
    """A reconciler that is due at once."""
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge("test")
    return Reconciler(bank, app, wait_seconds=0)


def published(app: Celery) -> int:
    """Return how many messages wait."""
    with app.connection_for_write() as connection:
        return int(connection.default_channel.client.llen("test"))


def test_what_was_accepted_and_never_published_is_published(
    reconciler: Reconciler, bank: Database, app: Celery
) -> None:
    accepted(bank, "row-lock", 3)
    assert reconciler.look() == 0  # it may be on its way
    assert reconciler.look() == 3
    assert published(app) == 3


def test_nothing_is_published_again_while_messages_wait(reconciler: Reconciler, bank: Database, app: Celery) -> None:
    accepted(bank, "row-lock", 3)
    app.send_task(TASK, args=({},), queue="test")
    assert [reconciler.look() for _ in range(4)] == [0, 0, 0, 0]


def test_nothing_is_published_again_while_transfers_are_being_decided(
    reconciler: Reconciler, bank: Database, instance: Instance
) -> None:
    orders = accepted(bank, "row-lock", 4)
    for order in orders:
        assert reconciler.look() == 0
        instance.apply(job([order], "row-lock", again=False))
    assert reconciler.look() == 0


def test_a_run_that_has_its_outcomes_is_never_looked_at_again(
    reconciler: Reconciler, bank: Database, instance: Instance
) -> None:
    instance.apply(job(accepted(bank, "row-lock"), "row-lock", again=False))
    reconciler.look()
    with bank.transaction() as transaction:
        assert transaction.execute("SELECT closed FROM runs").fetchall() == [(True,)]


def test_a_run_that_gets_more_while_it_is_looked_at_stays_open(
    reconciler: Reconciler, bank: Database, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.apply(job(accepted(bank, "row-lock"), "row-lock", again=False))
    noted = reconciler._note
    with ThreadPoolExecutor(1) as pool:
        more: list[Future[list[Order]]] = []

        def note_late(*given: Any, **values: Any) -> None:
            more.append(pool.submit(accepted, bank, "row-lock"))
            time.sleep(0.2)  # enough to be accepted, unless that waits for this look
            noted(*given, **values)

        monkeypatch.setattr(reconciler, "_note", note_late)
        reconciler.look()
        more[0].result()
    with bank.transaction() as transaction:
        assert transaction.execute("SELECT closed FROM runs").fetchall() == [(False,)]


def test_a_run_that_was_given_up_is_not_published_again(reconciler: Reconciler, bank: Database) -> None:
    accepted(bank, "row-lock")
    abandon(bank, "test")
    assert [reconciler.look() for _ in range(3)] == [0, 0, 0]


def test_each_time_in_vain_doubles_the_wait_and_calls_the_messages_repeated(bank: Database, app: Celery) -> None:
    accepted(bank, "row-lock")
    reconciler = Reconciler(bank, app, wait_seconds=0.05)
    said: list[bool] = []
    waits: list[float] = []
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        for _ in range(4):
            with bank.transaction() as transaction:
                transaction.execute("UPDATE runs SET look_at = clock_timestamp()")
            before = time.time()
            reconciler.look()
            while (raw := client.lpop("test")) is not None:
                said.append(says_again(raw))
            with bank.transaction() as transaction:
                found = transaction.execute("SELECT extract(epoch FROM look_at) FROM runs").fetchone()
            assert found is not None
            waits.append(float(found[0]) - before)
    assert said == [False, True, True]
    assert waits[1] < waits[2] < waits[3]


def says_again(raw: bytes) -> bool:
    """Return whether a message in the broker says that its orders were delivered before."""
    (body,), _, _ = json.loads(base64.b64decode(json.loads(raw)["body"]))
    return bool(body["again"])


def test_what_is_published_again_is_noted_even_if_publishing_takes_longer_than_a_transaction_may(
    bank: Database, app: Celery, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = settings.model_copy(update={"attempt_timeout_ms": 200})
    database = Database.for_instance(bank.url, instance="slow", threads=1, settings=hurried)
    accepted(bank, "row-lock", 2)
    sent = reconcilers.publish

    def slowly(*given: object, **named: object) -> None:
        time.sleep(0.4)
        sent(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(reconcilers, "publish", slowly)
    reconciler = Reconciler(database, app, wait_seconds=0)
    reconciler.look()
    assert reconciler.look() == 2
    database.close()
    with bank.transaction() as transaction:
        assert transaction.execute("SELECT republished, idle_looks FROM runs").fetchall() == [(2, 1)]


def test_of_two_reconcilers_one_looks(reconciler: Reconciler, bank: Database, app: Celery) -> None:
    accepted(bank, "row-lock", 2)
    reconciler.look()
    with bank.transaction() as transaction:
        transaction.execute("SELECT pg_advisory_xact_lock(%(key)s)", {"key": 0x7265636F})
        assert reconciler.look() == 0
    assert reconciler.look() == 2


def test_two_that_look_at_once_publish_twice_and_the_money_moves_once(
    reconciler: Reconciler, bank: Database, app: Celery, instance: Instance
) -> None:
    open_bank(bank, accounts=2, opening=100)
    orders = accepted(bank, "row-lock", 2)
    reconciler.look()
    looked: list[int] = []
    threads = [threading.Thread(target=lambda: looked.append(reconciler.look(alone=False))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(looked) >= 2
    for _ in range(published(app)):
        instance.apply(job(orders, "row-lock", again=False))
    found = audit(bank)
    assert (found.passed, found.transfers["applied"]) == (True, 2)


# --- the watchdog ---


def test_a_network_that_says_nothing_is_cut_by_the_client(bank: Database, settings: Settings) -> None:
    hurried = settings.model_copy(update={"attempt_timeout_ms": 200})
    database = Database.for_instance(bank.url, instance="deaf", threads=1, settings=hurried)
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown), database.transaction() as transaction:
        transaction.execute("SELECT pg_sleep(30)")  # the server would answer long after
    assert time.monotonic() - started < 2
    with database.transaction() as transaction:  # and the next one gets a new connection
        assert transaction.execute("SELECT 1").fetchone() == (1,)
    database.close()


def test_a_connection_that_was_released_is_left_alone(bank: Database) -> None:
    watchdog = Watchdog(0.05)
    with psycopg.connect(bank.url.replace("+psycopg", "")) as connection:
        watchdog.release(watchdog.watch(connection))
        time.sleep(0.15)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        watchdog.watch(connection)
        time.sleep(0.15)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    watchdog.close()


def test_a_watchdog_survives_a_connection_that_its_owner_closed(bank: Database) -> None:
    watchdog = Watchdog(0.05)
    connection = psycopg.connect(bank.url.replace("+psycopg", ""))
    watchdog.watch(connection)
    connection.close()
    time.sleep(0.15)
    ours, theirs = socket.socketpair()
    with ours, theirs:  # whoever got the number of the closed descriptor
        ours.send(b"1")
        assert theirs.recv(1) == b"1"
    watchdog.close()
