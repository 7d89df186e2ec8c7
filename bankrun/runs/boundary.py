"""Where the Python API meets the bank: callers see one CannotStart, whichever room it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bank import errors as bank_errors
from bankrun.errors import CannotStart


@contextmanager
def convert_errors() -> Iterator[None]:
    """Raise the bank's CannotStart as bankrun's, in a block or (as a decorator) in a function; the sentence stays."""
    try:
        yield
    except bank_errors.CannotStart as error:
        raise CannotStart(str(error)) from error
