"""A lock that all processes of one machine share: a file."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Self

import filelock

from bank.errors import CannotStart, NotAcquired
from bank.orders import Order
from bank.settings import Settings
from bank.strategies.base import Claim, Guard, Strategy

POLL_SECONDS = 0.005  # the library's own default, 50 ms, is ten transfers long


def lock_directory() -> Path:
    """Return the directory of the lock file, made if it is missing: private, since a user who can open it can block us.

    Raises CannotStart if another user's is in its place.
    """
    path = Path(tempfile.gettempdir()) / f"bankrun-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise CannotStart(f"{path}: no directory for a lock file can be made there: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise CannotStart(f"{path} is not a directory that belongs to this user alone: remove it, or set TMPDIR")
    return path


class FileGuard:
    """A lock file as a guard, for one acquisition: a ``FileLock`` that is held lets its own object in again."""

    def __init__(self, path: Path) -> None:
        # Not thread_local: then a guard could only be given back by the thread that took it.
        self._lock = filelock.FileLock(path, thread_local=False, poll_interval=POLL_SECONDS)

    def enter(self, timeout_seconds: float) -> None:
        """Ask again and again for the lock. Raises NotAcquired after ``timeout_seconds``."""
        try:
            self._lock.acquire(timeout=timeout_seconds)
        except filelock.Timeout as error:
            raise NotAcquired(f"{self._lock.lock_file} was not free within {timeout_seconds:g} s") from error

    def try_enter(self) -> bool:
        """Take the lock if it is free."""
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        return True

    def leave(self) -> None:
        """Release the lock."""
        self._lock.release()


class FileLock(Strategy):
    """One lock file for all accounts (``flock``), held from before BEGIN until after COMMIT.

    Claims one host: processes that open the same file exclude each other, and the kernel frees the lock of one that
    dies (flock(2)). Threads of one process do too, because each acquisition opens the file for itself. Two containers
    or two machines have two files: nothing is shared, and nothing says so. Over NFS it depends on both ends. Waiting is
    polling, without a queue.
    """

    name = "file-lock"
    summary = "the filelock package, one file per host"
    claim = Claim.HOST

    def __init__(self, directory: Path) -> None:
        self._path = directory / "transfers.lock"

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Find the lock file. Raises CannotStart if its directory is not ours."""
        return cls(lock_directory())

    def guard(self, order: Order) -> Guard:
        """Return a guard for one acquisition."""
        return FileGuard(self._path)
