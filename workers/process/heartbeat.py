"""A file that is touched for as long as a worker listens to the broker: for health checks that must cost nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from celery import bootsteps

from bank.settings import read_settings

SECONDS = 4.0

logger = logging.getLogger("bankrun")


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
    """Touch ``BANKRUN_HEARTBEAT_FILE`` from the consumer's own loop.

    So it stops where that loop hangs, and while the broker is away: the consumer is stopped then, and started again.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        self._file = read_settings().heartbeat_file
        self._timer: Any = None
        self.enabled = self._file is not None

    def start(self, consumer: Any) -> None:
        """Begin, once messages are listened for."""
        assert self._file is not None
        touch(self._file)
        self._timer = consumer.timer.call_repeatedly(SECONDS, touch, (self._file,))

    def stop(self, consumer: Any) -> None:
        """End: the connection was lost, or the worker stops."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def touch(file: Path) -> None:
    """Set the file's time to now. One that cannot be written is a matter for the log, not for the transfers."""
    try:
        file.touch()
    except OSError as error:
        logger.warning("no heartbeat: %s", error)
