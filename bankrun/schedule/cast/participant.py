"""Who takes part.

A ``Call`` is a Python function, in a process that was forked from a warmed one: kept for all executions, or forked for
each. Kept ones are cooperative: they get a ``Control`` and may announce steps, guards and leases. Several calls may
share a process, each in a thread of its own. A ``Command`` is any program, started for each execution.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bankrun.schedule.protocol.proxy import Address


@dataclass(frozen=True, slots=True)
class Call:
    """A Python function, ``module:name``, with arguments that JSON can carry.

    With ``kept``, its process serves all executions, and the function gets a Control first. Without, it is forked for
    each execution and called with its arguments only. Calls that name the same ``process`` are threads of one.
    ``prepare``, another ``module:name``, is called once in the process that they are forked from; what it and the
    imports ask Postgres is no step, and the database is as it was after it. It must leave no thread and no connection.
    """

    name: str
    function: str
    arguments: Sequence[Any] = ()
    kept: bool = True
    process: str = ""
    imports: Sequence[str] = ()
    path: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: str = ""
    prepare_arguments: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments, started for each execution in a process group of its own; no shell."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "."


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a participant ended: it returned ``result``, or failed with ``error`` (its type, or ``exit 1``)."""

    result: Any = None
    error: str = ""
    message: str = ""
    sqlstate: str | None = None
    output: str = ""
    where: tuple[tuple[str, int, str], ...] = ()
    truncated: bool = False
    """It was in conflict more often than is explored."""
    abandoned: bool = False
    """It was ended before its end."""


@dataclass(slots=True)
class Announced:
    """A step that a participant announced itself."""

    kind: str
    text: str
    locks: frozenset[str]
    reads: frozenset[str]
    shows: frozenset[str]
    guard: str = ""


class Participant:
    """One participant, while executions run: what it told, and whether it is there."""

    def __init__(self, spec: Call | Command, address: Address) -> None:
        self.spec = spec
        self.name = spec.name
        self.address = address
        self.channel: socket.socket | None = None
        self.pid: int | None = None
        self._unread = b""
        self.reset()

    def reset(self) -> None:
        """Forget the last execution."""
        self.started = False
        self.outcome: Outcome | None = None
        self.announced: Announced | None = None
        self.shut_out = False
        self.rests = False
        self.conflicts = 0
        self.guard = ""
        self.has_lease = False
        self.steps_in_guard = 0
        self.expired = False
        self.stack: list[tuple[str, int, str]] = []
        self.thread = 0
        self.notes: list[str] = []
        self.outside = False
        self.left = False

    @property
    def has_ended(self) -> bool:
        """Whether it has not been started, or has ended."""
        return not self.started or self.outcome is not None

    def tell(self, **message: Any) -> None:
        """Send it a message."""
        if self.channel is not None:
            with suppress(OSError):  # it died; that is seen when the channel is read
                self.channel.sendall(json.dumps(message).encode() + b"\n")

    def go(self) -> Announced:
        """Let it take the step that it announced."""
        announced, self.announced = self.announced, None
        assert announced is not None
        self.tell(go=True)
        return announced

    def hear(self) -> None:
        """Read what it told."""
        assert self.channel is not None
        try:
            data = self.channel.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self.channel.close()
            self.channel = None
            if not self.has_ended:
                self.outcome = Outcome(error="died", message="its process ended", abandoned=True)
            return
        self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: Mapping[str, Any]) -> None:
        """Take note of one message. Its first word says what it is."""
        word = next(iter(message))
        value = message[word]
        match word:
            case "stand":
                locks, reads, shows = (frozenset(value.get(name, ())) for name in ("locks", "reads", "shows"))
                self.announced = Announced(value["kind"], value["text"], locks, reads, shows, value.get("guard", ""))
            case "waits":
                self.shut_out = True
            case "entered":
                self.guard, self.has_lease, self.steps_in_guard = value, message["lease"], 0
            case "left":
                self.guard, self.has_lease, self.left = "", False, True
            case "rests":
                self.rests = True
                self.conflicts += 1
            case "expired" | "thread":
                setattr(self, word, value)
            case "where":
                self.stack = [(file, line, name) for file, line, name in value]
            case "done":
                self.outcome = _outcome(value)


def _outcome(done: Mapping[str, Any]) -> Outcome:
    return Outcome(
        done.get("result"),
        done.get("error", ""),
        done.get("message", ""),
        done.get("sqlstate"),
        done.get("output", ""),
        tuple((file, line, name) for file, line, name in done.get("where", ())),
        bool(done.get("truncated")),
        bool(done.get("abandoned")),
    )
