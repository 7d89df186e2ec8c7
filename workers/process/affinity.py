"""Which core an instance stays on.

The threads of one Python process take turns, whatever number of cores they are spread over. On two cores each turn
finds the interpreter's data in the other one's cache; on one it finds them where it left them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from bank.errors import CannotStart


def usable_cores() -> list[int]:
    """Return the cores on which this process may run, or none where the system keeps no process to a core."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def cores_for(names: Sequence[str]) -> dict[str, int]:
    """Return a core for each instance, in turn, if there are at least as many instances as cores.

    Otherwise none: the system knows better which cores are idle, and which are fast. Nor for a Python without a GIL,
    whose threads do run at the same time.
    """
    cores = usable_cores()
    takes_turns = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not cores or len(names) < len(cores) or not takes_turns:
        return {}
    return {name: cores[number % len(cores)] for number, name in enumerate(names)}


def stay_on(core: int) -> None:
    """Keep this thread, and those that it starts from now on, to one core. Raises CannotStart if that cannot be."""
    if core not in usable_cores():
        raise CannotStart(f"BANKRUN_CORE={core}: this process may use {usable_cores() or 'no core by its number'}")
    os.sched_setaffinity(0, {core})
