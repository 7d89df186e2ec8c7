"""A Condition lets a thread wait until something about shared data is true, and gives the lock back meanwhile.

A thread that is woken has been promised nothing, another may have been quicker: so look again, in a loop.
"""

import threading
from collections import deque

from stage import Outcome, Stage
from telling import Lesson, perform


def look_once(stage: Stage) -> Outcome:
    """`if not queue: wait()`: two consumers are woken for one item, and both take."""
    return consume(stage, look_again=False)


def look_again(stage: Stage) -> Outcome:
    """`while not queue: wait()`: the one who comes too late waits again, until there is a second item."""
    return consume(stage, look_again=True)


def consume(stage: Stage, *, look_again: bool) -> Outcome:
    queue: deque[str] = deque()
    not_empty = threading.Condition()
    settled = threading.Semaphore(0)  # one for each consumer that waits, or is done

    def consumer() -> str:
        with not_empty:
            while not queue:
                settled.release()
                stage.say("waits")
                not_empty.wait(stage.seconds_max)
                if not look_again:
                    break
            taken = queue.popleft() if queue else "nothing: the queue is empty"
            stage.say(f"takes {taken}")
        settled.release()
        return taken

    def producer() -> str:
        for item in ("tea", "cake"):
            settled.acquire(timeout=stage.seconds_max)
            settled.acquire(timeout=stage.seconds_max)
            with not_empty:  # and so those who settled to wait do wait
                queue.append(item)
                stage.say(f"puts {item} there and wakes all")
                not_empty.notify_all()
        return "tea and cake"

    first, second, _ = stage.play_freely(A=consumer, B=consumer, C=producer)
    return Outcome({first, second} != {"tea", "cake"}, f"A took {first}; B took {second}")


LESSON = Lesson(
    name="condition",
    idea=__doc__,
    unsafe=(look_once,),
    safe=(look_again,),
    question="notify() wakes one thread. When is that enough? Which one is it if they wait for different things?",
    in_earnest="workers/process/meter.py: a reading waits until no thread works. wait_for() there is this very loop.",
)

if __name__ == "__main__":
    perform(LESSON)
