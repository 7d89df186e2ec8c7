"""What a cooperative participant tells the scheduler: its side of the control channel.

    def transfer(control: Control, number: int) -> str:
        control.enter("guard", lock.try_enter)       # a step: waits until nobody is in it any more
        ...                                          # whatever it asks of Postgres is a step, without being announced
        control.leave("guard", lock.leave)           # a step

The channel is a socket with one JSON object a line. The participant's thread sends; a thread of the channel's receives,
so that a lease can run out while its holder waits for Postgres.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any

RETRIES_MAX = 8
INSISTENT_RETRIES_MAX = 16
"""As many as that for one who goes on at once, again and again."""
RECEIVE_BYTES = 65_536
NOTE = "note"
"""The kind of what is announced and is no step."""


class Abandoned(BaseException):
    """The rest of this execution is not needed: undo what was begun."""


class TooManyRetries(Exception):
    """This participant was in conflict as often as is explored."""


class Shared:
    """What the participants of one process have in common during one execution, such as a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._execution = -1
        self._made: dict[str, Any] = {}

    def begin(self, execution: int) -> None:
        """Forget what belonged to an earlier execution."""
        with self._lock:
            if execution != self._execution:
                self._execution = execution
                self._made.clear()

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what this name stands for; whoever asks first makes it."""
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]


class Control:
    """The scheduler, as a participant's thread sees it. What waits raises Abandoned when the execution was given up."""

    def __init__(self, name: str, channel: socket.socket, shared: Shared) -> None:
        self.name = name
        self.url = ""
        self.jobs: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._channel = channel
        self._shared = shared
        self._sending = threading.Lock()
        self._go = threading.Semaphore(0)
        self._abandoned = False
        self._expire: Callable[[], None] | None = None
        self._retries = 0
        self._thread = threading.get_ident()
        threading.Thread(target=self._receive, name=f"control {name}", daemon=True).start()

    def share(self, name: str, make: Callable[[], Any]) -> Any:
        """Return an object that all participants of this process share in this execution; the first makes it."""
        return self._shared.get(name, make)

    def step(
        self, kind: str, text: str, *, locks: Iterable[str] = (), reads: Iterable[str] = (), shows: Iterable[str] = ()
    ) -> None:
        """Stand before a step that Postgres does not see, until it is chosen.

        Two announced steps depend on each other if both lock the same thing, or one shows what the other reads.
        """
        self._stand({"kind": kind, "text": text, "locks": [*locks], "reads": [*reads], "shows": [*shows]})

    def enter(
        self,
        resource: str,
        try_enter: Callable[[], bool],
        *,
        expire: Callable[[], None] | None = None,
        runs_out: Callable[[], bool] = lambda: True,
        text: str = "",
    ) -> None:
        """Enter a guard: a step. While it is taken, wait until a participant has left a guard, and try again.

        ``try_enter`` must not wait. With ``expire``, what is entered is a lease: the scheduler may call that, in
        another thread, at any later step, as the clock would; ``runs_out`` is asked, once it is entered, whether it
        is one at all.
        """
        while True:
            self._stand({"kind": "enter", "text": text or f"enters {resource}", "locks": [resource], "guard": resource})
            if try_enter():
                break
            self._tell(waits=resource)
        self._expire = expire if runs_out() else None
        self._tell(entered=resource, lease=self._expire is not None)

    def leave(self, resource: str, leave: Callable[[], None], *, text: str = "") -> None:
        """Leave a guard: a step. It is left also when the execution was given up."""
        try:
            self._stand({"kind": "leave", "text": text or f"leaves {resource}", "locks": [resource]})
        finally:
            self._expire = None
            leave()
            self._tell(left=resource)

    def rest(self, reason: str = "starts over") -> None:
        """Say that a conflict was met, and that all is begun again: nothing is chosen until another has moved.

        Raises TooManyRetries after as many of them as are explored.
        """
        if self._retries >= self._retries_max:
            self._tell(truncated=reason)
            raise TooManyRetries(f"{self.name} was in conflict more than {self._retries_max} times: {reason}")
        self._retries += 1
        self._tell(rests=reason)

    def note(self, text: str) -> None:
        """Add a line to the trace, at the step that was taken last; what was sent before is known then."""
        self._stand({"kind": NOTE, "text": text})

    # The channel.

    def serve(
        self, job: Mapping[str, Any], function: Callable[..., Any], printed: Callable[[], str] = lambda: ""
    ) -> None:
        """Run one job and tell how it ended, and what it printed."""
        self._thread = threading.get_ident()
        self._retries, self._retries_max = 0, job["retries_max"]
        self._abandoned, self._expire = False, None
        self._go = threading.Semaphore(0)
        self.url = job["url"]
        self._shared.begin(job["execution"])
        self._tell(thread=threading.get_native_id())
        first = (self,) if job["cooperative"] else ()
        try:
            outcome = {"result": function(*first, *job["arguments"])}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is how this participant ended
            outcome = describe(error)
        self._tell(done={**outcome, "output": printed()})

    def _stand(self, announced: Mapping[str, Any]) -> None:
        if self._abandoned:
            raise Abandoned
        self._tell(stand=announced)
        self._go.acquire()
        if self._abandoned:
            raise Abandoned

    def _tell(self, **message: Any) -> None:
        line = json.dumps(message, default=repr).encode() + b"\n"
        with self._sending:
            self._channel.sendall(line)

    def _receive(self) -> None:
        for message in read_lines(self._channel):
            if "run" in message:
                self.jobs.put(message["run"])
            elif "go" in message:
                self._go.release()
            elif "abandon" in message:
                self._abandoned = True
                self._go.release()
            elif "expire" in message:
                expire, self._expire = self._expire, None
                if expire is not None:
                    expire()
                self._tell(expired=True)
            elif "where" in message:
                self._tell(where=self._stack(message["where"]), number=message["where"])
        os._exit(0)  # the scheduler has gone

    def _stack(self, number: int) -> list[tuple[str, int, str]]:
        """Return where the participant's thread is: file, line and function, the innermost last."""
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - the only way to look at another thread
        return [(f.filename, f.lineno or 0, f.name) for f in traceback.extract_stack(frame)] if frame else []


def describe(error: BaseException) -> dict[str, Any]:
    """Return how a program failed: the error's type, text and SQLSTATE, and the line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "message": str(error)[:2000],
        "sqlstate": find_sqlstate(error),
        "abandoned": isinstance(error, Abandoned),
        "truncated": isinstance(error, TooManyRetries),
        "where": [(f.filename, f.lineno or 0, f.name) for f in frames],
    }


def find_sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error or of what it was raised from; drivers call it ``sqlstate`` or ``pgcode``."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        for name in ("sqlstate", "pgcode"):
            value = getattr(one, name, None)
            if isinstance(value, str) and len(value) == 5:
                return value
        todo += [getattr(one, "orig", None), one.__cause__, one.__context__]
    return None


def read_lines(channel: socket.socket) -> Iterator[dict[str, Any]]:
    """Return the messages of a channel until its other end is closed."""
    unread = b""
    while True:
        try:
            data = channel.recv(RECEIVE_BYTES)
        except OSError:
            return
        if not data:
            return
        unread += data
        *lines, unread = unread.split(b"\n")
        for line in lines:
            yield json.loads(line)
