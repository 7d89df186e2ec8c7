"""When a worker's loop is woken to acknowledge what its threads have done."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer as CelerysConsumer

from workers.process.consumer import Consumer


class Loop:
    """An event loop that runs what is asked for when it is told to."""

    def __init__(self) -> None:
        self.on_close: set[Callable[[Any], None]] = set()
        self.woken = 0
        self._soon: list[Callable[[], None]] = []
        self._later: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.woken += 1
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self._later.append(callback)

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()

    def let_time_pass(self) -> None:
        later, self._later = self._later, []
        for callback in later:
            callback()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def consumer(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Consumer:
    """A consumer whose threads have two messages waiting."""

    def begin(self: Any) -> None:
        self.hub, self.pool = loop, SimpleNamespace(executor=SimpleNamespace(_work_queue=SimpleQueue()))

    monkeypatch.setattr(CelerysConsumer, "__init__", begin)
    monkeypatch.delenv("BANKRUN_ACKNOWLEDGE_MS", raising=False)
    made = Consumer()
    for number in range(2):
        made.pool.executor._work_queue.put(number)
    return made


def test_while_threads_have_enough_to_do_what_is_done_is_acknowledged_together_and_soon(
    consumer: Consumer, loop: Loop
) -> None:
    done: list[int] = []
    for number in range(3):
        consumer.call_soon_ack(done.append, number)
        loop.turn()
    assert (done, loop.woken) == ([], 1)
    loop.let_time_pass()
    assert done == [0, 1, 2]
    consumer.call_soon_ack(done.append, 3)
    loop.turn()
    loop.let_time_pass()
    assert done == [0, 1, 2, 3]


def test_once_threads_may_run_out_of_work_it_is_acknowledged_at_once(consumer: Consumer, loop: Loop) -> None:
    done: list[int] = []
    consumer.call_soon_ack(done.append, 0)
    loop.turn()
    consumer.pool.executor._work_queue.get()
    consumer.call_soon_ack(done.append, 1)
    loop.turn()
    assert done == [0, 1]


def test_what_is_done_when_the_worker_ends_is_acknowledged_before_its_loop_is_closed(
    consumer: Consumer, loop: Loop
) -> None:
    done: list[int] = []
    consumer.call_soon_ack(done.append, 0)
    for close in loop.on_close:
        close(loop)
    assert done == [0]


def test_one_that_cannot_be_acknowledged_does_not_keep_the_others(
    consumer: Consumer, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []
    consumer.call_soon_ack(int, "none")
    consumer.call_soon_ack(done.append, 1)
    loop.turn()
    loop.let_time_pass()
    assert done == [1]
    assert "a message was not acknowledged, and comes back: invalid literal" in caplog.text


@pytest.mark.parametrize("setting", ["BANKRUN_ACKNOWLEDGE_MS=0", "BANKRUN_RECEIVE_MANY=false"])
def test_it_can_be_told_to_acknowledge_each_at_once(
    setting: str, loop: Loop, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*setting.split("="))
    at_once: list[Any] = []
    monkeypatch.setattr(CelerysConsumer, "call_soon_ack", lambda self, p, *arguments: at_once.append(p))
    Consumer().call_soon_ack(print, 0)
    assert at_once == [print]
