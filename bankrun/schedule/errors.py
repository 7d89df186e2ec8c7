"""What can go wrong while programs are scheduled; each message names the thing and says what to do."""

from __future__ import annotations

from bankrun.errors import BankrunError


class ScheduleError(BankrunError):
    """The engine cannot go on."""


class WireError(ScheduleError):
    """What was received is not Postgres' protocol, version 3."""


class Unsupported(ScheduleError):
    """A program uses something that the engine refuses to schedule."""


class Stuck(ScheduleError):
    """A participant neither goes on, nor ends, nor waits for anything that can be seen."""


class Diverged(ScheduleError):
    """A schedule cannot be followed: a participant that should take a step cannot."""


class NotStarted(ScheduleError):
    """A participant or a server could not be started or reached."""


class Failed(ScheduleError):
    """A callback of the caller's, or a participant's process, failed in a way that is no outcome."""
