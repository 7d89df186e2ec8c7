"""Values in pieces: which parts of a value may have been generated (an id, a uuid, a time, a token), and which not.

Every piece is text, so that an id is the same piece in its column, in another table, in a result and in a printed line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

SLOT = "\0"
"""Stands in a pattern where a generated piece was."""
RANDOM_LENGTH_MIN = 8  # secrets.token_hex(4); what is shorter may be equal by chance
LONG_DIGITS_MIN = 15  # microseconds since 1970 have 16 digits, and distributed ids about 18
FRACTION_DIGITS_MIN = 4  # a time that is finer than a millisecond: two of them are equal only if they were copied

_PIECES = re.compile(
    r"(?P<uuid>\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b)"
    r"|(?P<time>\b(?:\d{4}-\d\d-\d\d[T ])?\d\d:\d\d:\d\d(?:\.(?P<fraction>\d+))?(?:[+-]\d\d(?::?\d\d)?|Z)?)"
    r"|(?P<number>(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w))"
    r"|(?P<word>\w+)"
)


@dataclass(frozen=True, slots=True)
class Windows:
    """The ranges that sequences draw from, no two of which meet: who draws an id is known by its value."""

    ranges: Sequence[range] = ()

    def __contains__(self, number: int) -> bool:
        return any(number in one for one in self.ranges)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A value with its generated pieces taken out: ``shape`` is what is left, ``pieces`` what was taken."""

    shape: Any
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cutter:
    """Takes values apart. A piece in ``constants`` is not generated, whatever it looks like."""

    windows: Windows = field(default_factory=Windows)
    constants: Collection[str] = frozenset()

    def cut(self, value: Any) -> Pattern:
        """Return a value's pattern; lists and objects are cut leaf by leaf."""
        pieces: list[str] = []
        return Pattern(self._shape(value, pieces), tuple(pieces))

    def _shape(self, value: Any, pieces: list[str]) -> Any:
        if value is None or isinstance(value, bool):
            return (type(value).__name__, value)
        if isinstance(value, (int, float, Decimal)):
            return ("number", self._number(value, pieces))
        if isinstance(value, dict):
            return ("object", tuple((key, self._shape(value[key], pieces)) for key in sorted(value)))
        if isinstance(value, (list, tuple)):
            return ("list", tuple(self._shape(one, pieces) for one in value))
        return ("text", self._text(str(value), pieces))

    def _number(self, value: float | Decimal, pieces: list[str]) -> Any:
        if (isinstance(value, int) or not math.isnan(value)) and self._is_generated(str(value), "number"):
            pieces.append(str(value))
            return SLOT
        return str(value) if math.isnan(value) else value

    def _text(self, value: str, pieces: list[str]) -> str:
        def take(found: re.Match[str]) -> str:
            if not self._is_generated(found[0], found.lastgroup or ""):
                return found[0]
            pieces.append(found[0])
            return SLOT

        return _PIECES.sub(take, value)

    def _is_generated(self, piece: str, kind: str) -> bool:
        if piece in self.constants:
            return False
        if kind in ("uuid", "time", "fraction"):
            return True
        if kind == "number":
            if not piece.lstrip("-").replace(".", "", 1).isdecimal():  # 1E-7, or infinite
                return len(Decimal(piece).as_tuple().digits) >= LONG_DIGITS_MIN
            whole, _, fraction = piece.lstrip("-").partition(".")
            if fraction:
                return len(whole) + len(fraction) >= LONG_DIGITS_MIN
            return len(whole) >= LONG_DIGITS_MIN or int(piece) in self.windows
        return len(piece) >= RANDOM_LENGTH_MIN or (piece.isdecimal() and piece.isascii() and int(piece) in self.windows)


def find_pieces(value: Any, windows: Windows) -> Iterator[str]:
    """Return all pieces of a value that look generated."""
    yield from Cutter(windows).cut(value).pieces


def is_coarse(value: Any) -> bool | None:
    """Return whether the times in a value are no finer than a millisecond; None where there is no time."""
    fractions = [found["fraction"] or "" for text in _texts(value) for found in _PIECES.finditer(text) if found["time"]]
    return all(len(fraction) < FRACTION_DIGITS_MIN for fraction in fractions) if fractions else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
