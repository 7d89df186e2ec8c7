"""The GIL lets one thread at a time execute bytecode, and `balance += 100` is several of them: read, add, store.

It keeps Python's own objects whole, not your money; on a free-threaded build, threads run at the same time as well.
"""

import dis
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext

from stage import Outcome, Stage
from telling import Lesson, perform

SECONDS = 0.3


class Account:
    """An account whose balance is a property: reading and storing are calls, and at a call the turn may change."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.stored = 0

    @property
    def balance(self) -> int:
        read = self.stored
        self._stage.say(f"has read {read}")
        return read

    @balance.setter
    def balance(self, amount: int) -> None:
        self.stored = amount
        self._stage.say(f"has stored {amount}")


def deposit(account: Account) -> None:
    account.balance += 100


def without(stage: Stage) -> Outcome:
    """Two threads run that one statement, and the turn changes inside it."""
    return two_deposits(stage, nullcontext())


def with_lock(stage: Stage) -> Outcome:
    """The same with a lock around the statement."""
    return two_deposits(stage, stage.lock())


def two_deposits(stage: Stage, lock: AbstractContextManager[None]) -> Outcome:
    account = Account(stage)

    def one() -> None:
        with lock:
            deposit(account)

    stage.play(A=one, B=one)
    return Outcome(account.stored != 200, f"the balance is {account.stored} of 200")


class Plain:
    balance = 0


def nobody_forces_it() -> list[str]:
    """Two threads, many deposits into a plain attribute, no lock, and nobody who forces anything."""
    account, start, counts = Plain(), threading.Barrier(2), []

    def many() -> None:
        start.wait()
        end, count = time.perf_counter() + SECONDS, 0
        while time.perf_counter() < end:
            for _ in range(1_000):
                account.balance += 1
            count += 1_000
        counts.append(count)

    threads = [threading.Thread(target=many) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    steps = [
        one.opname for one in dis.get_instructions(deposit) if one.opname in {"LOAD_ATTR", "BINARY_OP", "STORE_ATTR"}
    ]
    why = (
        "With the GIL, Python since 3.10 changes turns only at jumps and calls. So a plain `+=` often passes every "
        "test, until somebody makes the attribute a property, as above."
        if gil
        else "This Python is free-threaded: nothing keeps two threads from reading at the same moment."
    )
    return [
        f"The statement's bytecodes: {', '.join(steps)}.",
        f"Into a plain attribute, {sum(counts) - account.balance:,} of {sum(counts):,} deposits were lost.",
        why,
    ]


LESSON = Lesson(
    name="gil",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_lock,),
    by_chance=nobody_forces_it,
    question="If `+=` on an attribute seems safe in your tests, what would have to change for it to break?",
    in_earnest="workers/meter.py counts under a lock; a run saves whether its workers had a GIL "
    "(workers/fleet.py, InstanceInfo.gil).",
)

if __name__ == "__main__":
    perform(LESSON)
