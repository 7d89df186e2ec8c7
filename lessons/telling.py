"""How a lesson is told: by time and thread, in colours on a terminal, within a time limit, one key a step if wanted."""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from stage import SECONDS_MAX, Outcome, Stage

RED, GREEN, BOLD, DIM = "31", "32", "1", "2"
ACTORS = ("36", "33", "35", "34")
WIDTH_MIN, WIDTH_MAX = 40, 80
# Names with hyphens are for copying: not even a narrow terminal breaks them.
fill, wrap = partial(textwrap.fill, break_on_hyphens=False), partial(textwrap.wrap, break_on_hyphens=False)
PROPS_SECONDS_MAX = 120.0  # what a first start of Postgres may take on a slow machine


@dataclass(frozen=True)
class Lesson:
    """A lesson: its idea, what goes wrong, what does not, and where to go from there.

    The halves take a stage, and what ``props`` opens; their docstrings are their headings. ``seconds_max`` bounds the
    whole lesson, less what it takes to open the props and what a person takes to press a key.
    """

    name: str
    idea: str | None
    safe: tuple[Callable[..., Outcome], ...]
    question: str
    in_earnest: str
    unsafe: tuple[Callable[..., Outcome], ...] = ()
    props: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)
    by_chance: Callable[[], list[str]] | None = None
    seconds_max: float = 15.0


class Terminated(BaseException):
    """The process was asked to end, with SIGTERM."""


def perform(lesson: Lesson) -> NoReturn:
    """Tell a lesson and end the process: 0 if it showed what it is about, 1 if not."""
    parser = argparse.ArgumentParser(description=lesson.idea)
    parser.add_argument("--step", action="store_true", help="wait for a key between steps")
    step = parser.parse_args().step
    if step and not sys.stdin.isatty():
        parser.error("--step waits for keys: it needs a terminal")
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, _terminate)
    teller = Teller(step=step)
    try:
        code = _perform(lesson, teller)
        sys.stdout.flush()
    except (KeyboardInterrupt, Terminated) as error:
        # Not sys.exit: that would wait for threads that wait for each other.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT))
    except BrokenPipeError:  # as in "… | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _perform(lesson: Lesson, teller: Teller) -> int:
    misses = []
    teller.bound(PROPS_SECONDS_MAX)
    with lesson.props() as props:
        teller.bound(lesson.seconds_max)
        teller.title(lesson.name, " ".join((lesson.idea or "").split()))
        for is_unsafe, half in [*((True, one) for one in lesson.unsafe), *((False, one) for one in lesson.safe)]:
            teller.heading(half.__doc__ or half.__name__, is_unsafe=is_unsafe)
            stage = Stage(teller.line, seconds_max=None if teller.step else SECONDS_MAX)
            outcome = half(stage) if props is None else half(stage, props)
            teller.outcome(outcome)
            if outcome.broken != is_unsafe:
                misses.append(half.__name__)
        if lesson.by_chance is not None:
            teller.by_chance(lesson.by_chance())
        teller.bound(PROPS_SECONDS_MAX)
    faulthandler.cancel_dump_traceback_later()
    teller.paragraph("Think", lesson.question)
    teller.paragraph("In earnest", lesson.in_earnest)
    if misses:
        print(f"{Path(sys.argv[0]).name}: {', '.join(misses)} did not come to what it shows", file=sys.stderr)
    return 1 if misses else 0


class Teller:
    """Prints a lesson: at most 80 columns, colours on a terminal only and never with NO_COLOR."""

    def __init__(self, *, step: bool) -> None:
        self.step = step
        self._seconds = 0.0
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._width = max(WIDTH_MIN, min(WIDTH_MAX, shutil.get_terminal_size((WIDTH_MAX, 24)).columns))

    def bound(self, seconds: float) -> None:
        """From now on, end the process after so long, with the frames of all threads on stderr."""
        self._seconds = seconds
        faulthandler.dump_traceback_later(seconds, exit=True)

    def title(self, name: str, idea: str) -> None:
        """Print the name and the idea."""
        print(self._in(BOLD, name))
        print(fill(idea, self._width))
        if self.step:
            print(self._in(DIM, "(any key: the next step; Ctrl-C: end)"))

    def heading(self, text: str, *, is_unsafe: bool) -> None:
        """Begin a half."""
        mark, colour = ("unsafe", RED) if is_unsafe else ("safe", GREEN)
        first, *rest = wrap(f"{mark}: {text.splitlines()[0]}", self._width)
        print("\n" + self._in(f"{BOLD};{colour}", mark) + self._in(BOLD, first[len(mark) :]))
        for more in rest:
            print(self._in(BOLD, more))
        self._wait_for_key()

    def line(self, who: str, text: str, at_ms: float) -> None:
        """Print one step, and wait for a key if wanted."""
        begin = f"{max(0.0, at_ms):8.2f} ms  {who:1}  " if who else " " * 16
        first, *rest = wrap(text, self._width - len(begin)) or [""]
        colour = ACTORS[(ord(who[0]) - ord("A")) % len(ACTORS)] if who else DIM
        print(self._in(DIM, begin[:13]) + self._in(colour, begin[13:] + first))
        for more in rest:
            print(" " * len(begin) + self._in(colour, more))
        self._wait_for_key()

    def outcome(self, outcome: Outcome) -> None:
        """End a half."""
        word, colour = ("broken", RED) if outcome.broken else ("holds", GREEN)
        first, *rest = wrap(f"{word}: {outcome.text}", self._width - 2)
        print("  " + self._in(colour, first), *("  " + self._in(colour, more) for more in rest), sep="\n")
        self._wait_for_key()

    def by_chance(self, lines: list[str]) -> None:
        """Print what was measured here and now, and may be different elsewhere."""
        print("\n" + self._in(BOLD, "left to chance, on this machine:"))
        for line in lines:
            print(fill(line, self._width, initial_indent="  ", subsequent_indent="    "))

    def paragraph(self, head: str, text: str) -> None:
        """Print a paragraph of the end."""
        first, *rest = wrap(f"{head}: {text}", self._width)
        print("\n" + self._in(BOLD, head) + first[len(head) :], *rest, sep="\n")

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and text else text

    def _wait_for_key(self) -> None:
        """With --step, wait, in the main thread, so that Ctrl-C ends it; the time limit does not run meanwhile."""
        if not self.step:
            return
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        try:
            _read_key()
        finally:
            self.bound(self._seconds)


def _read_key() -> None:
    try:
        import termios
        import tty
    except ImportError:  # Windows
        sys.stdin.readline()
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSADRAIN)  # a key that came early counts
        os.read(terminal, 64)  # a presenter's key is several bytes
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
