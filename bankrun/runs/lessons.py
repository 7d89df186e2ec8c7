"""The talk's lessons: which there are, and how one is run: in a process of its own that cannot outlast its time.

Their code is in ``lessons/`` of a clone, and in ``bankrun/lessons`` where bankrun is installed. It is run,
never imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bank.errors import BankError, CannotStart, unknown

SECONDS_MAX = 300.0
"""A lesson ends itself long before this: its own bound is in its file, and allows for a slow start of Postgres."""
GRACE_SECONDS = 5.0

_PACKAGE = Path(__file__).resolve().parent.parent
FOLDER = next(
    (folder for folder in (_PACKAGE / "lessons", _PACKAGE.parent / "lessons") if folder.is_dir()), _PACKAGE / "lessons"
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One lesson: a file that runs by itself."""

    name: str
    file: str
    shows: str
    needs_postgres: bool = False

    @property
    def path(self) -> Path:
        """Where its code is."""
        return FOLDER / self.file


LESSONS = {
    lesson.name: lesson
    for lesson in (
        Lesson("bank", "bank_alone.py", "four transfers, one after another: 300 stay 300", needs_postgres=True),
        Lesson("bank-race", "bank_race.py", "the same in a pool of threads: 290", needs_postgres=True),
        Lesson("context-switch", "context_switch.py", "who runs next sees what is half done"),
        Lesson("print", "print.py", "torn lines, and the lock that mends them"),
        Lesson("singleton", "singleton.py", "two of what there should be one of"),
        Lesson("lock", "lock.py", "one at a time: acquire and release, and with"),
        Lesson("deadlock", "deadlock.py", "a thread that waits for itself"),
        Lesson("rlock", "rlock.py", "a lock that its owner may take again"),
        Lesson("semaphore", "semaphore.py", "no more connections than the server has"),
        Lesson("event", "event.py", "workers that are told of new data"),
        Lesson("condition", "condition.py", "a consumer that waits until the queue has something"),
        Lesson("barrier", "barrier.py", "nobody in phase two while one is in phase one"),
        Lesson("bank-lock", "bank_lock.py", "a thread lock mends one process", needs_postgres=True),
        Lesson("bank-instances", "bank_instances.py", "and fails across two", needs_postgres=True),
        Lesson("bank-row-lock", "bank_row_lock.py", "the lock at the source of truth", needs_postgres=True),
        Lesson("float-money", "float_money.py", "why balances are whole numbers"),
        Lesson("gil", "gil.py", "what the GIL keeps whole, and what not"),
    )
}
"""In the order of the talk."""


def lesson_named(name: str) -> Lesson:
    """Return a lesson. Raises CannotStart for a name that does not exist, with the nearest that does."""
    if name in LESSONS:
        return LESSONS[name]
    raise unknown("lesson", name, LESSONS)


def run(lesson: Lesson, *, step: bool = False, environment: Mapping[str, str] | None = None) -> int:
    """Run a lesson with our own output and input, and return its exit code.

    With ``step`` it waits for keys, and so for as long as it takes. Raises BankError if it does not end in time.
    """
    if not lesson.path.is_file():
        raise CannotStart(f"{lesson.path} is missing: install bankrun again")
    command = [sys.executable, str(lesson.path), *(["--step"] if step else [])]
    env = dict(os.environ if environment is None else environment)
    env.pop("PYTHONSAFEPATH", None)  # a lesson imports what stands beside it
    with _interrupts_are_ours():
        process = subprocess.Popen(command, env=env)
    try:
        code = process.wait(None if step else SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        raise BankError(f"the lesson {lesson.name} did not end in {SECONDS_MAX:g} s, and was ended") from error
    except BaseException:
        _end(process)
        raise
    return 128 - code if code < 0 else code


@contextmanager
def _interrupts_are_ours() -> Iterator[None]:
    """Keep Ctrl-C from a process that is started in the block: it gets a SIGTERM from us, once, wherever it is."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
