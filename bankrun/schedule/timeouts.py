"""The time that a session may wait for a lock: no clock runs by itself here, so it is made short, and let run out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bankrun.schedule.protocol.conversation import Conversation, Phase
from bankrun.schedule.protocol.proxy import Link, Proxy

SHORT_MS = 300
"""Longer than it takes to see that somebody waits."""
CONSIDERED_MS_MAX = 600_000
"""Who is ready to wait for longer than this is taken to wait for ever."""
RUN_OUT_SECONDS_MAX = 3.0
_NAMES = ("lock_timeout", "statement_timeout")
_WAIT_NEVER = ("BEGIN", "START", "SET", "SHOW", "RESET", "SAVEPOINT", "RELEASE", "ROLLBACK", "DEALLOCATE", "DISCARD")


@dataclass(frozen=True, slots=True)
class Shortened:
    """A setting of a session that was made short, and what it was."""

    link: Link
    name: str
    told: str
    is_local: bool
    """Whether it is of a transaction only: what ends that takes it back."""


class Timeouts:
    """Asks a session how long it would wait, right before a step; makes that short, and long again afterwards."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.runs_out: Callable[[int], bool] = lambda number: False
        """Whether somebody's time is to run out in the wait in which a step ends, by the number of the step."""
        self._taken = 0
        self._short: dict[int, Shortened] = {}

    def begin(self) -> None:
        """Begin an execution."""
        self._taken = 0
        self._short.clear()

    def count_step(self) -> None:
        """Take note of a step."""
        self._taken += 1
        self.restore()

    def shorten(self, link: Link) -> None:
        """Make short how long this session waits for its next request, if time is to run out, and not for ever."""
        conversation = link.conversation
        self.restore()
        if not self.runs_out(self._taken + 1) or not conversation.is_between_requests or _waits_never(conversation):
            return
        told = {name: (self._proxy.ask(link, f"SHOW {name}") or ("0",))[0] or "0" for name in _NAMES}
        limits = {name: limit for name, one in told.items() if 0 < (limit := in_milliseconds(one)) <= CONSIDERED_MS_MAX}
        if limits:
            name = min(limits, key=lambda one: limits[one])
            is_local = conversation.status == "T"
            self._set(link, name, f"{min(SHORT_MS, limits[name])}", is_local=is_local)
            self._short[id(link)] = Shortened(link, name, told[name], is_local)

    def _set(self, link: Link, name: str, value: str, *, is_local: bool) -> None:
        self._proxy.ask(link, f"SET {'LOCAL ' if is_local else ''}{name} = '{value}'")

    def find(self, waiting: Iterable[Link]) -> Shortened | None:
        """Return where time can run out now, of connections of those who wait."""
        busy = (link for link in waiting if link.conversation.running is not None)
        return next((self._short[id(link)] for link in busy if id(link) in self._short), None)

    def run_out(self, short: Shortened) -> bool:
        """Wait until it has, and no longer. It has not where a function sets a time of its own."""
        conversation = short.link.conversation
        running, deadline = conversation.running, time.monotonic() + RUN_OUT_SECONDS_MAX
        while conversation.running is running and time.monotonic() < deadline:
            self._proxy.pump(0.005)
        return conversation.running is not running

    def restore(self) -> None:
        """Let sessions that wait no longer wait for as long as they wanted."""
        for key, short in list(self._short.items()):
            conversation = short.link.conversation
            if conversation.running is not None or conversation.phase is Phase.CLOSED:
                continue
            if short.is_local and conversation.status != "T":
                del self._short[key]
            elif conversation.is_between_requests:
                del self._short[key]
                self._set(short.link, short.name, short.told, is_local=short.is_local)


def _waits_never(conversation: Conversation) -> bool:
    """Whether the next request is one that takes no lock, as its first word says. It may ask how long we would wait."""
    request = conversation.pending
    return request is None or request.sql.lstrip().partition(" ")[0].rstrip(";").upper() in _WAIT_NEVER


def in_milliseconds(told: str) -> int:
    """Return what Postgres shows of a time, such as ``0``, ``250ms``, ``5s`` or ``2min`` (manual, section 19.1.1)."""
    number = told.rstrip("abcdefghijklmnopqrstuvwxyz")
    return (
        int(number) * {"": 1, "ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}[told[len(number) :]]
    )
