"""Writing results: whole or not at all, and known to be possible before the work begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bank.errors import BankError, CannotStart

STDOUT = "-"


def check_writable(destination: str) -> None:
    """Raise CannotStart, in one sentence, if a result could not be written there."""
    if destination == STDOUT:
        return
    path = Path(destination)
    if path.is_dir():
        raise CannotStart(f"cannot write {destination}: it is a directory")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise CannotStart(f"cannot write {destination}: {error.strerror or error}") from error


def write(destination: str, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a half. ``-`` is stdout."""
    if destination == STDOUT:
        print(text, end="")
        return
    path = Path(destination)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BankError(f"cannot write {destination}: {error.strerror or error}") from error
