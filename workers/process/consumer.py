"""Celery's consumer, less often woken: what threads have done is acknowledged together.

Each acknowledgement wakes the consumer's loop, which takes the interpreter from the threads that work. While they have
enough to do, a few milliseconds make no difference to them.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import Any

from celery.worker.consumer import Consumer as CelerysConsumer

from bank.settings import read_settings

ENOUGH = 2
"""So many messages have to wait for a thread, or else the loop is woken at once to take more."""

logger = logging.getLogger("bankrun")


class Consumer(CelerysConsumer):  # type: ignore[misc]
    """Acknowledges after ``BANKRUN_ACKNOWLEDGE_MS`` at the latest, or as soon as threads may run out of work."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        settings = read_settings()
        self._wait_seconds = settings.acknowledge_ms / 1000 if settings.receive_many else 0.0
        self._done: deque[Any] = deque()
        self._has_timer = False
        if self.hub is not None:  # also what is done while the worker ends, when the loop runs no more
            self.hub.on_close.add(lambda _: self._acknowledge())

    def call_soon_ack(self, p: Any, *arguments: Any, **options: Any) -> Any:
        """Acknowledge or reject a message, from any thread."""
        if self.hub is None or not self._wait_seconds:
            return super().call_soon_ack(p, *arguments, **options)
        acknowledge = partial(p, *arguments, **options)
        self._done.append(acknowledge)
        if len(self._done) == 1 or not self._have_enough():
            self.hub.call_soon(self._look)
        return acknowledge

    def _have_enough(self) -> bool:
        waiting: int = self.pool.executor._work_queue.qsize()  # noqa: SLF001 - nothing else says how many wait
        return waiting >= ENOUGH

    def _look(self) -> None:
        if not self._have_enough():
            self._acknowledge()
        elif not self._has_timer:
            self._has_timer = True
            self.hub.call_later(self._wait_seconds, self._end_wait)

    def _end_wait(self) -> None:
        self._has_timer = False
        self._acknowledge()

    def _acknowledge(self) -> None:
        while self._done:
            try:
                self._done.popleft()()
            except Exception as error:  # noqa: BLE001 - Celery's loop would end of it as well, the others unacknowledged
                logger.warning("a message was not acknowledged, and comes back: %s", error)
