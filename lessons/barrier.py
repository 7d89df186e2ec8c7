"""A Barrier holds all threads back until the last one is there: none begins phase two while another is in phase one.

Without it, a quick thread uses what a slow one has not made yet.
"""

import threading
import time

from stage import Outcome, Stage
from telling import Lesson, perform


def without(stage: Stage) -> Outcome:
    """Each makes its part, then adds up all parts. B is slow."""
    return two_phases(stage, None)


def with_barrier(stage: Stage) -> Outcome:
    """The same, with a barrier between the phases."""
    return two_phases(stage, threading.Barrier(2))


def two_phases(stage: Stage, barrier: threading.Barrier | None) -> Outcome:
    parts: dict[str, int] = {}
    quick_one_is_done = threading.Event()

    def quick() -> int:
        try:
            return phases("A", 40)
        finally:
            quick_one_is_done.set()

    def slow() -> int:
        while not quick_one_is_done.is_set() and not (barrier and barrier.n_waiting):
            time.sleep(0.0002)  # so slow that A is done, or waits
        return phases("B", 60)

    def phases(who: str, amount: int) -> int:
        parts[who] = amount
        stage.say(f"phase 1: has made {amount}")
        if barrier:
            barrier.wait(stage.seconds_max)
        total = sum(parts.values())
        stage.say(f"phase 2: adds up {total}")
        return total

    totals = stage.play_freely(A=quick, B=slow)
    return Outcome(totals != [100, 100], f"the totals are {totals[0]} and {totals[1]}")


LESSON = Lesson(
    name="barrier",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_barrier,),
    question="One of the threads fails in phase 1. What happens to those that wait, and what can it do for them?",
    in_earnest="bankrun/runs/comparison.py accepts and publishes all transfers before the first instance may take one.",
)

if __name__ == "__main__":
    perform(LESSON)
