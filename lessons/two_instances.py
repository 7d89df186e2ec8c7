"""Two instances of one program: processes that share a database and nothing else, so each has locks of its own."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import NamedTuple

from sqlalchemy import Engine
from sqlmodel import create_engine
from stage import SECONDS_MAX, Stage
from three_accounts import Accounts, open_accounts

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the first one's locks and connections
START_SECONDS_MAX = 60.0


class Meeting:
    """Where A and B wait for each other between the read and the write: the worst moment.

    One that is kept out by a lock counts as there: it cannot come, and waiting for it would take for ever.
    """

    def __init__(self) -> None:
        self._there = {who: SPAWN.Event() for who in "AB"}

    def clear(self) -> None:
        """Begin anew."""
        for there in self._there.values():
            there.clear()

    def arrive(self, who: str) -> None:
        """Be there, or be known to wait for a lock."""
        self._there[who].set()

    def wait(self, who: str, other_is_kept_out: Callable[[], bool] = lambda: False) -> bool:
        """Arrive, and wait for the other. Return whether it came, rather than being kept out."""
        self.arrive(who)
        other: Event = self._there["B" if who == "A" else "A"]
        deadline = time.monotonic() + SECONDS_MAX
        while not other.wait(0.001):
            if other_is_kept_out():
                return False
            if time.monotonic() > deadline:
                raise TimeoutError("the other transfer neither came nor waits for a lock")
        return True


class Order(NamedTuple):
    """What an instance is told to do: ``who`` does it, A or B, and how."""

    who: str
    from_id: int
    to_id: int
    for_update: bool = False


Say = Callable[[str], None]
Transfer = Callable[[Engine, Order, Meeting, Say], None]
"""What an instance does for one order."""


@contextmanager
def _deaf_to_interruptions() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Instance:
    """One process that makes transfers, each in a thread of its own."""

    def __init__(self, url: str, meeting: Meeting, transfer: Transfer) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs, url, meeting, transfer), daemon=True)
        with _deaf_to_interruptions():  # it inherits that, and so does what Python starts to look after it
            self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until it has imported what it needs."""
        if not self.pipe.poll(START_SECONDS_MAX) or self.pipe.recv() != "ready":
            raise TimeoutError("an instance did not start")


def _serve(pipe: Connection, url: str, meeting: Meeting, transfer: Transfer) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends us
    engine = create_engine(url)
    pipe.send("ready")
    try:
        while True:
            orders: list[Order] = pipe.recv()
            with ThreadPoolExecutor(len(orders)) as pool:
                told = pool.map(lambda order: _make(engine, order, meeting, transfer), orders)
                pipe.send([line for lines in told for line in lines])
    except EOFError:  # the first process is gone, however it ended
        engine.dispose()


def _make(engine: Engine, order: Order, meeting: Meeting, transfer: Transfer) -> list[tuple[float, str, str]]:
    lines: list[tuple[float, str, str]] = []
    transfer(engine, order, meeting, lambda text: lines.append((time.perf_counter(), order.who, text)))
    return lines


@dataclass(frozen=True)
class TwoInstances:
    """Both of them, and the accounts that they share."""

    accounts: Accounts
    meeting: Meeting
    instances: tuple[Instance, Instance]

    def make(self, stage: Stage, *orders: list[Order]) -> None:
        """Give each instance its orders, wait for both, and tell what they said, in the order of time."""
        self.meeting.clear()
        told = []
        busy = list(zip(self.instances, orders, strict=False))
        for instance, its_orders in busy:
            instance.pipe.send(its_orders)
        for instance, _ in busy:
            if not instance.pipe.poll(2 * SECONDS_MAX):
                raise TimeoutError("an instance does not answer")
            told += instance.pipe.recv()
        stage.retell(sorted(told))


@contextmanager
def instances_of(accounts: Accounts, transfer: Transfer) -> Iterator[TwoInstances]:
    """Start two instances for the block, and end them after it."""
    meeting = Meeting()
    url = accounts.engine.url.render_as_string(hide_password=False)
    instances = (Instance(url, meeting, transfer), Instance(url, meeting, transfer))
    try:
        for instance in instances:
            instance.wait_until_ready()
        yield TwoInstances(accounts, meeting, instances)
    finally:
        for instance in instances:
            instance.process.kill()
            instance.process.join()
            instance.pipe.close()


@contextmanager
def open_instances(transfer: Transfer) -> Iterator[TwoInstances]:
    """Start or reach Postgres, and start two instances that make transfers in their own way."""
    with open_accounts() as accounts, instances_of(accounts, transfer) as both:
        yield both
