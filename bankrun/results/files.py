"""Writing results: whole or not at all, and known to be possible before the work begins."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from bank.errors import BankError, CannotStart

STDOUT = "-"


def check_writable(*destinations: str) -> None:
    """Raise CannotStart, in one sentence, if results could not be written there, or two of them to one place."""
    seen: set[str] = set()
    for destination in destinations:
        try:
            place = destination if destination == STDOUT else os.path.realpath(destination)
            _try(destination)
        except (OSError, ValueError) as error:
            raise CannotStart(f"cannot write {destination!r}: {getattr(error, 'strerror', None) or error}") from error
        if place in seen:
            raise CannotStart(f"two exports to {destination} would be mixed up: give one of them another file")
        seen.add(place)


def _try(destination: str) -> None:
    if destination == STDOUT:
        return
    if not destination:
        raise ValueError("a file needs a name")
    path = _resolved(destination)
    if path.is_dir():
        raise IsADirectoryError(None, "it is a directory")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(None, "it is read-only")
    if not path.exists() or path.is_file():
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass


def _resolved(destination: str) -> Path:
    """Return the file behind a link: replacing the link itself would leave the file as it was."""
    return Path(os.path.realpath(destination))


def write(destination: str, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a half. ``-`` is stdout.

    What is no regular file, a pipe or a device, is written to and never replaced.
    """
    if destination == STDOUT:
        print(text, end="")
        return
    path = _resolved(destination)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        with temporary.open("w", encoding="utf-8") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BankError(f"cannot write {destination}: {error.strerror or error}") from error


def read_result(path: Path) -> dict[str, Any]:
    """Return a saved result. Raises CannotStart if that is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotStart(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if (
        not isinstance(result, dict)
        or result.get("schema") != 1
        or not isinstance(result.get("cells") or result.get("cases"), list)
    ):
        raise CannotStart(f"{path} is not a result of bankrun")
    return result
