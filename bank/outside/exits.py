"""A user's code that calls os._exit: told as a fault of its own, in place of an end of the process without a word."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from bank.outside.places import OURS, is_theirs, stack_from, top_of

_end = os._exit


class ProcessExit(SystemExit):
    """Raised in place of an os._exit by which a strategy would end a process of ours; ``code`` is its status."""


class CaughtExit:
    """What os._exit is once a strategy from outside has been loaded.

    It raises ProcessExit where a user's code calls it that was called by ours. Everything else ends the process: the
    standard library, we ourselves, a user's own thread, and what a strategy has forked.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.modules: set[str] = set()

    def __call__(self, status: int) -> NoReturn:
        """End the process, or the call of the strategy."""
        caller, *callers = stack_from(sys._getframe(1))  # noqa: SLF001 - no other way to look
        in_our_hands = any(top_of(spot.module) in OURS for spot in callers)
        if os.getpid() == self.process and in_our_hands and any(is_theirs(caller, one) for one in self.modules):
            raise ProcessExit(status)
        _end(status)


def catch_exits(module: str) -> None:
    """Have this process tell of code of this module that calls os._exit, or of code beside it."""
    caught = os._exit
    if not isinstance(caught, CaughtExit) or caught.process != os.getpid():
        os._exit = caught = CaughtExit()
    caught.modules.add(module)
