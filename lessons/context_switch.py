"""Python takes the turn away from a thread every few milliseconds, and whenever it waits: between any two steps.

The thread that runs next sees what is half done; a lock does not stop the switch, it keeps the others out meanwhile.
"""

import sys
from contextlib import AbstractContextManager, nullcontext

from by_chance import changes_of_turn, order_of_workers
from stage import Outcome, Stage
from telling import Lesson, perform


def without(stage: Stage) -> Outcome:
    """A moves 10 from John to Jane; B counts the money when A has lost its turn half way."""
    return move_and_count(stage, nullcontext())


def with_lock(stage: Stage) -> Outcome:
    """The same, each with the lock."""
    return move_and_count(stage, stage.lock())


def move_and_count(stage: Stage, lock: AbstractContextManager[None]) -> Outcome:
    balances = {"John": 100, "Jane": 100, "Alice": 100}

    def move() -> int:
        with lock:
            balances["John"] -= 10
            stage.say(f"has taken 10 from John: {balances['John']}")
            balances["Jane"] += 10
            stage.say(f"has given 10 to Jane: {balances['Jane']}")
            return 10

    def count() -> int:
        with lock:
            counted = sum(balances.values())
            stage.say(f"counts {counted}")
            return counted

    _, counted = stage.play(A=move, B=count)
    return Outcome(counted != 300, f"B counted {counted} of 300")


def turns() -> list[str]:
    """Say how often the turn changes between two busy threads, and in which order three sleeping ones wake up."""
    intervals = (sys.getswitchinterval(), sys.getswitchinterval() / 10)
    return [
        *(f"switch interval {one * 1000:g} ms: {changes_of_turn(one)} changes of turn in 100 ms" for one in intervals),
        f"the talk's three workers, three rounds each: {' '.join(map(str, order_of_workers()))}",
    ]


LESSON = Lesson(
    name="context-switch",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_lock,),
    by_chance=turns,
    question="B only reads. Why does it need the lock too?",
    in_earnest="bank/audit.py counts the whole bank in one snapshot, so that no transfer is seen half done.",
)

if __name__ == "__main__":
    perform(LESSON)
