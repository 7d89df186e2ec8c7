"""A Lock lets one thread at a time into a critical section; a second thread waits until it is given back.

`with` gives it back however the section ends; with acquire() and release() that is what `finally` is for.
"""

from contextlib import nullcontext
from typing import Any

from stage import Outcome, Stage
from telling import Lesson, perform


class Section:
    """A critical section that counts who is in it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.inside = self.inside_max = 0

    def work(self) -> None:
        self.inside += 1
        self.inside_max = max(self.inside_max, self.inside)
        self._stage.say(f"is in the critical section, with {self.inside - 1} others")
        self.inside -= 1
        self._stage.say("has left it")


def without(stage: Stage) -> Outcome:
    """Two threads, no lock."""
    section = Section(stage)
    stage.play(A=lambda: use(nullcontext(), section), B=lambda: use(nullcontext(), section))
    return Outcome(section.inside_max > 1, f"up to {section.inside_max} in it at once")


def with_lock(stage: Stage) -> Outcome:
    """A acquires and releases, B says `with`: both are the same."""
    lock, section = stage.lock(), Section(stage)

    def acquire_and_release() -> None:
        lock.acquire()
        try:
            section.work()
        finally:
            lock.release()

    stage.play(A=acquire_and_release, B=lambda: use(lock, section))
    return Outcome(section.inside_max > 1, f"up to {section.inside_max} in it at once")


def use(lock: Any, section: Section) -> None:
    with lock:
        section.work()


LESSON = Lesson(
    name="lock",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_lock,),
    question="What happens to all the others if the section raises, and there is no `finally`?",
    in_earnest="ThreadGuard in bank/strategies/base.py, with a time limit: in production every wait needs one.",
)

if __name__ == "__main__":
    perform(LESSON)
