"""One instance: what a worker process holds between jobs."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from bank import outside
from bank.errors import BankError, CannotStart, Rejected, StrategyFault, Transient
from bank.orders import Order
from bank.outside import Borrowed, strategy_named
from bank.postgres.connection import LeanConnection
from bank.postgres.database import Database
from bank.postgres.schema import bank_id
from bank.settings import Settings
from bank.strategies import STRATEGIES, ChunkStrategy, Strategy, takes_chunks
from bank.strategies.file_lock import lock_directory
from bank.teller import Teller
from workers.broker.messages import Job
from workers.control.failpoints import Failpoints
from workers.control.interruption import Interruptions
from workers.process.meter import Meter
from workers.process.redelivery import Redeliveries

METERS_MAX = 100
READING_WAIT_SECONDS = 2.0
STANDING_SECONDS = 2.0

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
        self.failpoints = None if settings.failpoint_key is None else Failpoints(settings.failpoint_key)
        self._database_url = settings.database_url.get_secret_value()
        self.database = self.open_database(self.name, settings.threads)
        self.teller = Teller(
            self.database,
            instance=self.name,
            guard_timeout_seconds=settings.lock_timeout_ms / 1000,
            patience_seconds=settings.patience_ms / 1000,
        )
        self.redeliveries = Redeliveries(
            self.database,
            instance=self.name,
            maximum=settings.redeliveries_max,
            wait_seconds_max=settings.patience_ms / 1000,
        )
        self.interruptions = Interruptions(settings.control_key)
        self._lock = threading.Lock()
        self._strategies: dict[str, Strategy] = {}
        self._turned_away: dict[str, str] = {}
        self._borrowed: Borrowed | None = None
        self._at_work: dict[int, tuple[Strategy, float]] = {}
        self._meters: dict[str, Meter] = {}
        outside.make_importable(outside.folders_in(settings.strategies_path))

    def open_database(self, name: str, threads: int) -> Database:
        """Return an access of its own for so many threads of this instance. Its taker closes it."""
        connect = LeanConnection.connect if self.failpoints is None else self.failpoints.connect
        return Database.for_instance(
            self._database_url, instance=name, threads=threads, settings=self.settings, connect=connect
        )

    def close(self) -> None:
        """Close the strategies' connections and the database's."""
        with self._lock:
            for strategy in self._strategies.values():
                try:
                    outside.close_strategy(strategy)
                except StrategyFault as fault:
                    logger.warning("%s", fault)
        self.database.close()

    def apply(self, job: Job, *, redelivered: bool = False) -> None:
        """Apply a job's orders, each in a transaction of its own, or all in one if the strategy is made for that.

        ``redelivered`` is what the broker says of a message that was delivered before and never acknowledged. Raises
        Transient when the teller's patience is over, and what a strategy raised that is no outcome, once all orders
        have been tried: the job then has to be delivered again. Raises Rejected for a strategy that does not exist,
        which fails the transfers that were accepted for it. A transfer at which a strategy from outside fails has
        failed at once.
        """
        orders = job.parsed_orders()
        strategy = self._strategy_for(job, orders)
        again = job.again or redelivered
        at_a_time = strategy.messages_at_a_time if takes_chunks(strategy) else self.threads
        meter = self.meter(job.run, min(job.threads or self.threads, at_a_time))
        with meter.working_slot():
            # A chunk that comes back goes one by one, so that its orders are counted, and can fail, one by one.
            if takes_chunks(strategy) and not again:
                self._apply_chunk(orders, strategy, meter, job.think_ms / 1000)
            else:
                self._apply_each(orders, strategy, meter, job.think_ms / 1000, again=again)

    def _apply_chunk(
        self, orders: Sequence[Order], strategy: ChunkStrategy, meter: Meter, think_seconds: float
    ) -> None:
        try:
            with self._watch(strategy, meter):
                chunk = self.teller.apply_all(orders, strategy, think_seconds=think_seconds)
        except StrategyFault as error:
            for order in orders:
                self._fail(order, strategy, meter, error)
            return
        meter.book_chunk(chunk)
        for fate in chunk.fates:
            if isinstance(fate, Rejected):
                self._reject(meter, fate)

    def _apply_each(
        self, orders: Sequence[Order], strategy: Strategy, meter: Meter, think_seconds: float, *, again: bool
    ) -> None:
        fault: Exception | None = None
        for order in orders:
            try:
                with self.redeliveries.count(order.id) if again else nullcontext(), self._watch(strategy, meter):
                    meter.book(self.teller.apply(order, strategy, think_seconds=think_seconds))
            except Rejected as error:
                self._reject(meter, error)
            except StrategyFault as error:
                self._fail(order, strategy, meter, error)
            except Transient:
                raise
            except Exception as error:
                fault = error
                meter.fault(str(outside.name_fault(strategy, error)))
                logger.exception("transfer %s: %s failed", order.id, strategy.name)
                self.redeliveries.note(order.id, f"{type(error).__name__}: {error}")
        if fault is not None:
            raise fault

    def _reject(self, meter: Meter, error: Rejected) -> None:
        meter.count("rejected")
        logger.warning("rejected: %s", error)

    def _fail(self, order: Order, strategy: Strategy, meter: Meter, fault: StrategyFault) -> None:
        meter.fault(str(fault))
        self.redeliveries.fail(order.id, str(fault), strategy=strategy.name)

    @contextmanager
    def _watch(self, strategy: Strategy, meter: Meter) -> Iterator[None]:
        """Watch a strategy from outside while it is used in this thread.

        Raises StrategyFault, with the place, where it raises what is no outcome. A connection that it keeps is taken
        from it, and counted.
        """
        if self._borrowed is None or strategy.name in STRATEGIES:
            yield
            return
        thread = threading.get_ident()
        self._at_work[thread] = (strategy, time.monotonic())
        try:
            yield
        except BankError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit() in a strategy must not end its worker
            raise outside.name_fault(strategy, error) from error
        finally:
            del self._at_work[thread]
            unreturned = outside.take_back(strategy, self._borrowed)
            if unreturned is not None:
                meter.fault(str(unreturned))

    def find_standing(self) -> list[str]:
        """Say where transfers stand that a strategy from outside has been at for too long."""
        now = time.monotonic()
        places = [
            outside.place_in(strategy, thread)
            for thread, (strategy, since) in list(self._at_work.items())
            if now - since > STANDING_SECONDS
        ]
        return sorted(set(places))

    def try_strategy(self, name: str) -> str | None:
        """Load a strategy; say why not if it cannot be used here."""
        try:
            self._strategy(name)
        except Rejected as error:
            return str(error)
        return None

    def _strategy_for(self, job: Job, orders: list[Order]) -> Strategy:
        try:
            return self._strategy(job.strategy)
        except Rejected as error:
            for order in orders:
                self.redeliveries.fail(order.id, str(error), strategy=job.strategy)
            raise

    def _strategy(self, name: str) -> Strategy:
        with self._lock:
            if name in self._turned_away:
                raise Rejected(self._turned_away[name])
            if name not in self._strategies:
                try:
                    self._strategies[name] = self._open_strategy(name)
                except (CannotStart, StrategyFault) as error:
                    if ":" in name and outside.is_announced(name, self.settings):  # no stranger's name fills memory
                        self._turned_away[name] = str(error)
                    raise Rejected(str(error)) from None
            return self._strategies[name]

    def _open_strategy(self, name: str) -> Strategy:
        if name in STRATEGIES:
            return STRATEGIES[name].open(self.settings)
        if ":" in name and not outside.is_announced(name, self.settings):
            raise CannotStart(f"instance {self.name} was not started to use {name!r}: see BANKRUN_STRATEGIES")
        self._borrowed = self._borrowed or Borrowed(self.database.engine)
        return outside.open_strategy(strategy_named(name), self.settings)

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
            "core": self.settings.core,
        }

    def _host(self) -> str:
        try:
            return find_file_lock_host(lock_directory())
        except CannotStart as error:
            logger.warning("shares no lock file: %s", error)
            return f"{self.name}:{os.getpid()}"


def find_file_lock_host(directory: Path) -> str:
    """Return what identifies where a file lock in ``directory`` is shared: boot id, device and inode.

    Two containers on one machine share the first, and not the directory.
    """
    boot_file = Path("/proc/sys/kernel/random/boot_id")
    boot = boot_file.read_text().strip() if boot_file.exists() else f"{uuid.getnode():x}"
    status = directory.stat()
    return f"{boot}:{status.st_dev}:{status.st_ino}"
