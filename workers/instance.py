"""One instance: what a worker process holds between jobs."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from bank.database import Database, bank_id
from bank.errors import BankError, CannotStart, Rejected
from bank.settings import Settings
from bank.strategies import Strategy, strategy_named
from bank.strategies.file_lock import lock_directory
from bank.teller import Teller
from workers.jobs import Job
from workers.meter import Meter

METERS_MAX = 100
READING_WAIT_SECONDS = 2.0

logger = logging.getLogger("bankrun")


class Instance:
    """A worker process' database, teller, strategy objects and meters.

    Each instance has its own strategy objects: that is what makes a lock that they hold an in-process lock.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.database_url is None:
            raise CannotStart("BANKRUN_DATABASE_URL is not set: a worker needs to know where the bank is")
        self.settings = settings
        self.name = settings.instance or socket.gethostname()
        self.threads = settings.threads
        self.database = Database.for_instance(
            settings.database_url.get_secret_value(), instance=self.name, threads=settings.threads, settings=settings
        )
        self.teller = Teller(
            self.database,
            instance=self.name,
            guard_timeout_seconds=settings.lock_timeout_ms / 1000,
            patience_seconds=settings.patience_ms / 1000,
        )
        self._lock = threading.Lock()
        self._strategies: dict[str, Strategy] = {}
        self._meters: dict[str, Meter] = {}

    def close(self) -> None:
        """Close the strategies' connections and the database's."""
        with self._lock:
            for strategy in self._strategies.values():
                strategy.close()
        self.database.close()

    def apply(self, job: Job) -> None:
        """Apply a job's orders, one after another, each in a transaction of its own.

        Raises what the teller raises when its patience is over: the job then has to be delivered again.
        """
        strategy = self._strategy(job.strategy)
        meter = self.meter(job.run, job.threads)
        with meter.working_slot():
            for order in job.parsed_orders():
                try:
                    meter.book(self.teller.apply(order, strategy, think_seconds=job.think_ms / 1000))
                except Rejected as error:
                    meter.count("rejected")
                    logger.warning("rejected: %s", error)

    def _strategy(self, name: str) -> Strategy:
        with self._lock:
            if name not in self._strategies:
                try:
                    self._strategies[name] = strategy_named(name).open(self.settings)
                except CannotStart as error:
                    raise Rejected(str(error)) from None
            return self._strategies[name]

    def meter(self, run: str, threads: int | None) -> Meter:
        """Return a run's meter. The first job of a run makes it; the oldest is forgotten when there are too many."""
        with self._lock:
            if run not in self._meters:
                while len(self._meters) >= METERS_MAX:
                    self._meters.pop(next(iter(self._meters)))
                self._meters[run] = Meter(min(threads or self.threads, self.threads))
            return self._meters[run]

    def read_meter(self, run: str) -> dict[str, Any] | None:
        """Return what a run cost here and forget it, or None if it never came by."""
        with self._lock:
            meter = self._meters.pop(run, None)
        return None if meter is None else meter.reading(READING_WAIT_SECONDS)

    def describe(self) -> dict[str, Any]:
        """Return who this is: for a lab that looks for instances."""
        try:
            bank = bank_id(self.database)
        except (BankError, DBAPIError, OSError) as error:
            logger.warning("cannot tell which bank this is: %s", error)
            bank = None
        return {
            "instance": self.name,
            "pid": os.getpid(),
            "threads": self.threads,
            "host": self._host(),
            "hostname": socket.gethostname(),
            "python": platform.python_version(),
            "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
            "bank": bank,
        }

    def _host(self) -> str:
        try:
            return file_lock_host(lock_directory())
        except CannotStart as error:
            logger.warning("shares no lock file: %s", error)
            return f"{self.name}:{os.getpid()}"


def file_lock_host(directory: Path) -> str:
    """Return what identifies where a file lock in ``directory`` is shared: boot id, device and inode.

    Two containers on one machine share the first, and not the directory.
    """
    boot_file = Path("/proc/sys/kernel/random/boot_id")
    boot = boot_file.read_text().strip() if boot_file.exists() else f"{uuid.getnode():x}"
    status = directory.stat()
    return f"{boot}:{status.st_dev}:{status.st_ino}"
