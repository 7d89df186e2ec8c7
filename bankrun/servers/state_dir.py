"""The state directory: where the embedded servers keep what they keep, for one lab at a time.

    <state>/lock          held while a lab runs, with its pid
    <state>/postgres/     the data directory; it stays
    <state>/valkey/       Valkey's pid, no data
    <state>/run/          the servers' sockets, made anew at each start; elsewhere if this path is too long for a socket
    <state>/logs/         of the servers, the keeper and the workers
    <state>/binaries/     root only: a copy of the servers
    <state>/private/      the directories of private servers, unless these are in memory
    <state>/empty-postgres-<version>/   what a private Postgres begins as: a data directory that none ever ran in

Postgres refuses to run as root. There both servers run as ``nobody``, who can enter neither root's home nor a virtual
environment below it: hence a state directory in a public place, and the copy.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from bankrun.environ import is_alive
from bankrun.errors import CannotStart

ROOT_STATE_DIR = Path("/var/lib/bankrun")
MEMORY = Path("/dev/shm")  # noqa: S108 - `make_root` looks at what it finds there
MEMORY_BYTES_MIN = 2 << 30  # far more than a private Postgres fills
SOCKET_DIRECTORY_BYTES_MAX = 80  # sun_path is 104 bytes on macOS, and Postgres needs some for the file's name
PREVIOUS_LAB_SECONDS = 5.0  # longer than a keeper needs to end everything after its lab was killed


def default_state_dir() -> Path:
    """Return where the state is kept unless BANKRUN_STATE_DIR says otherwise; nothing is created."""
    if sys.platform != "win32" and os.geteuid() == 0:
        return ROOT_STATE_DIR
    with suppress(RuntimeError):  # platformdirs: no home at all
        home = Path(platformdirs.user_state_dir("bankrun"))
        nearest = next(parent for parent in (home, *home.parents) if os.path.exists(parent))  # noqa: PTH110
        if home.is_absolute() and os.access(nearest, os.W_OK | os.X_OK):
            return home
    # No home, or none that can be written in. Others can write there too: `own` looks at what it finds.
    return Path(f"/var/tmp/bankrun-{os.geteuid()}")  # noqa: S108


@dataclass(frozen=True, slots=True)
class StateDir:
    """A state directory that this lab owns: nobody else uses it as long as ``lock`` is open somewhere."""

    path: Path
    lock: int
    servers_user: tuple[int, int] | None  # uid and gid; None is our own

    @property
    def logs(self) -> Path:
        """Where the logs are."""
        return self.path / "logs"

    def servers_directory(self, name: str) -> Path:
        """Return a directory in here that only the servers' user can enter; it may have been there."""
        directory = self.path / name
        directory.mkdir(mode=0o700, exist_ok=True)
        self._hand_to_servers(directory)
        return directory

    def socket_directory(self) -> Path:
        """Return a new, empty directory for the sockets, with a short and plain path. The caller removes it."""
        directory = self.path / "run"
        shutil.rmtree(directory, ignore_errors=True)
        if len(os.fsencode(directory)) <= SOCKET_DIRECTORY_BYTES_MAX and re.fullmatch(
            r"[\w/.-]+", str(directory), re.ASCII
        ):
            directory.mkdir(mode=0o700)
        else:
            directory = Path(tempfile.mkdtemp(prefix="bankrun-", dir="/tmp"))
        self._hand_to_servers(directory)
        return directory

    def _hand_to_servers(self, directory: Path) -> None:
        if self.servers_user is not None:
            os.chown(directory, *self.servers_user)
        directory.chmod(0o700)


@contextmanager
def own(path: Path, *, for_servers: bool) -> Iterator[StateDir]:
    """Make the directory if need be, and keep other labs out of it for the block.

    Raises CannotStart if it cannot be used: another lab does, it belongs to someone else, everyone can write in it, or
    (``for_servers``, as root) the servers' user cannot reach it.
    """
    import fcntl  # not on Windows, where bankrun.servers.embedded refuses before this

    user = _servers_user() if for_servers else None
    try:
        _check_name(path)
        path = path.expanduser()
        if path.is_symlink() and path.lstat().st_uid != os.geteuid():
            raise PermissionError("it is a link made by someone else")
        path = path.resolve()
        if for_servers and set(str(path)) & set('"$`\\\n'):
            raise ValueError("initdb hands paths to a shell, and this one has a character that means something there")
        if user is not None:
            check_reachable(path.parent)
        _make_ours(path)
        if user is not None:
            check_reachable(path)
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
        if not os.access(path / "logs", os.W_OK | os.X_OK):
            raise PermissionError("its logs cannot be written")
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except (OSError, RuntimeError, ValueError) as error:
        raise _cannot_use(path, error) from error
    try:
        _take(lock, path)
        yield StateDir(path, lock, user)
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def make_root(path: Path) -> Path:
    """Make the state directory if need be, without keeping anybody out of it, and return its whole path.

    For what lies in a directory of its own below it. Raises CannotStart where ``own`` would.
    """
    try:
        _check_name(path)
        path = path.expanduser()
        if path.is_symlink() and path.lstat().st_uid != os.geteuid():
            raise PermissionError("it is a link made by someone else")
        path = path.resolve()
        _make_ours(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise _cannot_use(path, error) from error
    return path


def directory_in_memory() -> Path | None:
    """Return a directory of ours whose files are in memory, for what is not worth keeping.

    None where there is none (Linux has /dev/shm), where it has no room, or where this machine or container has not.
    """
    if not os.path.ismount(MEMORY):
        return None
    disk = os.statvfs(MEMORY)
    if min(disk.f_bavail * disk.f_frsize, _memory_bytes()) < MEMORY_BYTES_MIN:
        return None
    with suppress(CannotStart):  # somebody else was there first
        return make_root(MEMORY / f"bankrun-{os.geteuid()}")
    return None


def _memory_bytes() -> int:
    """Return how much memory can still be used: by this machine, and by this container (cgroup v2) if it has a limit.

    https://docs.kernel.org/admin-guide/cgroup-v2.html, "Memory Interface Files"
    """
    free = [0]
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        free = [int(found[1]) << 10] if found else free
    with suppress(OSError, ValueError):  # no such files, or the word "max"
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free)


def remove_abandoned(root: Path) -> None:
    """Remove the state directories below ``root`` whose process has ended; one that is in use stays.

    Their names begin with the process' id: one that is being made is not locked yet.
    """
    import fcntl

    for directory in root.iterdir():
        maker = directory.name.partition("-")[0]
        if maker.isdecimal() and is_alive(int(maker)):
            continue
        try:
            lock = os.open(directory / "lock", os.O_RDWR)
        except OSError:  # not ours to judge: it is being made, or somebody else's
            continue
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _cannot_use(path: Path, error: Exception) -> CannotStart:
    return CannotStart(f"cannot use {path} as the state directory: {_why(error)}; set BANKRUN_STATE_DIR to another")


def _check_name(path: Path) -> None:
    """Raise ValueError for a name that nobody meant."""
    name = str(path)
    if not name.isprintable() or name != name.strip():
        raise ValueError("its name is blank, begins or ends with a space, or has a character that cannot be shown")


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _servers_user() -> tuple[int, int] | None:
    import pwd  # not on Windows

    try:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            return nobody.pw_uid, nobody.pw_gid
        pwd.getpwuid(os.geteuid())
    except KeyError as error:  # as in a container with a made-up user
        raise CannotStart(f"initdb runs only for a user that /etc/passwd knows: {error.args[0]}") from error
    return None


def _make_ours(path: Path) -> None:
    """Make the directory, or take it; refuse what a stranger could have prepared, as under /var/tmp."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError("it is not a directory")
    path.mkdir(parents=True, exist_ok=True)
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise PermissionError(f"it belongs to user {owner}, not to {os.geteuid()}")
    if not any(path.iterdir()):  # new, or as mktemp made it: ours from now on
        path.chmod(0o755 if owner == 0 else 0o700)
    if path.stat().st_mode & stat.S_IWOTH:
        raise PermissionError("everyone can write in it")


def check_reachable(path: Path) -> None:
    """Raise PermissionError if the servers' user, who is not root, cannot enter this directory."""
    there = [parent for parent in (path, *path.parents) if parent.is_dir()]
    closed = [parent for parent in there if not parent.stat().st_mode & stat.S_IXOTH]
    if closed:
        default = f"the default, {ROOT_STATE_DIR}, works"
        raise PermissionError(f"as root, the servers run as user nobody, who cannot enter {closed[-1]} ({default})")


def _take(lock: int, path: Path) -> None:
    """Take the lock. A lab that was killed leaves it to its keeper for a moment: that is waited for."""
    import fcntl

    deadline = time.monotonic() + PREVIOUS_LAB_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            if (holder.isdecimal() and is_alive(int(holder))) or time.monotonic() > deadline:
                raise CannotStart(
                    f"{path} is in use by another lab (process {holder or 'unknown'}): "
                    "wait until it has ended, or set BANKRUN_STATE_DIR to another directory"
                ) from None
            time.sleep(0.02)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
