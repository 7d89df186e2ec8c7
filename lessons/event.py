"""An Event is a flag to wait for: set() wakes all threads that wait, and one that comes later does not wait at all.

A worker that does not wait looks once, finds nothing, and never learns that the data came a moment later.
"""

import threading

from stage import Outcome, Stage
from telling import Lesson, perform


def look_once(stage: Stage) -> Outcome:
    """Two workers look as soon as they run; the data comes after that."""
    return publish(stage, wait=False)


def wait_for_event(stage: Stage) -> Outcome:
    """Two workers wait for the event; the data comes, then set()."""
    return publish(stage, wait=True)


def publish(stage: Stage, *, wait: bool) -> Outcome:
    new_data = threading.Event()
    shelf: list[str] = []
    workers_are_there = threading.Barrier(3)

    def worker() -> str | None:
        if wait:
            stage.say("waits for new data")
            workers_are_there.wait(stage.seconds_max)
            new_data.wait(stage.seconds_max)
        found = shelf[0] if shelf else None
        stage.say(f"finds {found}")
        if not wait:
            workers_are_there.wait(stage.seconds_max)
        return found

    def publisher() -> str:
        workers_are_there.wait(stage.seconds_max)  # the worst moment: they have looked, or are about to wait
        shelf.append("the new data")
        stage.say("has published; sets the event")
        new_data.set()
        return shelf[0]

    *found, published = stage.play_freely(A=worker, B=worker, C=publisher)
    return Outcome(found != [published] * 2, f"the workers found {found[0]} and {found[1]}")


LESSON = Lesson(
    name="event",
    idea=__doc__,
    unsafe=(look_once,),
    safe=(wait_for_event,),
    question="Who clears the event before the next data, and what if a worker is slow and has not looked yet?",
    in_earnest="workers/process/reconciler.py waits for an event and does not sleep, so it ends when the worker does.",
)

if __name__ == "__main__":
    perform(LESSON)
