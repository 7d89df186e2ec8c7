"""One connection, seen from between client and server: what is held, what is released, what came of it. No socket.

A request is held before the server sees its first message: Parse can take the snapshot already, and Bind can lock.
Outside a transaction block Postgres commits a statement at the Sync that follows it. So the statement is sent with a
Flush, and the Sync is a request of its own: another participant can stand between the two. A simple Query is sent as
Parse, Bind, Describe, Execute for that reason; where Postgres refuses that (several statements, 42601), as it was.

The unnamed portal would outlive the Sync inside a transaction, hold a snapshot, and keep its plan from being logged:
it is closed right after its Execute, and the answer to that is swallowed.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from bankrun.schedule.errors import Unsupported, WireError
from bankrun.schedule.protocol import wire
from bankrun.schedule.protocol.requests import BATCH_MESSAGES_MAX, Kind, Request, RequestReader, answers_to
from bankrun.schedule.protocol.wire import Frame, FrameReader

QUIET_TAGS = frozenset(
    {"BEGIN", "START TRANSACTION", "SET", "RESET", "SHOW", "SAVEPOINT", "RELEASE", "DEALLOCATE", "DEALLOCATE ALL"}
)
"""Commands that touch nothing that anybody else can see: they belong to the step that follows."""
REFUSED_TAGS = {
    "LISTEN": "LISTEN: what is notified depends on who listens when, and is not scheduled",
    "PREPARE TRANSACTION": "PREPARE TRANSACTION: a transaction would outlive its session",
}
TRIED_LOCK = "BR001"
"""The SQLSTATE under which a wrapped advisory lock function tells what leaves no trace: see ``prepare_database``."""
MESSAGES_FROM = "debug5"
"""From this level on, Postgres tells when a transaction or a subtransaction begins, ends and is given up (xact.c)."""
_RESEND_AS_IT_WAS = frozenset({"42601", "42P02", "08P01"})


class Phase(Enum):
    """How far a connection is."""

    STARTING = "starting"
    AUTHENTICATING = "authenticating"
    READY = "ready"
    LEAVING = "leaving"
    CLOSED = "closed"


VALUES_ROWS_MAX = 20
VALUE_LENGTH_MAX = 200
"""So much of what a statement returned is kept for stories."""


class Conversation:
    """A client and its server session. Feed it what either sends; send what it leaves in ``to_client``, ``to_server``.

    Raises WireError for bytes that are no protocol, and Unsupported for what is refused.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.phase = Phase.STARTING
        self.status = "I"
        """I outside a transaction block, T in one, E in one that failed."""
        self.pid = 0
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.cancel: bytes | None = None
        self.startup: wire.Startup | None = None
        self.startup_packet = b""
        self.greeting = bytearray()
        self.queue: deque[Request] = deque()
        self.running: Request | None = None
        self.done: list[Request] = []
        """Requests that completed since somebody last took them from here."""
        self.plans: list[str] = []
        self.tried: list[str] = []
        self.lazy = False
        """Whether a portal stays open: its plan will be told later."""
        self.is_waiting = False
        """Whether the server said that it still waits for a lock, and has looked for a deadlock in vain."""
        self.holds_sync = False
        self.client_is_gone = False
        self._client = FrameReader(startup=True)
        self._server = FrameReader()
        self._reader = RequestReader()
        self._expected: deque[str] = deque()
        self._awaits_ready = False
        self._explicit = False
        self._unsynced: list[str] = []
        self._skips = False
        self._resend: bytes | None = None
        self._hold_at_end = False
        self._copies_in = False
        self._then = bytearray()
        self._columns: tuple[tuple[int, bool], ...] = ()

    # What the client sends.

    def receive_from_client(self, data: bytes) -> None:
        """Take what the client sent."""
        self._client.feed(data)
        for frame in self._client.frames():
            if self.phase is Phase.STARTING:
                self._start(frame)
            elif self.phase is Phase.AUTHENTICATING:
                self.to_server += frame.encode()
            elif self.phase is Phase.READY:
                self._hear_client(frame)

    def client_left(self) -> None:
        """Take note that the client closed its socket: its session ends when that is released."""
        self.client_is_gone = True
        if self.phase in (Phase.STARTING, Phase.AUTHENTICATING):
            self.phase = Phase.CLOSED
        elif self.phase is Phase.READY and not any(request.kind is Kind.LEAVE for request in self.queue):
            self.queue.append(Request(Kind.LEAVE))

    def _start(self, frame: Frame) -> None:
        startup = wire.read_startup(frame.body)
        if startup.code in (wire.SSL_REQUEST, wire.GSS_REQUEST):
            self.to_client += b"N"
            return
        if startup.code == wire.CANCEL_REQUEST:
            self.cancel = frame.encode()
            self.phase = Phase.CLOSED
            return
        if startup.wants_replication:
            self.to_client += wire.error_response("0A000", "bankrun does not schedule replication", "FATAL")
            self.phase = Phase.CLOSED
            raise Unsupported("a replication connection: it reads the log, and is not scheduled")
        self._client.startup = False
        self.startup = startup
        told = wire.with_parameter(frame.body, "client_min_messages", MESSAGES_FROM)
        self.startup_packet = Frame(frame.kind, told).encode()
        self.phase = Phase.AUTHENTICATING
        self.to_server += self.startup_packet

    def greet_as(self, greeting: bytes, pid: int) -> None:
        """Begin on a session that is there already: tell the client what the server told when it was opened."""
        self.to_server.clear()
        self.to_client += greeting
        self.greeting += greeting
        self.pid = pid
        self.phase = Phase.READY

    def _hear_client(self, frame: Frame) -> None:
        if frame.kind in (b"d", b"c", b"f"):  # COPY data belong to the statement that runs
            self.to_server += frame.encode()
            if frame.kind != b"d" and not self._awaits_ready:
                self.to_server += wire.FLUSH  # the one that we sent was ignored, as all are during COPY
            return
        if frame.kind == b"F":
            raise Unsupported("a function call message, as large objects use it")
        requests = self._reader.read(frame)
        if self._copies_in and requests and requests[0].kind is Kind.PREPARE and not requests[0].frames:
            self._copies_in = False  # the server ignores a Sync during COPY, so clients send another: this one counts
            requests = requests[1:]
        self.queue.extend(requests)
        self._let_the_rest_flow()
        if len(self.queue) > BATCH_MESSAGES_MAX:
            raise WireError(f"more than {BATCH_MESSAGES_MAX:,} requests that nothing was answered yet")

    # Who stands before what.

    @property
    def is_busy(self) -> bool:
        """Whether the server has something to do for this client."""
        return self.running is not None

    @property
    def is_between_requests(self) -> bool:
        """Whether the session could be asked something else now, without anything of the client's being under way."""
        is_free = not (self.is_busy or self.holds_sync or self._unsynced or self._expected or self._awaits_ready)
        return is_free and self.phase is Phase.READY and self.status != "E"

    @property
    def pending(self) -> Request | None:
        """The request that is held, if the session could take it now."""
        if self.phase is not Phase.READY or self.is_busy:
            return None
        if self.holds_sync:
            return Request(Kind.COMMIT, sql="(commit of that statement)")
        if not self.queue:
            return None
        request = self.queue[0]
        if self._unsynced and request.kind is Kind.PREPARE and not request.frames:
            request.kind, request.sql = Kind.COMMIT, "(commit of those statements)"
        return request

    def release(self) -> Request:
        """Let the server see the request that is held, and return it."""
        request = self.pending
        assert request is not None
        if not self.holds_sync:
            self.queue.popleft()
        self.running = request
        if request.kind is Kind.LEAVE:
            self.phase = Phase.LEAVING
            self.to_server += wire.TERMINATE
        elif request.kind is Kind.COMMIT:
            self._sync()
        elif request.ends == "query":
            self._send_query(request)
        else:
            self._send_batch(request)
        return request

    def commit_at_once(self) -> None:
        """Send the Sync that is held: the statement before it had nothing to commit. It belongs to that statement."""
        assert self.holds_sync
        self.running = Request(Kind.COMMIT)
        self._sync()

    def take_done(self) -> list[Request]:
        """Return what completed since the last call."""
        done, self.done = self.done, []
        return done

    def _send_query(self, request: Request) -> None:
        if self.status != "I":
            self.to_server += request.frames[0].encode()
            self._awaits_ready = True
            return
        self._resend = request.frames[0].encode()
        self._hold_at_end = True
        self.to_server += wire.parse_message(request.text) + wire.BIND_UNNAMED + wire.DESCRIBE_UNNAMED
        self.to_server += wire.EXECUTE_UNNAMED + wire.FLUSH
        self._expected.extend(("1*", "2*", "D*", "E", "3*"))
        self._then += wire.CLOSE_UNNAMED_PORTAL

    def _send_batch(self, request: Request) -> None:
        self._hold_at_end = (
            request.ends == "sync" and self.status == "I" and (request.kind is Kind.STATEMENT or bool(self._unsynced))
        )
        out = self.to_server
        for frame, answer in zip(request.frames, answers_to(request.frames), strict=True):
            out += frame.encode()
            self._expected.append(answer)
            if frame.kind == b"E":
                # What follows waits for the end of it: during a COPY the server wants nothing but its data.
                out = self._then
                if wire.read_execute(frame.body) == (b"", 0):
                    out += wire.CLOSE_UNNAMED_PORTAL
                    self._expected.append("3*")
                else:
                    self.lazy = True
        if request.kind is Kind.STATEMENT:
            self.to_server += wire.FLUSH
        else:
            self._send_end(request)

    def _send_end(self, request: Request) -> None:
        """Send what follows an Execute that has ended, or a batch without one."""
        self.to_server += self._then
        self._then.clear()
        if request.ends == "sync" and not self._hold_at_end:
            self._sync()
        else:
            self.to_server += wire.FLUSH

    def _sync(self) -> None:
        self.holds_sync = self._hold_at_end = False
        self.to_server += wire.SYNC
        self._awaits_ready = True

    # What the server sends.

    def receive_from_server(self, data: bytes) -> None:
        """Take what the server sent."""
        self._server.feed(data)
        for frame in self._server.frames():
            if self.phase is Phase.AUTHENTICATING:
                self._greet(frame)
            elif self._hear_server(frame):
                self.to_client += frame.encode()

    def server_left(self) -> None:
        """Take note that the server closed its socket."""
        if self.running is not None:
            self.done.append(self.running)
        self.running = None
        self.phase = Phase.CLOSED
        self.holds_sync = False
        self.queue.clear()

    def _greet(self, frame: Frame) -> None:
        if frame.kind == b"N" and wire.read_fields(frame.body).get("V") == "DEBUG":
            return
        self.to_client += frame.encode()
        if frame.kind == b"R" and frame.body == b"\0\0\0\0":
            self.greeting.clear()  # what came before was the exchange of a password
        self.greeting += frame.encode()
        if frame.kind == b"K":
            self.pid = wire.read_key(frame.body)
        elif frame.kind == b"Z":
            self.phase = Phase.READY

    def _hear_server(self, frame: Frame) -> bool:
        """Take note of an answer, and return whether it is for the client."""
        if frame.kind == b"N":
            return self._hear_notice(wire.read_fields(frame.body))
        if frame.kind == b"E":
            return self._hear_error(wire.read_fields(frame.body))
        if frame.kind == b"Z":
            return self._hear_ready(wire.text(frame.body))
        if frame.kind == b"G" and self._hold_at_end and self.running is not None and self.running.ends == "sync":
            self._copies_in = True
        if frame.kind == b"T":
            self._columns = wire.read_columns(frame.body)
        elif frame.kind == b"D":
            self._hear_row(frame)
        if frame.kind in (b"C", b"I", b"s"):
            self._hear_completion(frame)
        if self._expected:
            return self._match(frame)
        return True

    def _match(self, frame: Frame) -> bool:
        """Cross off the answer that was expected next; return whether it is for the client."""
        expected = self._expected[0]
        kind = frame.kind.decode("latin-1")
        answers = {"D": ("T", "n"), "E": ("C", "I", "s")}.get(expected[0], (expected[0],))
        if kind not in answers:
            return True
        self._expected.popleft()
        if expected == "E" and self.running is not None:
            self._send_end(self.running)
        if not self._expected and not self._awaits_ready:
            self._complete()
        return not expected.endswith("*") or kind == "T"

    def _hear_row(self, frame: Frame) -> None:
        if self.running is not None and len(self.running.values) < VALUES_ROWS_MAX:
            self.running.values.append(wire.read_row(frame.body, self._columns, VALUE_LENGTH_MAX))

    def _hear_completion(self, frame: Frame) -> None:
        self._columns = ()
        if self.running is None:
            return
        tag, rows = wire.read_tag(frame.body) if frame.kind == b"C" else ("", None)
        self.running.tags.append(tag)
        self.running.rows = rows
        if tag in REFUSED_TAGS:
            raise Unsupported(REFUSED_TAGS[tag])
        if tag in ("BEGIN", "START TRANSACTION"):
            self._explicit = True
        elif tag in ("COMMIT", "ROLLBACK"):
            self._explicit = False
        self._unsynced.append(tag)

    def _complete(self) -> None:
        """Everything that was released has been answered, up to a Flush."""
        if not self._hold_at_end:
            self._finish()
        elif self._explicit or all(tag in QUIET_TAGS for tag in self._unsynced):
            self._sync()
        else:
            self.holds_sync = True
            self._finish()

    def _finish(self) -> None:
        if self.running is not None and (
            self.running.kind is not Kind.COMMIT or self.running.sql or self.running.sqlstate
        ):
            self.done.append(self.running)
        self.running = None
        self.is_waiting = False

    def _hear_ready(self, status: str) -> bool:
        if self._resend is not None and self.running is not None and self.running.unsplit:
            self.to_server += self._resend
            self._resend = None
            return False
        self.status = status
        self._expected.clear()
        self._awaits_ready = self._skips = self._explicit = self._hold_at_end = False
        self._resend = None
        self._unsynced.clear()
        self._finish()
        return True

    def _hear_error(self, fields: dict[str, str]) -> bool:
        sqlstate = fields.get("C", "")
        if self._resend is not None and self.running is not None and sqlstate in _RESEND_AS_IT_WAS:
            # Several statements in one, or a mistake that will be told again, as a simple Query tells it.
            self._expected.clear()
            self._then.clear()
            self.running.unsplit = True
            self._sync()
            return False
        if self.running is not None and self.running.sqlstate is None:
            self.running.sqlstate, self.running.message = sqlstate, fields.get("M", "")
        self._expected.clear()
        self._then.clear()
        self.is_waiting = False
        if self._hold_at_end or (self.running is not None and self.running.ends == "sync" and not self._awaits_ready):
            self._sync()
        elif not self._awaits_ready and self.running is not None:
            self._skips = True  # the server drops what follows, up to the next Sync
            self._finish()
            self._let_the_rest_flow()
        return True

    def _let_the_rest_flow(self) -> None:
        while self._skips and not self._awaits_ready and self.queue and self.queue[0].kind is not Kind.LEAVE:
            request = self.queue.popleft()
            for frame in request.frames:
                self.to_server += frame.encode()
            if request.ends != "flush":
                self.running = request if self.running is None else self.running
                self._sync()

    def _hear_notice(self, fields: dict[str, str]) -> bool:
        if fields.get("F") == "auto_explain.c":
            self.plans.append(fields.get("M", ""))
            if self.running is not None:
                self.running.plans += 1
            return False
        if fields.get("V") == "DEBUG":
            self._hear_transaction(fields.get("M", ""))
            return False
        if fields.get("C") == TRIED_LOCK:
            self.tried.append(fields.get("M", ""))
            return False
        if fields.get("V") != "LOG":
            return True
        if fields.get("F") == "proc.c":  # log_lock_waits: "process 42 still waiting for …", "process 42 acquired …"
            words = fields.get("M", "").split()
            self.is_waiting = words[2:4] == ["still", "waiting"]
        return False

    def _hear_transaction(self, told: str) -> None:
        if self.running is None:
            return
        self.running.transactions += told.startswith("StartTransaction(")
        # A block that catches errors is a subtransaction in progress; ROLLBACK TO restarts one (SUBRESTART).
        self.running.caught |= told.startswith("AbortSubTransaction(") and "blockState: SUBINPROGRESS" in told
