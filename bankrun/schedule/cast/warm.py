"""A warmed process: it has imported what the participants need, and forks them when it is told to.

    engine ── a socket: {"import": …}, {"fork": …} and the children's channels ──▶ warm ── fork ──▶ participants
                        {"branch": …} and its socket                               warm ── fork ──▶ warm

It runs ``main`` with the socket's descriptor as its argument, and is single-threaded, so that forking is safe. When
the engine has gone, a child's channel ends, and the child with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from bankrun.schedule.cast.control import Control, Shared, describe

FDS_MAX = 16
OUTPUT_BYTES_MAX = 65_536


def find(function: str) -> Callable[..., Any]:
    """Return ``module:name``."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = importlib.import_module(module)  # type: ignore[assignment]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def main() -> None:
    """Serve the engine on the socket whose descriptor is the argument."""
    _serve_engine(socket.socket(fileno=int(sys.argv[1])))


def _serve_engine(channel: socket.socket) -> None:
    """Do what the engine says until its socket is closed; then end every child."""
    children: set[int] = set()
    unread = b""
    fds: list[int] = []
    try:
        with suppress(ConnectionError):  # the engine has gone before it heard the answer
            while True:
                data, received, _, _ = socket.recv_fds(channel, 65_536, FDS_MAX)
                if not data:
                    return
                fds += received
                unread += data
                *lines, unread = unread.split(b"\n")
                for line in lines:
                    reply = _obey(json.loads(line), fds, children, channel)
                    channel.sendall(json.dumps(reply).encode() + b"\n")
                _reap(children)
    finally:
        for pid in children:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _obey(message: Mapping[str, Any], fds: list[int], children: set[int], channel: socket.socket) -> dict[str, Any]:
    if "import" in message:
        sys.path[:0] = message["path"]
        try:
            for module in message["import"]:
                importlib.import_module(module)
            if message["prepare"]:
                find(message["prepare"])(*message["arguments"])
        except BaseException as error:  # noqa: BLE001 - user code: whatever it raises is told, not died of
            return {"failed": describe(error)}
        gc.collect()
        gc.freeze()
        return {"ready": True}
    if "branch" in message:
        return {"pid": _branch(message["branch"], fds.pop(0), children, channel)}
    names: Sequence[str] = message["fork"]
    channels, fds[:] = fds[: len(names)], fds[len(names) :]
    pid = os.fork()
    if pid == 0:
        channel.close()
        _become_participants(dict(zip(names, channels, strict=True)), captures=message["captures"])
    for fd in channels:
        os.close(fd)
    children.add(pid)
    return {"pid": pid}


def _branch(environment: Mapping[str, str], fd: int, children: set[int], channel: socket.socket) -> int:
    """Fork a process that serves the engine as this one does, in another environment; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            channel.close()
            os.environ.clear()
            os.environ.update(environment)
            _serve_engine(socket.socket(fileno=fd))
        finally:
            os._exit(0)
    os.close(fd)
    children.add(pid)
    return pid


def _reap(children: set[int]) -> None:
    for pid in list(children):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        children.discard(pid)


def _become_participants(channels: Mapping[str, int], *, captures: bool) -> None:
    """Serve jobs until the engine has gone: a thread for each participant, none but this one if there is only one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the engine, and the engine ends us
    shared = Shared()
    controls = [Control(name, socket.socket(fileno=fd), shared) for name, fd in channels.items()]
    for control in controls[1:]:
        threading.Thread(target=_serve, args=(control, captures), name=control.name, daemon=True).start()
    _serve(controls[0], captures)


def _serve(control: Control, captures: bool) -> None:  # noqa: FBT001
    while True:
        job = control.jobs.get()
        try:
            function = find(job["function"])
        except (ImportError, AttributeError) as error:
            missing = error

            def function(*_: object, missing: Exception = missing) -> None:
                raise missing

        if captures:
            _serve_capturing(control, job, function)
        else:
            control.serve(job, function)


def _serve_capturing(control: Control, job: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Run one job with standard output in a file."""
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        control.serve(job, function, lambda: _printed(file.fileno()))


def _printed(fd: int) -> str:
    sys.stdout.flush()
    return os.pread(fd, OUTPUT_BYTES_MAX, 0).decode("utf-8", "replace")
