"""Every exception that bankrun raises on purpose.

    BankError
    ├── Refused              a business rule said no: definite, never retried
    │   ├── InsufficientFunds
    │   └── UnknownAccount
    ├── Transient            nothing is wrong with the transfer: the whole transaction again, bounded
    │   ├── NotAcquired      a lock was not taken in time: definite
    │   ├── Conflict         another transaction was in the way: definite
    │   ├── Unavailable      the server cannot do it now, a full disk for example: definite
    │   └── OutcomeUnknown   the connection died around COMMIT: ask the transfer's row
    ├── Rejected             a message that is not, or does not match, an accepted transfer
    ├── StrategyFault        a strategy failed in a way that is no outcome of a transfer: definite
    └── CannotStart          nothing was started: wrong usage, or a server that will not do
        ├── NotReady         a server does not answer, and may only be starting: waiting can help
        ├── Occupied         another lab is using the bank
        └── DoesNotFit       a class that is no strategy

A class's docstring is its message when it is raised without one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BankError(Exception):
    """Something in the bank went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else (self.__doc__ or "").strip())


class Refused(BankError):
    """A business rule refused the transfer."""


class InsufficientFunds(Refused):
    """The debit account does not hold enough."""


class UnknownAccount(Refused):
    """The transfer names an account that does not exist."""


class Transient(BankError):
    """Nothing is wrong with the transfer, and it did not take effect now."""


class NotAcquired(Transient):
    """The lock was not taken in time."""


class Conflict(Transient):
    """Another transaction was in the way."""

    def __init__(self, message: str | None = None, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Unavailable(Transient):
    """The server cannot do it now."""


class OutcomeUnknown(Transient):
    """The connection died while the transaction was in flight."""


class Rejected(BankError):
    """The message is not an accepted transfer."""


class StrategyFault(BankError):
    """A strategy failed: it raised what is no outcome, it hangs, or it keeps what is not its own."""

    def __init__(self, strategy: str, what: str) -> None:
        super().__init__(f"{strategy} {what}")
        self.strategy = strategy
        self.what = what


class CannotStart(BankError):
    """Nothing was started."""


class NotReady(CannotStart):
    """A server does not answer yet."""


class Occupied(CannotStart):
    """Another lab is using the bank."""


class DoesNotFit(CannotStart):
    """A class is no strategy."""


def unknown(kind: str, name: str, known: Iterable[str], also: str = "") -> CannotStart:
    """Return the error for a name that does not exist, with the nearest one that does, or all of them."""
    there = list(known)
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}"
    return CannotStart(f"there is no {kind} {name!r}: {hint}{also}")


def one_line(text: str, length_max: int) -> str:
    """Return text as a sentence or a log can hold it, wherever it came from: printable, in one line, and bounded."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= length_max else line[: length_max - 1] + "…"
