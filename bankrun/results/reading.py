"""A file as plain values: bounded, JSON without surprises, and then checked by the type of what it is to be.

Whatever a file may hold, reading it ends, in values that can be counted with, compared and written again, or in an
error that says in a sentence what is wrong.
"""

from __future__ import annotations

import json
import math
import os
import select
import stat
import time
from collections.abc import Hashable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from bankrun.results.provenance import Provenance

FILE_BYTES_MAX = 128 * 1024**2
PIPE_SECONDS_MAX = 30.0
"""How long a pipe may take until its other end is closed."""
DEPTH_MAX = 32
DIGITS_MAX = 30
READ_BYTES = 1024**2

T = TypeVar("T")


def read_bounded(path: Path, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """Return what is in a file, or comes through a pipe. Raises OSError, and ValueError if that does not end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else a pipe without a writer would be waited for here
    try:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise ValueError("it is a directory" if stat.S_ISDIR(status.st_mode) else "it is a device, and no file")
        data = bytearray()
        until = time.monotonic() + PIPE_SECONDS_MAX
        while max(len(data), status.st_size) <= bytes_max:
            if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
                raise ValueError(f"it is a pipe whose other end was not closed within {PIPE_SECONDS_MAX:g} s")
            part = os.read(descriptor, READ_BYTES)
            if not part:
                return bytes(data)
            data += part
    finally:
        os.close(descriptor)
    raise ValueError(f"it has more than {bytes_max // 1024**2} MB, the most that is read")


def read_plain(path: Path) -> Any:
    """Return what a JSON file holds: numbers of which each is one, text of whole characters, and not too deep.

    Raises OSError and ValueError.
    """
    try:
        plain = json.loads(read_bounded(path), parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep") from error
    _check(plain)
    return plain


def validate(kind: TypeAdapter[T], plain: dict[str, Any]) -> T:
    """Return a result of this kind. No value is taken for another: a number in quotes is no number.

    Raises pydantic's ValidationError, and what the types raise themselves.
    """
    head = {field.name: plain[field.name] for field in fields(Provenance) if field.name in plain}
    return kind.validate_json(json.dumps({**plain, "provenance": head}), strict=True)


def check_distinct(names: Iterable[Hashable]) -> None:
    """Raise ValueError if a name comes twice: of two cells with one name, neither can be told from the other."""
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{' '.join(name) if isinstance(name, tuple) else name} is there twice")
        seen.add(name)


def _whole(text: str) -> int:
    if len(text) > DIGITS_MAX:
        raise ValueError(f"{_shorten(text)} has more than {DIGITS_MAX} digits, as no number of a result has")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_shorten(text)} is not a number")
    if abs(value) >= 10.0**DIGITS_MAX:
        raise ValueError(f"{_shorten(text)} has more than {DIGITS_MAX} digits, as no number of a result has")
    return value


def _check(plain: Any) -> None:
    """Look at every value, level by level: recursion would end where Python's own does."""
    level = [plain]
    for _ in range(DEPTH_MAX):
        level = [inner for value in level for inner in _look_into(value)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH_MAX} deep")


def _look_into(value: Any) -> Iterable[Any]:
    """Return the values in a value. Raises ValueError for text that is none."""
    if isinstance(value, str):
        _check_text(value)
    if isinstance(value, dict):
        for key in value:
            _check_text(key)
        return value.values()
    return value if isinstance(value, list) else ()


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{_shorten(ascii(text))} has half of a character (a lone surrogate)") from error


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
