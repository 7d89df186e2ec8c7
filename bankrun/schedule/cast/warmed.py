"""The engine's side of a warmed process (see ``warm``): it has imported what is needed, and forks who is asked for."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from bankrun.schedule.cast.participant import Call
from bankrun.schedule.errors import NotStarted

START_SECONDS_MAX = 60.0
END_SECONDS_MAX = 10.0
_WARM = "from bankrun.schedule.cast.warm import main; main()"


class Warmed:
    """A warmed process: started as a program, or forked from another one. Close it at the end, and its forks before."""

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._channel = channel
        self._process = process
        self._channel.settimeout(START_SECONDS_MAX)
        self._unread = b""
        self._imports: Sequence[str] = ()
        self._is_ready = False

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> Self:
        """Start a process. It is to be told what to import."""
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _WARM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        return cls(ours, process)

    def branch(self, environment: Mapping[str, str]) -> Warmed:
        """Fork another one, with this environment, that has imported the same. Raises NotStarted."""
        self.await_ready()
        ours, theirs = socket.socketpair()
        self._send({"branch": dict(environment)}, [theirs])
        self._reply()
        return Warmed(ours)

    def import_all(
        self,
        modules: Sequence[str],
        path: Sequence[str] = (),
        prepare: str | None = None,
        arguments: Sequence[Any] = (),
    ) -> None:
        """Tell it what to import, from where, and what to call then; ``await_ready`` waits until that is done."""
        self._imports, self._is_ready = modules, False
        self._send({"import": list(modules), "path": list(path), "prepare": prepare, "arguments": list(arguments)})

    def import_for(self, spec: Call) -> None:
        """Tell it to import what a participant needs."""
        modules = [*spec.imports, spec.function.partition(":")[0]]
        self.import_all(modules, spec.path, spec.prepare, spec.prepare_arguments)

    def has_answered(self) -> bool:
        """Whether there is something to be read from it, or it has ended."""
        return bool(self._unread or select.select([self._channel], [], [], 0)[0])

    def await_ready(self) -> None:
        """Wait until it has imported everything. Raises NotStarted if that fails."""
        if self._is_ready:
            return
        reply = self._reply()
        if "failed" in reply:
            failed = reply["failed"]
            raise NotStarted(f"{', '.join(self._imports)} cannot be imported: {failed['error']}: {failed['message']}")
        self._is_ready = True

    def fork(self, names: Sequence[str], *, captures: bool) -> tuple[int, dict[str, socket.socket]]:
        """Fork a process with a thread for each of these participants; return its pid and their channels."""
        self.await_ready()
        pairs = {name: socket.socketpair() for name in names}
        self._send({"fork": list(names), "captures": captures}, [theirs for _, theirs in pairs.values()])
        return int(self._reply()["pid"]), {name: ours for name, (ours, _) in pairs.items()}

    def close(self) -> None:
        """End it and its children."""
        if self._process is None:
            with suppress(OSError):  # it may have gone before
                self._channel.settimeout(END_SECONDS_MAX)
                self._channel.shutdown(socket.SHUT_WR)
                while self._channel.recv(65_536):
                    pass
            self._channel.close()
            return
        self._channel.close()
        try:
            self._process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, message: Mapping[str, Any], handed_over: Sequence[socket.socket] = ()) -> None:
        line = json.dumps(message).encode() + b"\n"
        if not handed_over:
            self._channel.sendall(line)
            return
        sent = socket.send_fds(self._channel, [line], [one.fileno() for one in handed_over])
        self._channel.sendall(line[sent:])
        for one in handed_over:
            one.close()

    def _reply(self) -> dict[str, Any]:
        while b"\n" not in self._unread:
            try:
                data = self._channel.recv(65_536)
            except TimeoutError as error:
                names = ", ".join(self._imports)
                raise NotStarted(f"{names}: not imported after {START_SECONDS_MAX:g} s") from error
            if not data:
                raise NotStarted("a warmed process ended; its error is above")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply
