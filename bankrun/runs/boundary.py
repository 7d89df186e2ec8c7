"""Where bankrun meets bank and workers: one CannotStart for callers, one name for what a lost server raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bank import errors as bank_errors
from bank.errors import BankError
from bank.postgres.database import first_line
from bankrun.errors import BankrunError, CannotStart
from workers import errors as worker_errors

LOST_SERVER = (BankrunError, *worker_errors.LOST_SERVER)
"""What the lab itself meets while servers are away."""


@contextmanager
def convert_errors() -> Iterator[None]:
    """Raise the bank's CannotStart as bankrun's, in a block or (as a decorator) in a function; the sentence stays."""
    try:
        yield
    except bank_errors.CannotStart as error:
        raise CannotStart(str(error)) from error


@contextmanager
def name_lost_server() -> Iterator[None]:
    """Raise what a driver raises for a lost server as BankError, in one sentence, in a block or a function."""
    try:
        yield
    except (BankError, BankrunError):
        raise
    except LOST_SERVER as error:
        raise BankError(f"a server is away: {first_line(error)}") from error
