"""The handle on the keeper: the process that owns whatever is started here, so that nothing outlives who started it.

this process ── a pipe, JSON lines ──▶ keeper ──▶ postgres, valkey, w1, w2 …
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bankrun.errors import BankrunError
from bankrun.servers import binaries
from bankrun.servers.binaries import Program
from bankrun.servers.state_dir import StateDir

REPLY_SECONDS = 10.0
SHUTDOWN_SECONDS = 3.5  # a little more than the keeper takes at most: bankrun.servers.keeper's bounds added up
ABANDON_SECONDS = 2.0
POLL_SECONDS = 0.005


class Keeper:
    """The handle on the keeper and the processes it owns. Threads may share it.

    Its methods raise BankrunError if the keeper says no, does not answer, or was killed; in the last case what it owned
    has ended too.
    """

    def __init__(self, state: StateDir, *, remove_at_end: Sequence[Path] = ()) -> None:
        self._log = state.logs / "keeper.log"
        self._requests = 0
        self._unread = b""
        self._lock = threading.Lock()
        self._servers: dict[str, dict[str, Any]] = {}
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C in the terminal reaches the lab, and the lab says what becomes of the rest.
            # It inherits the lock: the directory is in use until the last server has ended.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bankrun.servers.keeper", *map(str, remove_at_end)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=state.path,
                start_new_session=True,
                pass_fds=(state.lock,),
            )

    @property
    def pid(self) -> int:
        """The keeper's own pid."""
        return self._process.pid

    def spawn(self, name: str, argv: Sequence[str], *, env: Mapping[str, str | None], cwd: Path, log: Path) -> int:
        """Start a process and return its pid; its output is added to ``log``.

        ``env`` is laid over the lab's own environment; None takes a variable away. A name can be used again once its
        process has ended.
        """
        return self._spawn(name=name, argv=list(argv), env=dict(env), cwd=str(cwd.absolute()), log=str(log.absolute()))

    def spawn_server(self, program: Program, *, cwd: Path, log: Path, user: tuple[int, int] | None) -> int:
        """Start a server and return its pid; it will end after the workers. The log of its last run is kept as .old."""
        with suppress(FileNotFoundError):
            log.replace(log.with_name(log.name + ".old"))
        self._servers[program.name] = {
            "name": program.name,
            "argv": list(program.argv),
            "env": binaries.clean_environment(),
            "cwd": str(cwd),
            "log": str(log),
            "user": user,
            "end_signals": list(program.end_signals),
            "death_signal": program.death_signal,
            "server": True,
        }
        return self._spawn(**self._servers[program.name])

    def start_again(self, name: str, *options: str) -> int:
        """Start a server that has ended once more, with more ``options``, and return its pid. Its log goes on."""
        server = self._servers[name]
        return self._spawn(**{**server, "argv": [*server["argv"], *options]})

    def _spawn(self, **arguments: Any) -> int:
        return int(self._ask("spawn", **arguments)["pid"])

    def signal(self, name: str, signum: int) -> None:
        """Send a signal; nothing happens to a process that has ended."""
        self._ask("signal", name=name, signum=signum)

    def returncode(self, name: str) -> int | None:
        """Return how a process ended, minus the signal if one ended it; None while it runs."""
        children = self._ask("status")["children"]
        if name not in children:
            raise BankrunError(f"{name} was never started")
        code = children[name]["returncode"]
        return None if code is None else int(code)

    def process_id(self, name: str) -> int:
        """Return the pid of a process that was started here."""
        return int(self._ask("status")["children"][name]["pid"])

    def wait(self, name: str, seconds_max: float) -> int:
        """Wait until a process has ended, and return how. Raises BankrunError if it does not."""
        deadline = time.monotonic() + seconds_max
        while (code := self.returncode(name)) is None:
            if time.monotonic() > deadline:
                raise BankrunError(f"{name} is still there after {seconds_max:g} s")
            time.sleep(POLL_SECONDS)
        return code

    def stop(self, names: Sequence[str], *, grace_seconds: float) -> None:
        """End these with SIGTERM (a server: with its own signal), and with SIGKILL after ``grace_seconds``.

        Returns when they are gone.
        """
        self._ask("stop", names=list(names), grace_seconds=grace_seconds)
        deadline = time.monotonic() + grace_seconds + REPLY_SECONDS
        while True:
            children = self._ask("status")["children"]
            living = [name for name in names if children[name]["returncode"] is None]
            if not living:
                return
            if time.monotonic() > deadline:  # not even SIGKILL: it hangs in the kernel
                raise BankrunError(
                    f"{', '.join(living)}: still there, {grace_seconds + REPLY_SECONDS:g} s after SIGTERM"
                )
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End everything in order, and the keeper with it; at most about three seconds. May be called again.

        If this is interrupted, the keeper sees that the pipe has closed, and ends everything at once.
        """
        if self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with suppress(BankrunError):
                self._ask("shutdown")
                self._read_until_closed(SHUTDOWN_SECONDS)
        finally:
            self._process.stdin.close()
            try:
                self._process.wait(ABANDON_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            if self._process.returncode != 0:
                self._end_what_is_left()

    def _end_what_is_left(self) -> None:
        """End the processes of a keeper that was killed: all are in its process group. On Linux the kernel does too."""
        for signum, seconds in ((signal.SIGINT, 1.0), (signal.SIGKILL, 0.2)):
            deadline = time.monotonic() + seconds
            try:
                os.killpg(self._process.pid, signum)
                while time.monotonic() < deadline:
                    os.killpg(self._process.pid, 0)
                    time.sleep(POLL_SECONDS)
            except (ProcessLookupError, PermissionError):  # macOS denies a group of zombies
                return

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return the reply to it, passing over replies that an interrupted caller left unread."""
        assert self._process.stdin is not None
        with self._lock:
            self._requests += 1
            # It begins with a newline: an interrupted caller may have left half a line.
            line = b"\n" + json.dumps({"id": self._requests, "do": command, **arguments}).encode() + b"\n"
            try:
                while line:
                    line = line[os.write(self._process.stdin.fileno(), line) :]
            except (BrokenPipeError, ValueError) as error:  # ValueError: closed by us
                raise self._describe_end() from error
            deadline = time.monotonic() + REPLY_SECONDS
            while True:
                text, newline, rest = self._unread.partition(b"\n")
                if not newline:
                    if not self._read(deadline):
                        raise self._describe_end()
                    continue
                self._unread = rest
                reply: dict[str, Any] = json.loads(text)
                if reply["id"] == self._requests:
                    break
        if "error" in reply:
            raise BankrunError(reply["error"])
        return reply

    def _read(self, deadline: float) -> bool:
        """Read what has arrived; False at the end. Raises BankrunError if nothing arrives in time."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise BankrunError(f"the keeper (process {self.pid}) does not answer; see {self._log}")
        data = os.read(self._process.stdout.fileno(), 65536)
        self._unread += data
        return bool(data)

    def _read_until_closed(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass

    def _describe_end(self) -> BankrunError:
        return BankrunError(
            f"the keeper (process {self.pid}) has ended, and all it owned with it: {binaries.reason_in(self._log)}"
        )
