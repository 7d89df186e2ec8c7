"""`print` writes the message first and its end afterwards: two steps, and another thread's line can come in between.

Two steps on anything shared need a lock, and a screen is shared too.
"""

import io
from contextlib import AbstractContextManager, nullcontext

from stage import Outcome, Stage
from telling import Lesson, perform


class Screen(io.StringIO):
    """What print writes to. Each write may cost its thread the turn."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def write(self, text: str) -> int:
        written = super().write(text)
        self._stage.say(f"writes {text!r}")
        return written


def without(stage: Stage) -> Outcome:
    """Two threads print a line each."""
    return print_lines(stage, nullcontext())


def with_lock(stage: Stage) -> Outcome:
    """The same with a lock around print."""
    return print_lines(stage, stage.lock())


def print_lines(stage: Stage, print_lock: AbstractContextManager[None]) -> Outcome:
    screen = Screen(stage)

    def printer(name: str) -> None:
        with print_lock:
            print(f"Printing from {name}", end=f" | Separator of {name}\n", file=screen)

    stage.play(A=lambda: printer("A"), B=lambda: printer("B"))
    whole = {f"Printing from {name} | Separator of {name}" for name in "AB"}
    lines = screen.getvalue().splitlines()
    return Outcome(set(lines) != whole, "the screen shows " + ", ".join(f"'{line}'" for line in lines))


LESSON = Lesson(
    name="print",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_lock,),
    question="Would print(message + end, end='') be safe without a lock? On which kinds of output?",
    in_earnest="bankrun/results/store.py writes a result beside its place, then moves it: no reader finds half of it.",
)

if __name__ == "__main__":
    perform(LESSON)
