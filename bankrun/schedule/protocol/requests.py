"""What a client asks for: requests, cut from the stream of its messages.

A request is what may be released by itself: a simple Query, or one Execute with the Parse, Bind and Describe before it,
or a batch that executes nothing, or the end of a session. What it is, its messages say; what the statement in it is,
only Postgres says, afterwards, in the tag of its CommandComplete.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from bankrun.schedule.errors import WireError
from bankrun.schedule.protocol import wire
from bankrun.schedule.protocol.wire import Frame

REMEMBERED_STATEMENTS_MAX = 4096
"""How many prepared statements are remembered for a connection; those that are forgotten are shown as unknown."""
BATCH_MESSAGES_MAX = 100_000


class Kind(Enum):
    """What a request makes Postgres do."""

    STATEMENT = "statement"
    """Executes something."""
    PREPARE = "prepare"
    """Parses, binds, describes or closes, and executes nothing."""
    COMMIT = "commit"
    """The Sync at which Postgres commits a statement that stands outside a transaction block (manual, 54.2.3)."""
    LEAVE = "leave"
    """Ends the session."""


@dataclass(slots=True)
class Request:
    """A request of a client, and what came of it."""

    kind: Kind
    sql: str = ""
    parameters: tuple[str | None, ...] = ()
    frames: Sequence[Frame] = ()
    ends: str = "sync"
    """How the batch goes on after it: ``sync``, ``flush``, or ``query`` for a simple Query."""
    tags: list[str] = field(default_factory=list)
    rows: int | None = None
    values: list[tuple[str | None, ...]] = field(default_factory=list)
    """The first rows that it returned, as text."""
    sqlstate: str | None = None
    message: str = ""
    unsplit: bool = False
    """Several statements in one Query: nothing can stand between them."""
    plans: int = 0
    """How many plans were told while it ran."""
    transactions: int = 0
    """How many transactions began while it ran: more than one only if it ends one in its middle."""
    caught: bool = False
    """Whether an error was raised and caught inside it, as a block with EXCEPTION does."""

    @property
    def text(self) -> bytes:
        """The statement as it was sent in a simple Query."""
        return self.frames[0].body.rstrip(b"\0") if self.ends == "query" else b""


class RequestReader:
    """Collects a client's messages and cuts them into requests."""

    def __init__(self) -> None:
        self._batch: list[Frame] = []
        self._statements: OrderedDict[bytes, tuple[bytes, tuple[int, ...]]] = OrderedDict()
        self._portals: OrderedDict[bytes, tuple[str, tuple[str | None, ...]]] = OrderedDict()

    def read(self, frame: Frame) -> list[Request]:
        """Return the requests that this message completes. Raises WireError for a message that no client sends."""
        if frame.kind == b"Q":
            sql = wire.text(frame.body.rstrip(b"\0"))
            return [Request(Kind.STATEMENT, sql, frames=(frame,), ends="query")]
        if frame.kind == b"X":
            return [Request(Kind.LEAVE)]
        if frame.kind in (b"S", b"H"):
            return self._cut(frame)
        if frame.kind not in (b"P", b"B", b"D", b"E", b"C"):
            raise WireError(f"a message of type {frame.kind!r} from a client")
        if len(self._batch) >= BATCH_MESSAGES_MAX:
            raise WireError(f"more than {BATCH_MESSAGES_MAX:,} messages without a Sync")
        self._batch.append(frame)
        return []

    def _cut(self, end: Frame) -> list[Request]:
        batch, self._batch = self._batch, []
        ends = "sync" if end.kind == b"S" else "flush"
        if not batch and ends == "flush":
            return []
        requests: list[Request] = []
        part: list[Frame] = []
        for frame in batch:
            part.append(frame)
            self._remember(frame)
            if frame.kind == b"E":
                portal, _ = wire.read_execute(frame.body)
                sql, parameters = self._portals.get(portal, ("(a statement that was prepared long ago)", ()))
                requests.append(Request(Kind.STATEMENT, sql, parameters, part, "flush"))
                part = []
        if not requests:
            return [Request(Kind.PREPARE, frames=part, ends=ends)]
        requests[-1].frames = [*requests[-1].frames, *part]
        requests[-1].ends = ends
        return requests

    def _remember(self, frame: Frame) -> None:
        if frame.kind == b"P":
            name, sql, types = wire.read_parse(frame.body)
            self._statements[name] = (sql, types)
            if len(self._statements) > REMEMBERED_STATEMENTS_MAX:
                self._statements.popitem(last=False)
        elif frame.kind == b"B":
            _, statement, _ = wire.split(frame.body, 2)
            sql, types = self._statements.get(statement, (b"(a statement that was prepared long ago)", ()))
            portal, _, parameters = wire.read_bind(frame.body, types)
            self._portals[portal] = (wire.text(sql), parameters)
            if len(self._portals) > REMEMBERED_STATEMENTS_MAX:
                self._portals.popitem(last=False)
        elif frame.kind in (b"C", b"D"):
            target, name = wire.read_target(frame.body)
            if frame.kind == b"C":
                (self._statements if target == b"S" else self._portals).pop(name, None)


def answers_to(frames: Sequence[Frame]) -> list[str]:
    """Return which answers these messages get, in order: the type of each, ``E`` for the end of an Execute."""
    expected = {b"P": "1", b"B": "2", b"C": "3", b"D": "D", b"E": "E"}
    return [expected[frame.kind] for frame in frames]
