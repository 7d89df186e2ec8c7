"""Python takes the turn away from a thread every few milliseconds, and whenever it waits: between any two steps.

Whoever runs next sees what is half done. A lock does not stop the switch; it keeps the others out until all is done.
"""

import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext

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
    """Say how often the turn goes from one busy thread to another, and in which order sleeping ones wake up."""
    before = sys.getswitchinterval()
    lines = []
    for interval in (before, before / 10):
        sys.setswitchinterval(interval)
        lines.append(f"switch interval {interval * 1000:g} ms: {count_turns(0.1)} changes of turn in 100 ms")
    sys.setswitchinterval(before)
    order: list[str] = []
    workers = [threading.Thread(target=sleepy, args=(name, order)) for name in "012"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [*lines, f"three workers that sleep before each of three rounds: {' '.join(order)}"]


def sleepy(name: str, order: list[str]) -> None:
    """Do what the talk's worker does."""
    for _ in range(3):
        time.sleep(0.01)
        order.append(name)


def count_turns(seconds: float) -> int:
    seen, end = [0], time.perf_counter() + seconds

    def busy(me: int) -> None:
        while time.perf_counter() < end:
            if seen[-1] != me:
                seen.append(me)

    threads = [threading.Thread(target=busy, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(seen) - 1


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
