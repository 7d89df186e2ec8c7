"""Pauses or ends an instance on request: so that one can watch what a strategy makes of it.

A message to the broker alone is not enough: whoever asks shows the key that the instance was started with, and one that
was started without a key refuses. A pause ends by itself.
"""

from __future__ import annotations

import hmac
import logging
import os
import subprocess

from pydantic import SecretStr

from bank.errors import Rejected

PAUSE_SECONDS_MAX = 30.0
GRACE_SECONDS = 0.2

# It runs beside the instance: one that is stopped cannot wake itself. First the instance has time to answer.
PAUSE = 'sleep "$1"; kill -STOP "$0"; sleep "$2"; kill -CONT "$0"'
KILL = 'sleep "$1"; kill -KILL "$0"'

logger = logging.getLogger("bankrun")


class Interruptions:
    """The interruptions of one instance. Not thread-safe: only remote control calls it, from one thread."""

    def __init__(self, key: SecretStr | None) -> None:
        self._key = None if key is None else key.get_secret_value()
        self._running: list[subprocess.Popen[bytes]] = []

    def pause(self, key: object, seconds: object) -> None:
        """Stop this process, and let it go on after ``seconds``. Raises Rejected for a wrong key or time."""
        self._check(key)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= PAUSE_SECONDS_MAX:
            raise Rejected(f"a pause lasts more than 0 and at most {PAUSE_SECONDS_MAX:g} seconds")
        logger.warning("paused for %g s, as was asked for", seconds)
        self._begin(PAUSE, f"{seconds:.3f}")

    def kill(self, key: object) -> None:
        """End this process with SIGKILL. Raises Rejected for a wrong key."""
        self._check(key)
        logger.warning("killed, as was asked for")
        self._begin(KILL)

    def _check(self, key: object) -> None:
        if self._key is None:
            raise Rejected("this instance was started without a key (BANKRUN_CONTROL_KEY): nobody may interrupt it")
        if not isinstance(key, str) or not hmac.compare_digest(key.encode(), self._key.encode()):
            raise Rejected("to interrupt an instance takes the key that it was started with")

    def _begin(self, script: str, *arguments: str) -> None:
        self._running = [process for process in self._running if process.poll() is None]
        if self._running:
            raise Rejected("an interruption is under way")
        command = ["/bin/sh", "-c", script, str(os.getpid()), f"{GRACE_SECONDS}", *arguments]
        self._running.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
