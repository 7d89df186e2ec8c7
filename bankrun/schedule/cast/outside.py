"""Whether a process sleeps, for as long as it takes, on something that is not Postgres: asked of Linux' /proc.

A heuristic, from outside and without the program's help: all its threads are in system calls that wait without a
time-out, and none of them has been on a processor since we looked before. Elsewhere than on Linux nothing is known.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ASLEEP_SECONDS = 0.010
UNKNOWN_SECONDS = 0.5
"""Where /proc does not tell: this long without any sign counts as waiting."""

# x86-64's system calls that wait, and which argument is the time-out (None: it has none).
_WAITS = {
    202: 3,
    7: 2,
    232: 3,
    281: 3,
    73: None,
    72: None,
    0: None,
    45: None,
    61: None,
    247: None,
    271: 2,
    23: 4,
    270: 4,
}
_MINUS_ONE_MEANS_FOREVER = (7, 232, 281)
_FUTEX = 202  # its time-out is a pointer that may be left over from an earlier call


def is_known() -> bool:
    """Whether this system tells."""
    return sys.platform == "linux" and os.uname().machine == "x86_64"


def signature(pid: int, thread: int = 0, *, endless: bool = True) -> tuple[object, ...] | None:
    """Return something that stays the same while a thread sleeps (0: all of a process), and all that it has started.

    None if one of them does not sleep: for good, if ``endless``.
    """
    threads: list[object] = []
    try:
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            if thread and task.name != str(thread):
                continue
            status = (task / "status").read_text().splitlines()
            call = (task / "syscall").read_text().split()
            if call[0] in ("running", "-1") or (endless and not _is_endless(call)):
                return None
            threads.append((task.name, call[0], *(line for line in status if "ctxt_switches" in line)))
            for child in (task / "children").read_text().split():  # what it waits for may be its child's work
                found = signature(int(child), endless=endless)
                if found is None and _is_alive(child):
                    return None
                threads.append(found)
    except (OSError, IndexError):
        return None
    return tuple(threads) or None


def _is_alive(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _is_endless(call: list[str]) -> bool:
    number = int(call[0])
    if number not in _WAITS:
        return False
    argument = _WAITS[number]
    if argument is None or number == _FUTEX:
        return True
    timeout = int(call[1 + argument], 16)
    if number in _MINUS_ONE_MEANS_FOREVER:
        return timeout & 0xFFFFFFFF == 0xFFFFFFFF
    return timeout == 0


class Watch:
    """Remembers since when each participant has been asleep."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, tuple[object, ...] | None]] = {}

    def begin(self) -> None:
        """Forget: something was released."""
        self._seen.clear()

    def is_asleep(self, name: str, pid: int | None, thread: int = 0, *, endless: bool = True) -> bool:
        """Return whether this participant has been asleep for long enough; without ``endless``, also with an alarm."""
        now = time.monotonic()
        if not is_known() or pid is None:
            since, _ = self._seen.setdefault(name, (now, None))
            return now - since > UNKNOWN_SECONDS
        found = signature(pid, thread, endless=endless)
        since, before = self._seen.get(name, (now, None))
        if found is None or found != before:
            self._seen[name] = (now, found)
            return False
        return now - since > ASLEEP_SECONDS
