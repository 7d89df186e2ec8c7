"""A Postgres and a Valkey of our own, started from the programs of two wheels and ended with the block.

What has to run is prepared here, and the keeper (`bankrun.servers.keeper`) runs it, so that nothing outlives a process
that is killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bankrun.errors import BankrunError, CannotStart
from bankrun.own_sessions import pin_session
from bankrun.servers import binaries as programs
from bankrun.servers.binaries import Binaries
from bankrun.servers.keeper_client import POLL_SECONDS, Keeper
from bankrun.servers.state_dir import (
    StateDir,
    check_reachable,
    default_state_dir,
    directory_in_memory,
    make_root,
    own,
    remove_abandoned,
)

SetUp = Callable[[psycopg.Connection[Any]], None]
PRIVATE = "private"
READY_SECONDS = 60.0  # Postgres may have to recover first
INITDB_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the servers are: SQLAlchemy URLs and a Kombu URL.

    ``worker_database_url`` is where workers log in; on given servers that is ``database_url``.
    """

    database_url: str
    worker_database_url: str
    broker_url: str
    embedded: bool


@dataclass(frozen=True, slots=True)
class PrivatePostgres:
    """A Postgres of our own that is reached by its socket alone; ``user`` is its superuser, ``log`` its log file.

    ``broker_url`` is the Valkey's beside it, if there is one.
    """

    keeper: Keeper
    host: Path
    port: str
    user: str
    log: Path
    broker_url: str | None = None


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
    state_dir: Path,
    *,
    max_connections: int = 200,
    postgres_settings: Mapping[str, str] | None = None,
    worker_user: str = programs.USER,
    set_up: SetUp = lambda connection: None,
) -> Iterator[tuple[Keeper, Endpoints]]:
    """Start a Postgres and a Valkey of our own for the block; end them, and whatever else the keeper owns, after it.

    What is in Postgres stays in the state directory for the next time; what is in Valkey is gone. ``postgres_settings``
    go before our own; ``set_up`` is called with a superuser's session in our database, at every start, and makes
    ``worker_user`` if it is another. Raises CannotStart in one sentence, with nothing left running, if a server
    does not start.
    """
    _refuse_windows()
    binaries = programs.find_binaries()
    with own(state_dir, for_servers=True) as state, programs.without_libpq_defaults():
        settings = {"max_connections": str(max_connections), **(postgres_settings or {})}
        with _explained("the embedded servers cannot start"):
            if state.servers_user is not None:
                binaries = binaries.copied_to(state.path / "binaries", removes_others=True)
            sockets = _prepare(state, binaries)
        try:
            keeper = Keeper(state, remove_at_end=[sockets])
            try:
                with _explained("the embedded servers did not start"):
                    _start_valkey(keeper, state, binaries, sockets)
                    _start_postgres(keeper, state, binaries, sockets, settings)
                    _wait(keeper, state, "valkey", lambda: programs.valkey_is_ready(sockets))
                    _create_database(sockets, set_up)
                yield keeper, _describe_endpoints(sockets, worker_user)
            finally:
                keeper.close()
        finally:
            shutil.rmtree(sockets, ignore_errors=True)  # the keeper did, unless it was killed


@dataclass(frozen=True, slots=True)
class _Private:
    """A directory for servers that nobody else uses, and what is needed to start some there."""

    keeper: Keeper
    state: StateDir
    binaries: Binaries
    sockets: Path
    kept: Path


@contextmanager
def private_postgres(
    state_dir: Path | None, settings: Mapping[str, str], *, valkey: bool = False
) -> Iterator[PrivatePostgres]:
    """Start a Postgres that nobody else uses, in a directory of its own, for the block. With ``valkey``, one of these.

    Raises CannotStart, with nothing left running, if it does not start.
    """
    with _private_directory(state_dir) as private:
        keeper, state, sockets = private.keeper, private.state, private.sockets
        with _explained("a private Postgres did not start"):
            if valkey:
                _start_valkey(keeper, state, private.binaries, sockets)
            _copy_cluster(keeper, state, private.binaries, private.kept)
            _start_postgres(keeper, state, private.binaries, sockets, settings)
            if valkey:
                _await_valkey(private)
            _create_database(sockets, lambda connection: None)
        broker_url = _broker_url(sockets) if valkey else None
        log = state.logs / "postgres.log"
        yield PrivatePostgres(keeper, sockets, programs.PORT, programs.USER, log, broker_url)


@contextmanager
def private_valkey(state_dir: Path | None) -> Iterator[str]:
    """Start a Valkey that nobody else uses for the block, and return its address. Raises as ``private_postgres``."""
    with _private_directory(state_dir) as private:
        with _explained("a private Valkey did not start"):
            _start_valkey(private.keeper, private.state, private.binaries, private.sockets)
            _await_valkey(private)
        yield _broker_url(private.sockets)


def _await_valkey(private: _Private) -> None:
    _wait(private.keeper, private.state, "valkey", lambda: programs.valkey_is_ready(private.sockets))


@contextmanager
def _private_directory(state_dir: Path | None) -> Iterator[_Private]:
    """Make a directory for servers of one process, with a keeper, for the block.

    It is below the state directory; without one that was asked for, in memory where there is room, because a Postgres
    is thousands of files. Several at once do not meet. Data, logs and sockets are gone afterwards; what a killed
    process left is removed by the next one.
    """
    _refuse_windows()
    kept = make_root(state_dir or default_state_dir())
    root = (directory_in_memory() if state_dir is None else None) or kept / PRIVATE
    with _explained("a private server cannot start"):
        root.mkdir(mode=0o755, exist_ok=True)
    remove_abandoned(root)
    directory = root / f"{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with own(directory, for_servers=True) as state, programs.without_libpq_defaults():
            with _explained("a private server cannot start"):
                binaries = programs.find_binaries()
                if state.servers_user is not None:
                    check_reachable(kept)
                    binaries = binaries.copied_to(kept / "binaries")
                sockets = _prepare(state, binaries)
            try:
                keeper = Keeper(state, remove_at_end=[sockets])
                try:
                    yield _Private(keeper, state, binaries, sockets, kept)
                finally:
                    keeper.close()
            finally:
                shutil.rmtree(sockets, ignore_errors=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _refuse_windows() -> None:
    if os.name != "posix":
        raise CannotStart("worker processes need Linux or macOS: on Windows use Docker (docker compose up) or WSL")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except CannotStart:
        raise
    except BankrunError as error:
        raise CannotStart(f"{what}: {error}") from error
    except shutil.Error as error:  # copytree's: a list of (from, to, "[Errno …] why: from -> to")
        _, where, why = error.args[0][0]
        raise CannotStart(f"{what}: {why.partition('] ')[2].partition(':')[0]} ({where})") from error
    except OSError as error:
        where = f" ({error.filename2 or error.filename})" if error.filename else ""
        raise CannotStart(f"{what}: {error.strerror or error}{where}") from error


def _prepare(state: StateDir, binaries: Binaries) -> Path:
    """Return a directory for the sockets; no old server is left."""
    data = state.path / "postgres"
    programs.end_leftover_postgres(data)
    programs.end_leftover_valkey(state.path / "valkey")
    programs.has_database(data, binaries.postgres_major)
    return state.socket_directory()


def _start_valkey(keeper: Keeper, state: StateDir, binaries: Binaries, sockets: Path) -> None:
    directory = state.servers_directory("valkey")
    valkey = programs.valkey(binaries, directory, sockets)
    keeper.spawn_server(valkey, cwd=directory, log=state.logs / "valkey.log", user=state.servers_user)


def _start_postgres(
    keeper: Keeper, state: StateDir, binaries: Binaries, sockets: Path, settings: Mapping[str, str]
) -> None:
    """Start Postgres and wait until it accepts connections; make its data directory first where there is none."""
    data = state.path / "postgres"
    if not programs.has_database(data, binaries.postgres_major):
        _make_database(keeper, state, binaries)
    postgres = programs.postgres(binaries, data, sockets, settings)
    pid = keeper.spawn_server(postgres, cwd=data, log=state.logs / "postgres.log", user=state.servers_user)
    _wait(keeper, state, "postgres", lambda: programs.postgres_is_ready(data, pid))


def _describe_endpoints(sockets: Path, worker_user: str) -> Endpoints:
    place = f"@/{programs.DATABASE}?host={sockets}&port={programs.PORT}"
    return Endpoints(
        database_url=f"postgresql+psycopg://{programs.USER}{place}",
        worker_database_url=f"postgresql+psycopg://{worker_user}{place}",
        broker_url=_broker_url(sockets),
        embedded=True,
    )


def _broker_url(sockets: Path) -> str:
    return f"redis+socket://{programs.valkey_socket(sockets)}?virtual_host=0"


def _make_database(keeper: Keeper, state: StateDir, binaries: Binaries) -> None:
    """Run initdb beside the data directory's place and move the result there: a half-made one is never taken for it."""
    unfinished = state.path / "postgres.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        program = programs.initdb(binaries, state.servers_directory(unfinished.name))
        log = state.logs / "initdb.log"
        keeper.spawn_server(program, cwd=unfinished, log=log, user=state.servers_user)
        deadline = time.monotonic() + INITDB_SECONDS
        while (code := keeper.returncode(program.name)) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if code is None:
            raise CannotStart(f"no database was made in {INITDB_SECONDS:g} s; see {log}")
        if code != 0:
            raise CannotStart(f"no database was made: {programs.reason_in(log)}; see {log}")
        unfinished.rename(state.path / "postgres")
    except BaseException:
        keeper.close()
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _copy_cluster(keeper: Keeper, state: StateDir, binaries: Binaries, kept: Path) -> None:
    """Make a data directory by copying an empty one, which is kept: five times as fast as initdb."""
    empty = kept / f"empty-postgres-{binaries.postgres_version}"
    if not empty.is_dir():
        _make_database(keeper, state, binaries)
        copy = programs.begin_copy(kept / "unfinished")
        try:
            shutil.copytree(state.path / "postgres", copy)
            copy.rename(empty)
        except OSError:
            if not empty.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        return
    data = state.servers_directory("postgres")
    shutil.copytree(empty, data, dirs_exist_ok=True)
    if state.servers_user is not None:
        for path in data.rglob("*"):
            os.chown(path, *state.servers_user)


def _wait(keeper: Keeper, state: StateDir, name: str, is_ready: Callable[[], bool]) -> None:
    log = state.logs / f"{name}.log"
    deadline = time.monotonic() + READY_SECONDS
    while not is_ready():
        if keeper.returncode(name) is not None:
            raise CannotStart(f"{name} did not start: {programs.reason_in(log)}; see {log}")
        if time.monotonic() > deadline:
            raise CannotStart(f"{name} was not ready in {READY_SECONDS:g} s: {programs.reason_in(log)}; see {log}")
        time.sleep(POLL_SECONDS)


def _create_database(sockets: Path, set_up: SetUp) -> None:
    """Create our database if need be, and set it up; a process that was killed after initdb may have left none."""
    address: dict[str, Any] = {"host": str(sockets), "port": programs.PORT, "user": programs.USER, "autocommit": True}
    try:
        with psycopg.connect(**address, dbname="postgres") as connection:
            pin_session(connection)
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [programs.DATABASE]).rowcount:
                connection.execute(f"CREATE DATABASE {programs.DATABASE}")
        with psycopg.connect(**address, dbname=programs.DATABASE) as connection:
            pin_session(connection)
            set_up(connection)
    except psycopg.Error as error:
        why = str(error).partition("\n")[0]
        raise CannotStart(f"the database {programs.DATABASE} could not be created: {why}") from error
