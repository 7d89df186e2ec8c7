"""The GIL lets one thread at a time execute bytecode, and `balance += 100` is several of them: read, add, store.

It keeps Python's own objects whole, not your money; on a free-threaded build, threads run at the same time as well.
"""

import dis
import sys
from contextlib import AbstractContextManager, nullcontext

from by_chance import deposits
from stage import Outcome, Stage
from telling import Lesson, perform

STEPS = {"LOAD_ATTR", "BINARY_OP", "STORE_ATTR"}


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


def nobody_forces_it() -> list[str]:
    """Say how many deposits are lost if no order is forced, and why."""
    steps = [one.opname for one in dis.get_instructions(deposit) if one.opname in STEPS]
    made, lost = deposits()
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        why = "with the GIL, Python since 3.10 changes turns only at jumps and calls: a plain `+=` is not cut in two"
    else:
        why = "this Python is free-threaded: nothing keeps two threads from reading at the same moment"
    return [
        f"the statement's bytecodes: {', '.join(steps)}",
        f"without a property, {lost:,} of {made:,} deposits were lost",
        why,
    ]


LESSON = Lesson(
    name="gil",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_lock,),
    by_chance=nobody_forces_it,
    question="A plain `+=` seems safe in your tests. What has to change, and where, for it to break?",
    in_earnest="workers/process/meter.py counts under a lock; a run saves whether its workers had a GIL "
    "(workers/fleet.py, InstanceInfo.gil).",
)

if __name__ == "__main__":
    perform(LESSON)
