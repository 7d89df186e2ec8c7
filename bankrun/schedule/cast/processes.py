"""The processes that participants run in: forks of warmed ones, and programs."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from bankrun.schedule.cast.participant import Call, Command, Outcome, Participant
from bankrun.schedule.cast.warm import OUTPUT_BYTES_MAX
from bankrun.schedule.cast.warmed import END_SECONDS_MAX, START_SECONDS_MAX, Warmed
from bankrun.schedule.errors import NotStarted, Stuck
from bankrun.schedule.protocol.proxy import Proxy

PR_SET_PDEATHSIG = 1


class Crew:
    """All participants and their processes. Close it at the end.

    With ``warmed``, the processes of calls are forked from these, one from each; else each is started.
    """

    def __init__(self, proxy: Proxy, specs: Sequence[Call | Command], warmed: Sequence[Warmed] = ()) -> None:
        self._proxy = proxy
        self._roots = warmed
        self.members = {spec.name: Participant(spec, proxy.listen(spec.name)) for spec in specs}
        self._warmed: dict[str, Warmed] = {}
        self._commands: dict[str, subprocess.Popen[bytes]] = {}
        self._job = 0
        self._die_with_us = _death_signal()

    def warm_up(self, addresses: Mapping[str, Mapping[str, str]]) -> None:
        """Start the warmed processes, all at the same time; ``addresses`` are each participant's variables."""
        for member in self.members.values():
            spec = member.spec
            if isinstance(spec, Call):
                process = spec.process or spec.name
                if process not in self._warmed:
                    environment = {**os.environ, **addresses[member.name], **spec.environment}
                    start = self._roots[len(self._warmed)].branch if self._roots else Warmed.start
                    self._warmed[process] = warmed = start(environment)
                    warmed.import_for(spec)

    def await_warm(self, let_through: Callable[[], None]) -> None:
        """Wait until all are warm; what they ask Postgres meanwhile is let through. Raises NotStarted."""
        deadline = time.monotonic() + START_SECONDS_MAX
        for warmed in self._warmed.values():
            while not warmed.has_answered() and time.monotonic() < deadline:
                let_through()
            warmed.await_ready()

    def begin(self, execution: int) -> None:
        """Forget the last execution."""
        self._job = execution
        for member in self.members.values():
            member.reset()

    def start(
        self, name: str, urls: Mapping[str, str], addresses: Mapping[str, Mapping[str, str]], retries_max: int
    ) -> None:
        """Let a participant begin. One that says what it does is ended after more retries than these."""
        member = self.members[name]
        spec = member.spec
        member.started = True
        if isinstance(spec, Command):
            self._start_command(member, spec, addresses[name])
            return
        if member.channel is None:
            try:
                self._fork(spec)
            except BaseException:  # Ctrl-C above all: nobody was begun whose end could be waited for
                member.started = False
                raise
        member.tell(
            run={
                "function": spec.function,
                "arguments": list(spec.arguments),
                "cooperative": spec.kept,
                "url": urls[name],
                "execution": self._job,
                "retries_max": retries_max,
            }
        )

    def _fork(self, spec: Call) -> None:
        process = spec.process or spec.name
        together = [
            member
            for member in self.members.values()
            if isinstance(member.spec, Call) and (member.spec.process or member.name) == process
        ]
        captures = not spec.kept and len(together) == 1
        pid, channels = self._warmed[process].fork([member.name for member in together], captures=captures)
        for member in together:
            member.channel, member.pid = channels[member.name], pid
            self._watch(member, channels[member.name])

    def _watch(self, member: Participant, channel: socket.socket) -> None:
        def hear() -> None:
            member.hear()
            if member.channel is None:
                self._proxy.unwatch(channel)

        self._proxy.watch(channel, hear)

    def _start_command(self, member: Participant, spec: Command, address: Mapping[str, str]) -> None:
        printed, complained = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed at its end
        try:
            process = subprocess.Popen(
                list(spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=complained,
                env={**os.environ, **address, **spec.environment},
                cwd=spec.directory,
                start_new_session=True,
                preexec_fn=self._die_with_us,  # noqa: PLW1509 - one system call; our other threads only wait
            )
        except OSError as error:
            raise NotStarted(f"{spec.argv[0]} cannot be started: {error.strerror}") from error
        ours, theirs = socket.socketpair()
        member.pid = process.pid
        self._commands[member.name] = process

        def wait() -> None:
            process.wait()
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind
            theirs.close()

        def ended() -> None:
            self._proxy.unwatch(ours)
            ours.close()
            self._commands.pop(member.name, None)
            member.outcome = _exit_of(process, printed, complained)
            printed.close()
            complained.close()

        self._proxy.watch(ours, ended)
        threading.Thread(target=wait, name=f"waits for {member.name}", daemon=True).start()

    def end(self) -> list[int]:
        """End what still runs: give up what cooperates, kill the rest. Raises Stuck if something does not end.

        Returns the server's processes whose sessions were not idle.
        """
        unfinished: list[int] = []
        deadline = time.monotonic() + END_SECONDS_MAX
        for member in self.members.values():
            if not member.has_ended:
                if isinstance(member.spec, Call) and member.spec.kept:
                    member.tell(abandon=True)
                else:
                    self.kill(member)
        while running := [member for member in self.members.values() if not member.has_ended]:
            for member in running:
                unfinished += self._proxy.hang_up(member.name)
                if time.monotonic() > deadline:
                    self.kill(member)
            self._proxy.pump(0.01)
            if time.monotonic() > deadline + END_SECONDS_MAX:
                raise Stuck(f"{running[0].name} does not end, not even when it is killed")
        self._end_forked()
        return unfinished

    def _end_forked(self) -> None:
        for member in self.members.values():
            if isinstance(member.spec, Call) and not member.spec.kept and member.channel is not None:
                self._proxy.unwatch(member.channel)
                member.channel.close()
                member.channel = None

    def kill(self, member: Participant) -> None:
        """End a participant's process, and those that it started."""
        if member.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                if isinstance(member.spec, Command):
                    os.killpg(member.pid, signal.SIGKILL)
                else:
                    os.kill(member.pid, signal.SIGKILL)

    def close(self) -> None:
        """End every process."""
        for member in self.members.values():
            if member.channel is not None:
                self._proxy.unwatch(member.channel)
                member.channel.close()
                member.channel = None
        for process in list(self._commands.values()):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for warmed in self._warmed.values():
            warmed.close()


def _death_signal() -> Callable[[], None] | None:
    """Return what a new process calls, to be killed whenever we die; nothing elsewhere than on Linux."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return lambda: library.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _exit_of(process: subprocess.Popen[bytes], printed: IO[bytes], complained: IO[bytes]) -> Outcome:
    output, errors = (_first_of(file) for file in (printed, complained))
    if process.returncode == 0:
        return Outcome(output=output)
    return Outcome(error=f"exit {process.returncode}", message=errors, output=output)


def _first_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(OUTPUT_BYTES_MAX).decode("utf-8", "replace")
