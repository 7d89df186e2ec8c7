"""Two threads check whether the one instance exists, both find that it does not, and both make it.

Double-checked locking looks again under the lock; the first look, without it, only saves the lock from then on.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from stage import Outcome, Stage
from telling import Lesson, perform


def without(stage: Stage) -> Outcome:
    """Look, then make: the talk's first singleton."""
    return two_calls(stage, nullcontext(), look_again=False)


def lock_only(stage: Stage) -> Outcome:
    """A lock around the making, but no second look: B waits its turn, and then makes another one."""
    return two_calls(stage, stage.lock(), look_again=False)


def double_checked(stage: Stage) -> Outcome:
    """Look, take the lock, look again, make."""
    return two_calls(stage, stage.lock(), look_again=True)


def two_calls(stage: Stage, lock: AbstractContextManager[None], *, look_again: bool) -> Outcome:
    made: list[object] = []

    class Singleton:
        instance: Any = None

        def __new__(cls) -> Self:
            if cls.instance is None:
                stage.say("sees no instance")
                with lock:
                    if not look_again or cls.instance is None:
                        cls.instance = super().__new__(cls)
                        made.append(cls.instance)
                        stage.say("makes one")
            found: Self = cls.instance
            return found

    stage.play("AB", A=Singleton, B=Singleton)
    return Outcome(len(made) != 1, f"{len(made)} of what there should be one of")


LESSON = Lesson(
    name="singleton",
    idea=__doc__,
    unsafe=(without, lock_only),
    safe=(double_checked,),
    question="What do you lose by making the instance at import time, where Python's own import lock guards it?",
    in_earnest="workers/process/tasks.py: a worker opens its one instance before its first job, without a lock.",
)

if __name__ == "__main__":
    perform(LESSON)
