"""A stage: real threads that take turns, in an order that can be given, and tell what they do.

Only one actor moves at a time, from one `say` to its next; one that waits for a lock is passed over. So what needs an
unlucky order happens each time, and when no actor can go on, that is a deadlock, noticed at once.
`bankrun prove` does the same to transfers in Postgres. From the standard library alone.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, TypeVar

SECONDS_MAX = 10.0
"""How long anybody may wait for anybody."""

T = TypeVar("T")
Tell = Callable[[str, str, float], None]
"""Show one line: which actor (or none), what, and when, in milliseconds."""


class Outcome(NamedTuple):
    """What one half of a lesson came to, as it was observed."""

    broken: bool
    text: str


class Waiting(NamedTuple):
    """An actor that waits, and where: its frames in the lessons, the innermost last."""

    who: str
    what: str
    frames: list[traceback.FrameSummary]


class Deadlock(Exception):
    """Each actor waits for another: without us this would hang for ever."""

    def __init__(self, waiting: list[Waiting]) -> None:
        super().__init__(f"deadlock: {', '.join(one.who for one in waiting)} wait, and none can go on")
        self.waiting = waiting


class _Gone(BaseException):
    """Ends an actor that will get no further turn."""


class _Lock(Protocol):
    def acquire(self, blocking: bool = True) -> bool: ...  # noqa: FBT001, FBT002 - as in the standard library

    def release(self) -> None: ...


@dataclass
class _Actor:
    stands: bool
    waits_for: ToldLock | None = None
    thread: int = 0
    done: bool = False


@dataclass
class _Line:
    who: str
    text: str
    at_ms: float


class ToldLock:
    """A lock of the standard library that tells the stage who has it and who waits for it."""

    def __init__(self, stage: Stage, real: _Lock, name: str) -> None:
        self._stage, self._real, self.name = stage, real, name

    def acquire(self) -> None:
        """Take it; wait for it if need be."""
        if not self._real.acquire(blocking=False):
            self._stage.wait_for(self, f"waits for the {self.name}")
            while not self._real.acquire(blocking=False):
                self._stage.wait_for(self)
        self._stage.say(f"has the {self.name}")

    def release(self) -> None:
        """Give it back."""
        self._real.release()
        self._stage.freed(self)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()


@dataclass
class Stage:
    """Where threads take turns. Without a ``seed`` each goes one step when it can; with one, the turns are drawn.

    ``seconds_max`` bounds every wait; it is None where the steps wait for a person.
    """

    tell: Tell = lambda who, text, at: None
    seed: int | None = None
    seconds_max: float | None = SECONDS_MAX
    _actors: dict[str, _Actor] = field(default_factory=dict)
    _told: list[_Line] = field(default_factory=list)
    _over: bool = False

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._me = threading.local()
        self._random = None if self.seed is None else random.Random(self.seed)
        self._last = ""
        self._began = time.perf_counter()
        self._shown_seconds = 0.0

    # What a lesson uses.

    def play(self, order: str = "", **parts: Callable[[], T]) -> list[T]:
        """Run each part in a thread of its own, one step at a time, and return what they returned.

        ``order`` says whose the first turns are, as in "ABBA". Raises Deadlock when all of them wait.
        """
        return self._run(parts, lambda: self._take_turns(order), stands=True)

    def play_freely(self, **parts: Callable[[], T]) -> list[T]:
        """Run all parts at the same time; each goes on as soon as what it says is shown."""
        return self._run(parts, self._listen, stands=False)

    def say(self, text: str) -> None:
        """Tell what was just done, and let another actor go on. The line has no name if no actor says it."""
        who = getattr(self._me, "who", "")
        if not who:
            self._show(_Line(who, text, self._ms()))
            return
        with self._changed:
            self._told.append(_Line(who, text, self._ms()))
            self._stand(who)

    def lock(self) -> ToldLock:
        """Return a ``threading.Lock``."""
        return ToldLock(self, threading.Lock(), "lock")

    def rlock(self) -> ToldLock:
        """Return a ``threading.RLock``."""
        return ToldLock(self, threading.RLock(), "lock")

    def semaphore(self, value: int) -> ToldLock:
        """Return a ``threading.BoundedSemaphore``."""
        return ToldLock(self, threading.BoundedSemaphore(value), "semaphore")

    def retell(self, lines: list[tuple[float, str, str]]) -> None:
        """Show lines that others said elsewhere: when, by ``time.perf_counter()``, who and what."""
        for line in [_Line(who, text, self._ms(at)) for at, who, text in lines]:
            self._show(line)

    # What a lock uses.

    def wait_for(self, lock: ToldLock, text: str = "") -> None:
        """Stand until ``lock`` was given back and it is this actor's turn."""
        with self._changed:
            if text:
                self._told.append(_Line(self._me.who, text, self._ms()))
            self._actors[self._me.who].waits_for = lock
            self._stand(self._me.who)

    def freed(self, lock: ToldLock) -> None:
        """Let those that wait for ``lock`` try again."""
        with self._changed:
            for actor in self._actors.values():
                if actor.waits_for is lock:
                    actor.waits_for = None

    # The rest is how it is done.

    def _stand(self, who: str) -> None:
        actor = self._actors[who]
        actor.stands = True
        self._changed.notify_all()
        self._changed.wait_for(lambda: not actor.stands or self._over)
        if self._over:
            raise _Gone

    def _run(self, parts: dict[str, Callable[[], T]], conduct: Callable[[], None], *, stands: bool) -> list[T]:
        self._actors = {who: _Actor(stands) for who in parts}
        self._told, self._over, self._last = [], False, ""
        pool = ThreadPoolExecutor(len(parts), thread_name_prefix="actor")
        try:
            ends = [pool.submit(self._act, who, part) for who, part in parts.items()]
            conduct()
        except BaseException as error:
            self._end()
            pool.shutdown(wait=isinstance(error, Deadlock))
            raise
        pool.shutdown()
        return [end.result() for end in ends]

    def _act(self, who: str, part: Callable[[], T]) -> T:
        self._me.who = who
        actor = self._actors[who]
        actor.thread = threading.get_ident()
        try:
            with self._changed:
                if actor.stands:
                    self._stand(who)
            return part()
        finally:
            with self._changed:
                actor.done = True
                self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _take_turns(self, order: str) -> None:
        script = iter(order)
        while True:
            self._await(lambda: all(actor.stands or actor.done for actor in self._actors.values()))
            while self._told:
                self._show(self._told.pop(0))
            able = [who for who, actor in self._actors.items() if not actor.done and actor.waits_for is None]
            if not able:
                break
            self._last = self._choose(able, next(script, ""))
            with self._changed:
                self._actors[self._last].stands = False
                self._changed.notify_all()
        waiting = [self._waiting(who, actor) for who, actor in self._actors.items() if not actor.done]
        if waiting:
            raise Deadlock(waiting)

    def _choose(self, able: list[str], wanted: str) -> str:
        if wanted in able:
            return wanted
        if self._random is not None:
            return self._random.choice(able)
        names = list(self._actors)
        first = names.index(self._last) + 1 if self._last else 0
        return next(who for who in names[first:] + names[:first] if who in able)

    def _waiting(self, who: str, actor: _Actor) -> Waiting:
        here = Path(__file__)
        frames = traceback.extract_stack(sys._current_frames()[actor.thread])  # noqa: SLF001 - public in all but name
        assert actor.waits_for is not None
        return Waiting(
            who,
            actor.waits_for.name,
            [one for one in frames if Path(one.filename).parent == here.parent and Path(one.filename) != here],
        )

    def _listen(self) -> None:
        while True:
            self._await(lambda: bool(self._told) or all(actor.done for actor in self._actors.values()))
            with self._changed:
                told, self._told = self._told, []
            if not told:
                return
            for line in told:
                self._show(line)
                with self._changed:
                    self._actors[line.who].stands = False
                    self._changed.notify_all()

    def _ms(self, at: float | None = None) -> float:
        return ((at or time.perf_counter()) - self._began - self._shown_seconds) * 1000

    def _show(self, line: _Line) -> None:
        """Show a line. The time that takes, a key that is waited for too, is not the lesson's."""
        begun = time.perf_counter()
        self.tell(line.who, line.text, line.at_ms)
        self._shown_seconds += time.perf_counter() - begun

    def _await(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, self.seconds_max):
                raise TimeoutError(f"nothing has happened on the stage for {self.seconds_max:g} s")
