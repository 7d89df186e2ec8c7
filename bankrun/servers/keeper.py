"""The keeper: one small process that owns the servers and the workers, and takes them along when the lab dies.

The lab can be killed at any moment. So it starts nothing itself: it tells the keeper, over a pipe, what to start. When
the pipe closes the lab is gone, and the keeper ends everything it started, with or without a goodbye. On Linux the
kernel does the same for the keeper: each child is sent a signal if the keeper itself is killed.

    python -P -m bankrun.servers.keeper [DIRECTORY …]       the directories are removed when everything has ended

It reads one command a line from stdin, JSON, and writes one reply a line to stdout:

    {"id": 1, "do": "spawn", "name": "worker-1", "argv": ["…"], "env": {"ADDED": "…", "REMOVED": null},
     "cwd": "…", "log": "…"}                                    → {"id": 1, "pid": 4711}
    {"id": 2, "do": "signal", "name": "worker-1", "signum": 19} → {"id": 2}
    {"id": 3, "do": "stop", "names": ["worker-1"], "grace_seconds": 5}  → {"id": 3}          at once; see status
    {"id": 4, "do": "status"}       → {"id": 4, "children": {"worker-1": {"pid": 4711, "returncode": -15}}}
    {"id": 5, "do": "shutdown"}     → {"id": 5}, and stdout closes when everything has ended

``spawn`` also takes ``user`` ([uid, gid]), ``end_signals`` (asked for in this order before SIGKILL), ``death_signal``
(what the kernel sends if the keeper is killed) and ``server`` (ended after everything that is none). A command that
makes no sense gets ``{"id": …, "error": "…"}``.

It is single-threaded, so that a preexec_fn is safe and PR_SET_PDEATHSIG, which follows the thread that forked, holds
as long as the process; and it imports the standard library alone, so that it starts fast.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKERS_GRACE_SECONDS = 1.5  # an orderly shutdown; whoever wants more for a worker says `stop` first
SERVER_STEP_SECONDS = (1.0, 0.5)  # from a server's first end signal to its second, and from that to SIGKILL
PARENT_CHECK_SECONDS = 0.5

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass
class Child:
    """A process that the keeper started, and the signals still due to it."""

    process: subprocess.Popen[bytes]
    end_signals: tuple[int, ...]
    death_signal: int
    server: bool
    due: list[tuple[float, int]] = field(default_factory=list)  # (when, on the monotonic clock; signal)

    @property
    def alive(self) -> bool:
        """Whether it runs, as of the last look; looking reaps it."""
        return self.process.poll() is None

    def end(self, signals: Sequence[int], steps: Sequence[float]) -> None:
        """Send the first of ``signals`` now, each next one a step later, and SIGKILL after the last step."""
        when = time.monotonic()
        self.due = []
        for signum, step in zip(signals, steps, strict=True):
            self.due.append((when, signum))
            when += step
        self.due.append((when, signal.SIGKILL))

    def send_due_signals(self) -> None:
        """Send what is due by now. SIGCONT goes along: a stopped process would not notice anything but SIGKILL."""
        while self.due and self.due[0][0] <= time.monotonic():
            _, signum = self.due.pop(0)
            self.process.send_signal(signum)
            self.process.send_signal(signal.SIGCONT)


class Supervisor:
    """Carries out the commands and, in the end, ends every child."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self.shutting_down = False
        self._commands: dict[str, Callable[..., dict[str, Any]]] = {
            "spawn": self.spawn,
            "signal": self.signal,
            "stop": self.stop,
            "status": self.status,
            "shutdown": self.shutdown,
        }

    def answer(self, line: bytes) -> dict[str, Any]:
        """Carry out the command in ``line``; whatever is wrong with it is said in the reply."""
        reply: dict[str, Any] = {"id": None}
        try:
            command = json.loads(line)
            reply["id"] = command.pop("id", None)
            reply |= self._commands[command.pop("do")](**command)
        except OSError as error:
            reply["error"] = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except subprocess.SubprocessError as error:
            reply["error"] = str(error)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reply["error"] = f"no such command: {line[:200]!r}: {type(error).__name__}: {error}"
        return reply

    def spawn(
        self,
        *,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str | None],
        cwd: str,
        log: str,
        user: tuple[int, int] | None = None,
        end_signals: Sequence[int] = (signal.SIGTERM,),
        death_signal: int = signal.SIGKILL,
        server: bool = False,
    ) -> dict[str, Any]:
        """Start a process; its output is added to ``log``. A name may be used again once its process has ended."""
        if self.shutting_down:
            raise OSError(f"{name}: not started, everything is being shut down")
        if name in self.children and self.children[name].alive:
            raise OSError(f"{name} is already running")
        if not 1 <= len(end_signals) <= len(SERVER_STEP_SECONDS):
            raise ValueError(f"end_signals={end_signals}: one to {len(SERVER_STEP_SECONDS)}")
        overlaid = dict(os.environ) | dict(env)
        identity: dict[str, Any] = {}
        if user is not None:
            identity = {"user": user[0], "group": user[1], "extra_groups": []}
        with Path(log).open("ab") as output:
            process = subprocess.Popen(
                argv,
                env={variable: value for variable, value in overlaid.items() if value is not None},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent(death_signal),  # noqa: PLW1509 - there is one thread
                **identity,
            )
        self.children[name] = Child(process, tuple(end_signals), death_signal, server)
        return {"pid": process.pid}

    def signal(self, *, name: str, signum: int) -> dict[str, Any]:
        """Send one signal; nothing happens to a process that has ended."""
        self._child(name).process.send_signal(signum)
        return {}

    def stop(self, *, names: Sequence[str], grace_seconds: float) -> dict[str, Any]:
        """Begin to end these: their first end signal now, SIGKILL after ``grace_seconds``."""
        if not grace_seconds >= 0:
            raise ValueError(f"grace_seconds={grace_seconds}: at least 0")
        for child in [self._child(name) for name in names]:
            child.end(child.end_signals[:1], [grace_seconds])
        return {}

    def _child(self, name: str) -> Child:
        if name not in self.children:
            raise OSError(f"{name} was never started")
        return self.children[name]

    def status(self) -> dict[str, Any]:
        """Tell each process's pid and return code: null while it runs, minus the signal that ended it."""
        return {
            "children": {
                name: {"pid": child.process.pid, "returncode": child.process.poll()}
                for name, child in self.children.items()
            }
        }

    def shutdown(self) -> dict[str, Any]:
        """Begin to end everything: first what is no server, since workers give their work back; then the servers."""
        if not self.shutting_down:
            self.shutting_down = True
            for child in self.children.values():
                if not child.server:
                    child.end(child.end_signals[:1], [WORKERS_GRACE_SECONDS])
        return {}

    def abandon(self) -> None:
        """Begin to end everything at once: nobody is left who waits for it."""
        self.shutting_down = True
        for child in self.children.values():
            if not child.server:
                child.end([], [])
            elif not child.due:
                _end_server(child)

    def advance(self) -> bool:
        """Reap what has ended and send the signals that are due. False once everything has been shut down."""
        alive = [child for child in self.children.values() if child.alive]
        if self.shutting_down and all(child.server for child in alive):
            for child in alive:
                if not child.due:
                    _end_server(child)
        for child in alive:
            child.send_due_signals()
        return bool(alive) or not self.shutting_down

    def seconds_to_next_signal(self) -> float:
        """How long until `advance` has something to send; never more than between two checks of the parent."""
        now = time.monotonic()
        waits = [child.due[0][0] - now for child in self.children.values() if child.alive and child.due]
        return max(0.0, min([PARENT_CHECK_SECONDS, *waits]))


def _end_server(child: Child) -> None:
    child.end(child.end_signals, SERVER_STEP_SECONDS[-len(child.end_signals) :])


def _die_with_parent(death_signal: int) -> Callable[[], None] | None:
    """Return what a child does before exec so that the kernel signals it when the keeper dies; Linux only.

    It runs after the change of uid, which would clear the setting (prctl(2)).
    """
    if sys.platform != "linux":
        return None
    keeper = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        if prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != keeper:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


class Pipe:
    """The parent's end of the conversation: whole lines in, replies out, and whether the parent still lives."""

    def __init__(self) -> None:
        self.open = True
        self._parent = os.getppid()
        self._unfinished = b""
        os.set_blocking(0, False)

    def read_lines(self) -> list[bytes]:
        """Return the lines that have arrived; at the end of the input, note that the parent is gone."""
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return []
        self.open = bool(data)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        return [line for line in lines if line.strip()]

    def reply(self, reply: Mapping[str, Any]) -> None:
        """Write one reply. A parent that closed its end gets none."""
        try:
            os.write(1, json.dumps(reply).encode() + b"\n")
        except BrokenPipeError:
            self.open = False

    def parent_is_gone(self) -> bool:
        """Whether the parent died. A fork of the parent may still hold the pipe open, so its pid is looked at too."""
        return not self.open or os.getppid() != self._parent


def _wake_on_signals() -> socket.socket:
    """Return a socket that becomes readable on any signal the keeper acts on.

    They are caught, not ignored or blocked: children would inherit that.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)
    return reader


def main(directories_to_remove: Sequence[str]) -> None:
    """Serve the parent until it says goodbye, dies or sends SIGTERM; then end everything and return."""
    wake = _wake_on_signals()
    pipe = Pipe()
    supervisor = Supervisor()
    selector = selectors.DefaultSelector()
    selector.register(wake, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    abandoned = False
    try:
        while supervisor.advance():
            ready = {key.fd for key, _ in selector.select(supervisor.seconds_to_next_signal())}
            if wake.fileno() in ready and {signal.SIGTERM, signal.SIGINT} & set(wake.recv(4096)):
                supervisor.shutdown()
            if 0 in ready:
                for line in pipe.read_lines():
                    pipe.reply(supervisor.answer(line))
            if not abandoned and pipe.parent_is_gone():
                abandoned = True
                selector.unregister(0)
                supervisor.abandon()
    finally:  # reached early only by a bug of ours; nothing may outlive it
        for child in supervisor.children.values():
            child.process.send_signal(child.death_signal)
        for directory in directories_to_remove:
            shutil.rmtree(Path(directory), ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
