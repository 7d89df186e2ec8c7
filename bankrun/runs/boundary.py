"""Where bankrun meets bank and workers: one CannotStart for callers, one name for what a lost server raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bank import errors as bank_errors
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
