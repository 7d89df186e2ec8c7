"""The one reader and the one writer of results.

A file is written whole or not at all, never over one that is read, and known to be writable before the work begins. It
is read bounded, as JSON without surprises, and checked by the type of its kind before anything is made of it. This
module knows no bank: the module of a kind is imported when a file of that kind is read.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import ValidationError

from bankrun.environ import check_packages
from bankrun.errors import BankrunError, CannotStart
from bankrun.quoting import printable
from bankrun.results.provenance import SCHEMA, Provenance
from bankrun.results.reading import read_plain

STDOUT = "-"
KINDS = {
    "comparison": "bankrun.results.models.comparison",
    "proof": "bankrun.results.models.proof",
    "chaos": "bankrun.results.models.chaos",
    "soak": "bankrun.results.models.soak",
    "bench": "bankrun.results.models.bench",
    "trial": "bankrun.results.models.trial",
}
"""The module of each kind; its ``parse`` returns a result from the plain values of a file, or raises ValueError."""
WITHOUT_BANK = {"proof", "bench", "trial"}
"""The kinds that can be read in a project whose own ``bank`` package is found before ours."""


_stdout: ContextVar[int | None] = ContextVar("stdout", default=None)
"""Where stdout led before it was reserved."""


class Result(Protocol):
    """What was found, of whatever kind."""

    kind: ClassVar[str]
    provenance: Provenance

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""


R = TypeVar("R", bound=Result)


def read(path: Path) -> Result:
    """Return the result in a file. Raises CannotStart, in one sentence, if it is none or is damaged."""
    return _read(path)


def read_as(kind: type[R], path: Path) -> R:
    """Return the result in a file, which must be of one kind. Raises CannotStart as ``read`` does."""
    found = _read(path, kind.kind)
    assert isinstance(found, kind)
    return found


def _read(path: Path, wanted: str | None = None) -> Result:
    try:
        plain = read_plain(path)
    except (OSError, ValueError) as error:
        raise CannotStart(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    kind = _check_kind(path, plain)
    if wanted not in (None, kind):
        raise CannotStart(f"{path} holds a result of the kind {kind}; a {wanted} is needed")
    if kind not in WITHOUT_BANK:
        check_packages()
    try:
        result: Result = import_module(KINDS[kind]).parse(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CannotStart(f"{path} is not a whole result of bankrun: {where or 'it'}: {first['msg']}") from None
    except ValueError as error:
        raise CannotStart(f"{path} is not a whole result of bankrun: {error}") from error
    return result


def _check_kind(path: Path, plain: Any) -> str:
    """Return of which kind the result is that a file holds. Raises CannotStart if it is none that is known."""
    if not isinstance(plain, dict) or type(plain.get("schema")) is not int or plain["schema"] < SCHEMA:
        raise CannotStart(f"{path} is not a result of bankrun")
    if plain["schema"] > SCHEMA:
        raise CannotStart(f"{path} was made by a newer bankrun: its schema is {plain['schema']}, this reads {SCHEMA}")
    kind = kind_of(plain)
    if kind not in KINDS:
        raise CannotStart(f"{path} was made by a newer bankrun: this one knows no result of the kind {kind!r}")
    return kind


def kind_of(plain: dict[str, Any]) -> str:
    """Return of which kind a result is. Version 0.1 did not name it: there it shows in what the file has."""
    if "kind" in plain:
        return str(plain["kind"])
    for key, kind in (("cases", "proof"), ("rows", "bench"), ("plan", "soak")):
        if key in plain:
            return kind
    cells = plain.get("cells")
    first = cells[0] if isinstance(cells, list) and cells else None
    return "chaos" if isinstance(first, dict) and "fault" in first else "comparison"


def save(destination: str, result: Result) -> None:
    """Write a result as JSON. Raises BankrunError if that is impossible."""
    write(destination, json.dumps(result.as_json(), indent=1) + "\n")


def reserve_stdout() -> None:
    """Keep stdout for ``write``. What anything else prints there from now on goes to stderr.

    Strategies of users print, in this process and in those that it starts; an export must be an export and no more.
    """
    ours, others = sys.__stdout__, sys.__stderr__
    if ours is None or others is None or sys.stdout is not ours or _stdout.get() is not None:
        return
    ours.flush()
    _stdout.set(os.dup(ours.fileno()))
    os.dup2(others.fileno(), ours.fileno())


def _print(text: str) -> None:
    reserved = _stdout.get()
    if sys.stdout.isatty() if reserved is None else os.isatty(reserved):
        text = printable(text)
    if reserved is None:
        print(text, end="")
        return
    left = text.encode(sys.stdout.encoding, sys.stdout.errors or "strict")
    while left:
        left = left[os.write(reserved, left) :]


def write(destination: str, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a half. ``-`` is stdout.

    What is no regular file, a pipe or a device, is written to and never replaced. A terminal gets what is printable.
    Raises BankrunError.
    """
    if destination == STDOUT:
        _print(text)
        return
    path = _resolve(destination)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BankrunError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is gone already, unless something, be it Ctrl-C, came between
            temporary.unlink()


def check_writable(*destinations: str, inputs: Sequence[Path] = ()) -> None:
    """Raise CannotStart, in one sentence, if results could not be written there.

    Nor may two of them go to one place, or one to a file that is read, by whatever name.
    """
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
        for given in inputs:
            if destination != STDOUT and _is_same(destination, given):
                raise CannotStart(f"{destination} is the file {given}, which is read: write to another one")


def _is_same(one: str, other: Path) -> bool:
    """Whether both are one file that is there: by a link of whatever kind, or a name from another folder, too."""
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def _try(destination: str) -> None:
    if destination == STDOUT:
        return
    if not destination:
        raise ValueError("a file needs a name")
    path = _resolve(destination)
    if path.is_dir():
        raise IsADirectoryError(None, "it is a directory")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(None, "it is read-only")
    if not path.exists() or path.is_file():
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass


def _resolve(destination: str) -> Path:
    """Return the file behind a link: replacing the link itself would leave the file as it was."""
    return Path(os.path.realpath(destination))
