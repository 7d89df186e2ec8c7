"""Where Postgres and Redis are: embedded, in which case they are started here, or given by URL.

    lab (this file) ── a pipe, JSON lines ──▶ keeper ──▶ postgres, valkey, worker-1, worker-2 …

The lab prepares what has to run, and the keeper (`bankrun.servers.keeper`) runs it, so that nothing outlives a lab
that is killed.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bank.errors import BankError, CannotStart
from bank.postgres.roles import WORKER_ROLE, set_up_server
from bankrun.servers import binaries as servers
from bankrun.servers.binaries import Binaries, Program
from bankrun.servers.state_dir import StateDir, default_state_dir, own

__all__ = ["Endpoints", "Keeper", "default_state_dir", "embedded_stack", "keeper_only"]

REPLY_SECONDS = 10.0
SHUTDOWN_SECONDS = 3.5  # a little more than the keeper takes at most: bankrun.servers.keeper's bounds added up
ABANDON_SECONDS = 2.0
READY_SECONDS = 60.0  # Postgres may have to recover first
INITDB_SECONDS = 120.0
POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the servers are: a SQLAlchemy URL and a Kombu URL.

    ``worker_database_url`` is where the workers that are started here log in: on given servers, as the lab does.
    """

    database_url: str
    worker_database_url: str
    broker_url: str
    embedded: bool


class Keeper:
    """The lab's handle on the keeper and the processes it owns. Threads may share it.

    Its methods raise BankError if the keeper says no, does not answer, or was killed; in the last case what it owned
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
            "env": servers.clean_environment(),
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
            raise BankError(f"{name} was never started")
        code = children[name]["returncode"]
        return None if code is None else int(code)

    def process_id(self, name: str) -> int:
        """Return the pid of a process that was started here."""
        return int(self._ask("status")["children"][name]["pid"])

    def wait(self, name: str, seconds_max: float) -> int:
        """Wait until a process has ended, and return how. Raises BankError if it does not."""
        deadline = time.monotonic() + seconds_max
        while (code := self.returncode(name)) is None:
            if time.monotonic() > deadline:
                raise BankError(f"{name} is still there after {seconds_max:g} s")
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
                raise BankError(f"{', '.join(living)}: still there, {grace_seconds + REPLY_SECONDS:g} s after SIGTERM")
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
            with suppress(BankError):
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
                raise self._ended() from error
            deadline = time.monotonic() + REPLY_SECONDS
            while True:
                text, newline, rest = self._unread.partition(b"\n")
                if not newline:
                    if not self._read(deadline):
                        raise self._ended()
                    continue
                self._unread = rest
                reply: dict[str, Any] = json.loads(text)
                if reply["id"] == self._requests:
                    break
        if "error" in reply:
            raise BankError(reply["error"])
        return reply

    def _read(self, deadline: float) -> bool:
        """Read what has arrived; False at the end. Raises BankError if nothing arrives in time."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise BankError(f"the keeper (process {self.pid}) does not answer; see {self._log}")
        data = os.read(self._process.stdout.fileno(), 65536)
        self._unread += data
        return bool(data)

    def _read_until_closed(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass

    def _ended(self) -> BankError:
        return BankError(
            f"the keeper (process {self.pid}) has ended, and all it owned with it: {servers.reason_in(self._log)}"
        )


@contextmanager
def keeper_only(state_dir: Path) -> Iterator[Keeper]:
    """Start a keeper for worker processes alone, where the servers are given; end both after the block.

    Raises CannotStart if the state directory will not do.
    """
    _refuse_windows()
    with own(state_dir, for_servers=False) as state:
        keeper = Keeper(state)
        try:
            yield keeper
        finally:
            keeper.close()


@contextmanager
def embedded_stack(
    state_dir: Path, *, max_connections: int = 200, postgres_settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Keeper, Endpoints]]:
    """Start a Postgres and a Valkey of our own for the block; end them, and whatever else the keeper owns, after it.

    What is in Postgres stays in the state directory for the next time; what is in Valkey is gone. ``postgres_settings``
    go before our own. Raises CannotStart in one sentence, with nothing left running, if a server does not start.
    """
    _refuse_windows()
    binaries = servers.find_binaries()
    with own(state_dir, for_servers=True) as state, servers.without_libpq_defaults():
        settings = {"max_connections": str(max_connections), **(postgres_settings or {})}
        with _explained("the embedded servers cannot start"):
            binaries, sockets = _prepare(state, binaries)
        try:
            keeper = Keeper(state, remove_at_end=[sockets])
            try:
                with _explained("the embedded servers did not start"):
                    endpoints = _start(keeper, state, binaries, sockets, settings)
                yield keeper, endpoints
            finally:
                keeper.close()
        finally:
            shutil.rmtree(sockets, ignore_errors=True)  # the keeper did, unless it was killed


def _refuse_windows() -> None:
    if os.name != "posix":
        raise CannotStart("worker processes need Linux or macOS: on Windows use Docker (docker compose up) or WSL")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except CannotStart:
        raise
    except BankError as error:
        raise CannotStart(f"{what}: {error}") from error
    except shutil.Error as error:  # copytree's: a list of (from, to, "[Errno …] why: from -> to")
        _, where, why = error.args[0][0]
        raise CannotStart(f"{what}: {why.partition('] ')[2].partition(':')[0]} ({where})") from error
    except OSError as error:
        where = f" ({error.filename2 or error.filename})" if error.filename else ""
        raise CannotStart(f"{what}: {error.strerror or error}{where}") from error


def _prepare(state: StateDir, binaries: Binaries) -> tuple[Binaries, Path]:
    """Return programs that the servers' user can run, and a directory for the sockets; no old server is left."""
    data = state.path / "postgres"
    servers.end_leftover_postgres(data)
    servers.end_leftover_valkey(state.path / "valkey")
    servers.has_database(data, binaries.postgres_major)
    if state.servers_user is not None:
        binaries = binaries.copied_to(state.path / "binaries")
    return binaries, state.socket_directory()


def _start(
    keeper: Keeper, state: StateDir, binaries: Binaries, sockets: Path, settings: Mapping[str, str]
) -> Endpoints:
    valkey_directory = state.servers_directory("valkey")
    valkey = servers.valkey(binaries, valkey_directory, sockets)
    keeper.spawn_server(valkey, cwd=valkey_directory, log=state.logs / "valkey.log", user=state.servers_user)
    data = state.path / "postgres"
    if not servers.has_database(data, binaries.postgres_major):
        _make_database(keeper, state, binaries)
    postgres = servers.postgres(binaries, data, sockets, settings)
    pid = keeper.spawn_server(postgres, cwd=data, log=state.logs / "postgres.log", user=state.servers_user)
    _wait(keeper, state, "valkey", lambda: servers.valkey_is_ready(sockets))
    _wait(keeper, state, "postgres", lambda: servers.postgres_is_ready(data, pid))
    _create_database(sockets)
    place = f"@/{servers.DATABASE}?host={sockets}&port={servers.PORT}"
    return Endpoints(
        database_url=f"postgresql+psycopg://{servers.USER}{place}",
        worker_database_url=f"postgresql+psycopg://{WORKER_ROLE}{place}",
        broker_url=f"redis+socket://{servers.valkey_socket(sockets)}?virtual_host=0",
        embedded=True,
    )


def _make_database(keeper: Keeper, state: StateDir, binaries: Binaries) -> None:
    """Run initdb beside the data directory's place and move the result there: a half-made one is never taken for it."""
    unfinished = state.path / "postgres.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        program = servers.initdb(binaries, state.servers_directory(unfinished.name))
        log = state.logs / "initdb.log"
        keeper.spawn_server(program, cwd=unfinished, log=log, user=state.servers_user)
        deadline = time.monotonic() + INITDB_SECONDS
        while (code := keeper.returncode(program.name)) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if code is None:
            raise CannotStart(f"no database was made in {INITDB_SECONDS:g} s; see {log}")
        if code != 0:
            raise CannotStart(f"no database was made: {servers.reason_in(log)}; see {log}")
        unfinished.rename(state.path / "postgres")
    except BaseException:
        keeper.close()
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _wait(keeper: Keeper, state: StateDir, name: str, is_ready: Callable[[], bool]) -> None:
    log = state.logs / f"{name}.log"
    deadline = time.monotonic() + READY_SECONDS
    while not is_ready():
        if keeper.returncode(name) is not None:
            raise CannotStart(f"{name} did not start: {servers.reason_in(log)}; see {log}")
        if time.monotonic() > deadline:
            raise CannotStart(f"{name} was not ready in {READY_SECONDS:g} s: {servers.reason_in(log)}; see {log}")
        time.sleep(POLL_SECONDS)


def _create_database(sockets: Path) -> None:
    """Create our database and the workers' role if need be; a lab that was killed after initdb may have left none."""
    address: dict[str, Any] = {"host": str(sockets), "port": servers.PORT, "user": servers.USER, "autocommit": True}
    try:
        with psycopg.connect(**address, dbname="postgres") as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [servers.DATABASE]).rowcount:
                connection.execute(f"CREATE DATABASE {servers.DATABASE}")
        with psycopg.connect(**address, dbname=servers.DATABASE) as connection:
            set_up_server(connection)
    except psycopg.Error as error:
        why = str(error).partition("\n")[0]
        raise CannotStart(f"the database {servers.DATABASE} could not be created: {why}") from error
