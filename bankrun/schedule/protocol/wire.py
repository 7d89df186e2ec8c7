"""Postgres' frontend/backend protocol, version 3, as bytes: frames in, frames out, no socket.

https://www.postgresql.org/docs/18/protocol-message-formats.html

A relay must pass on exactly what it received, so a frame keeps its bytes, and only what a scheduler has to know is
decoded. Memory is bounded by one message; whatever cannot be decoded raises WireError and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from bankrun.schedule.errors import WireError

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
VALUE_CHARACTERS_MAX = 10_000
COUNT_DIGITS_MAX = 20  # of a uint64: the most rows that a server counts
STARTUP_BYTES_MAX = 10_000  # MAX_STARTUP_PACKET_LENGTH, src/include/libpq/pqcomm.h
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
PROTOCOL_MAJOR = 3

_LENGTH = struct.Struct("!I")


class Frame(NamedTuple):
    """One message: its type byte (none for a start-up packet) and what follows the length."""

    kind: bytes
    body: bytes

    def encode(self) -> bytes:
        """Return the message as it travels."""
        return self.kind + _LENGTH.pack(len(self.body) + 4) + self.body


SYNC = Frame(b"S", b"").encode()
FLUSH = Frame(b"H", b"").encode()
TERMINATE = Frame(b"X", b"").encode()
CLOSE_UNNAMED_PORTAL = Frame(b"C", b"P\0").encode()


class FrameReader:
    """Cuts a stream into frames. It holds at most one incomplete message."""

    def __init__(self, *, startup: bool = False, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.startup = startup
        self._bytes_max = bytes_max
        self._unread = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._unread += data

    def frames(self) -> Iterator[Frame]:
        """Return the complete messages, one after the other. Raises WireError for a length that cannot be one."""
        while (frame := self._next()) is not None:
            yield frame
        if self._at:
            del self._unread[: self._at]
            self._at = 0

    def _next(self) -> Frame | None:
        head = 0 if self.startup else 1
        if len(self._unread) - self._at < head + 4:
            return None
        (length,) = _LENGTH.unpack_from(self._unread, self._at + head)
        bytes_max = STARTUP_BYTES_MAX if self.startup else self._bytes_max
        if not 4 <= length <= bytes_max or (self.startup and length < 8):
            raise WireError(f"a message of {length} bytes: no Postgres client or server sends that")
        end = self._at + head + length
        if len(self._unread) < end:
            return None
        kind = bytes(self._unread[self._at : self._at + head])
        body = bytes(self._unread[self._at + head + 4 : end])
        self._at = end
        return Frame(kind, body)


def split(body: bytes, count: int) -> list[bytes]:
    """Return ``count`` strings that end in zero bytes, and what follows them. Raises WireError if there are fewer."""
    parts = body.split(b"\0", count)
    if len(parts) <= count:
        raise WireError("a string without its end")
    return parts


def text(value: bytes) -> str:
    """Return text for people: what is not UTF-8 is shown as a replacement character."""
    return value.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Startup:
    """The first packet of a connection: a request code, or the parameters of a session."""

    code: int
    parameters: Mapping[str, str]

    @property
    def wants_replication(self) -> bool:
        """Whether this is a replication connection (manual, section 54.4)."""
        return self.parameters.get("replication", "false").lower() not in ("", "false", "off", "no", "0")


def read_startup(body: bytes) -> Startup:
    """Decode a start-up packet; the parameters of a cancel, SSL or GSS request are empty."""
    (code,) = _LENGTH.unpack_from(body)
    if code in (SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST):
        return Startup(code, {})
    if code >> 16 != PROTOCOL_MAJOR:
        raise WireError(f"protocol {code >> 16}.{code & 0xFFFF} is not spoken here, only 3")
    words = body[4:].split(b"\0")
    names = words[::2]
    parameters = {text(name): text(value) for name, value in zip(names, words[1::2], strict=False) if name}
    return Startup(code, parameters)


def with_parameter(body: bytes, name: str, value: str) -> bytes:
    """Return a start-up packet's body with one more parameter, behind all others."""
    return body.removesuffix(b"\0") + name.encode() + b"\0" + value.encode() + b"\0\0"


def read_parse(body: bytes) -> tuple[bytes, bytes, tuple[int, ...]]:
    """Return a Parse message's statement name, its SQL, and the parameter types that it names."""
    name, sql, rest = split(body, 2)
    (count,) = _unpack("!H", rest)
    return name, sql, _unpack(f"!{count}I", rest, 2)


def read_bind(body: bytes, types: tuple[int, ...] = ()) -> tuple[bytes, bytes, tuple[str | None, ...]]:
    """Return a Bind message's portal, its statement, and the values, as text."""
    portal, statement, rest = split(body, 2)
    (count,) = _unpack("!H", rest)
    formats = _unpack(f"!{count}H", rest, 2)
    at = 2 + 2 * count
    (count,) = _unpack("!H", rest, at)
    at += 2
    values: list[str | None] = []
    for number in range(count):
        (length,) = _unpack("!i", rest, at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        value = rest[at : at + length]
        if len(value) < length:
            raise WireError("a parameter without its end")
        at += length
        binary = formats[min(number, len(formats) - 1)] if formats else 0
        values.append(show_binary(value, types[number] if number < len(types) else 0) if binary else text(value))
    return portal, statement, tuple(values)


_INTEGERS = {21: "!h", 23: "!i", 20: "!q", 26: "!I", 700: "!f", 701: "!d"}


def show_binary(value: bytes, type_oid: int) -> str:
    """Return a value in binary format as text where its type is known, else as hexadecimal digits."""
    layout = _INTEGERS.get(type_oid)
    if layout is not None and len(value) == struct.calcsize(layout):
        return str(struct.unpack(layout, value)[0])
    if type_oid in (25, 1043, 19, 114):
        return text(value)
    if type_oid == 16 and len(value) == 1:
        return "true" if value != b"\0" else "false"
    if type_oid == 2950 and len(value) == 16:
        return str(UUID(bytes=value))
    return f"\\x{value.hex()}"


def read_execute(body: bytes) -> tuple[bytes, int]:
    """Return an Execute message's portal and how many rows it wants, 0 for all."""
    portal, rest = split(body, 1)
    (rows_max,) = _unpack("!I", rest)
    return portal, rows_max


def read_target(body: bytes) -> tuple[bytes, bytes]:
    """Return what a Describe or Close names: ``S`` for a statement or ``P`` for a portal, and its name."""
    return body[:1], split(body[1:], 1)[0]


def read_fields(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse or a NoticeResponse, by their letters (manual, section 54.8)."""
    return {chr(field[0]): text(field[1:]) for field in body.split(b"\0") if field}


def read_key(body: bytes) -> int:
    """Return the process id in a BackendKeyData message."""
    return int(_unpack("!I", body)[0])


def read_columns(body: bytes) -> tuple[tuple[int, bool], ...]:
    """Return the type of each column in a RowDescription, and whether its values come in binary format."""
    (count,) = _unpack("!H", body)
    at = 2
    columns: list[tuple[int, bool]] = []
    for _ in range(count):
        at = body.find(b"\0", at) + 1
        if not at:
            raise WireError("a string without its end")
        _, _, type_oid, _, _, binary = _unpack("!IhIhih", body, at)
        columns.append((type_oid, bool(binary)))
        at += 18
    return tuple(columns)


def read_row(body: bytes, columns: tuple[tuple[int, bool], ...], length_max: int) -> tuple[str | None, ...]:
    """Return the values of a DataRow as text, each cut to ``length_max`` characters."""
    values: list[str | None] = []
    at = 2
    for type_oid, binary in columns:
        (length,) = _unpack("!i", body, at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        value = body[at : at + length]
        at += length
        values.append((show_binary(value, type_oid) if binary else text(value))[:length_max])
    return tuple(values)


def read_text_row(body: bytes) -> tuple[str | None, ...]:
    """Return the values of a DataRow that were asked for by a simple Query: all are text."""
    (count,) = _unpack("!H", body, 0)
    return read_row(body, ((0, False),) * count, VALUE_CHARACTERS_MAX)


def read_tag(body: bytes) -> tuple[str, int | None]:
    """Return the command that completed, and how many rows it returned or changed, where it says that."""
    words = text(body.rstrip(b"\0")).split()
    counts: list[str] = []
    while words and words[-1].isascii() and words[-1].isdecimal():
        counts.append(words.pop())
    if counts and len(counts[0]) > COUNT_DIGITS_MAX:
        raise WireError(f"a count of {len(counts[0])} digits")
    return " ".join(words), int(counts[0]) if counts else None


def error_response(sqlstate: str, message: str, severity: str = "ERROR") -> bytes:
    """Return an ErrorResponse of our own."""
    fields = (("S", severity), ("V", severity), ("C", sqlstate), ("M", message))
    return Frame(b"E", b"".join(f"{k}{v}".encode() + b"\0" for k, v in fields) + b"\0").encode()


def parse_message(sql: bytes) -> bytes:
    """Return a Parse of an unnamed statement."""
    return Frame(b"P", b"\0" + sql + b"\0\0\0").encode()


def query_message(sql: bytes) -> bytes:
    """Return a simple Query."""
    return Frame(b"Q", sql + b"\0").encode()


BIND_UNNAMED = Frame(b"B", b"\0\0\0\0\0\0\0\0").encode()
DESCRIBE_UNNAMED = Frame(b"D", b"P\0").encode()
EXECUTE_UNNAMED = Frame(b"E", b"\0\0\0\0\0").encode()


def _unpack(layout: str, data: bytes, at: int = 0) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error as error:
        raise WireError(f"a message that ends too early: {error}") from error
