"""Sockets: an address for each participant, and a connection to the server behind each of theirs. One thread.

Participants are told apart by the address that they connect to: a socket in a directory that only we can enter, or a
port on the loopback interface. Nothing is sent to the server that was not released.

A session is opened anew for each connection, or taken from those whose last user left them outside a transaction and
that have run DISCARD ALL since (manual, DISCARD): no setting, prepared statement, temporary table or advisory lock is
left then.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bankrun.environ import is_alive
from bankrun.schedule.errors import NotStarted, Unsupported, WireError
from bankrun.schedule.protocol import wire
from bankrun.schedule.protocol.conversation import Conversation, Phase
from bankrun.schedule.protocol.requests import Kind, Request
from bankrun.schedule.protocol.wire import Frame, FrameReader

RECEIVE_BYTES = 262_144
PORT = 5432  # a part of a socket's name
CONNECTIONS_MAX = 64
ASK_SECONDS_MAX = 5.0
POOLED_MAX = 16
DIRECTORY = "bankrun-wire-"


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens: a socket in a directory if ``host`` begins with a slash, else a port."""

    host: str
    port: int

    def connect(self) -> socket.socket:
        """Open a socket to it. Raises NotStarted if nobody listens there."""
        try:
            if self.host.startswith("/"):
                opened = socket.socket(socket.AF_UNIX)
                opened.connect(f"{self.host}/.s.PGSQL.{self.port}")
            else:
                opened = socket.create_connection((self.host, self.port), timeout=10)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.settimeout(None)
        except OSError as error:
            raise NotStarted(f"no Postgres answers at {self.host}:{self.port}: {error.strerror}") from error
        return opened


class Endpoint:
    """A socket with what is still to be sent to it."""

    def __init__(self, opened: socket.socket) -> None:
        opened.setblocking(False)
        self.socket = opened
        self.unsent = bytearray()
        self.is_open = True


@dataclass(slots=True)
class Link:
    """A participant's connection: its two sockets, and what is said between them."""

    participant: str
    conversation: Conversation
    client: Endpoint
    server: Endpoint | None = None
    spoiled: bool = False
    """Whether its session must not be used again."""
    home: str = ""
    """At whose address it was opened; threads of one process share an address."""
    is_owned: bool = True
    """Whether it is known whose request is held on it."""
    inode: int = 0
    """The client's socket, as Linux numbers it; 0 if it was not asked for yet."""

    @property
    def key(self) -> tuple[str, int]:
        """What a connection is remembered by."""
        return self.home, self.conversation.number


@dataclass(slots=True)
class Spare:
    """A session of the server that nobody uses."""

    endpoint: Endpoint
    greeting: bytes
    pid: int
    reader: FrameReader = field(default_factory=FrameReader)
    clean: bool = False


class Proxy:
    """Listens for participants, and relays what the scheduler releases. Close it at the end."""

    def __init__(self, server: Address, *, reuse_sessions: bool = True, tcp: bool = False) -> None:
        self.server = server
        self.reuse_sessions = reuse_sessions
        self.refuses = False
        """Whether new connections are turned away: between executions nobody has anything to ask."""
        self.shared: set[str] = set()
        """Addresses that several threads use: whose a request is has to be found out."""
        self.faults: dict[str, str] = {}
        """What each participant did that cannot be scheduled."""
        self.events = 0
        self._tcp = tcp
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[str, socket.socket] = {}
        self._links: dict[str, list[Link]] = defaultdict(list)
        self._spares: dict[bytes, list[Spare]] = defaultdict(list)
        self._numbers: dict[str, int] = defaultdict(int)
        self._directory = _make_directory()

    # Addresses.

    def listen(self, participant: str) -> Address:
        """Return an address at which this participant reaches the server."""
        if self._tcp:
            listener = socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS_MAX)
            address = Address("127.0.0.1", listener.getsockname()[1])
        else:
            directory = self._directory / participant
            directory.mkdir(mode=0o700)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(directory / f".s.PGSQL.{PORT}"))
            listener.listen(CONNECTIONS_MAX)
            address = Address(str(directory), PORT)
        listener.setblocking(False)
        self._listeners[participant] = listener
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept(participant, listener))
        return address

    def watch(self, readable: socket.socket, callback: Callable[[], None]) -> None:
        """Call ``callback`` from ``pump`` whenever there is something to read."""
        self._selector.register(readable, selectors.EVENT_READ, lambda _: callback())

    def unwatch(self, readable: socket.socket) -> None:
        """Stop watching."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(readable)

    def close(self) -> None:
        """Close every socket."""
        self.drop_spares()
        for links in self._links.values():
            for link in list(links):
                self._hang_up(link)
        for listener in self._listeners.values():
            self.unwatch(listener)
            listener.close()
        self._selector.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    # What the scheduler asks and does.

    def pump(self, wait_seconds: float) -> bool:
        """Relay what has arrived, waiting for something to arrive if nothing has. Return whether something did."""
        ready = self._selector.select(wait_seconds)
        for key, mask in ready:
            key.data(mask)
        self.events += len(ready)
        return bool(ready)

    def links(self, participant: str) -> list[Link]:
        """Return a participant's connections that are open, the oldest first."""
        return self._links[participant]

    def release(self, link: Link) -> Request:
        """Let the server see the request that is held on this connection."""
        conversation = link.conversation
        may_stay = conversation.status == "I" and not conversation.holds_sync and self._may_be_used_again(link)
        link.is_owned = link.home not in self.shared
        request = conversation.release()
        if request.kind is Kind.LEAVE and may_stay:
            conversation.to_server.clear()
            self._wash(link)
        self._flush(link)
        return request

    def ask(self, link: Link, sql: str) -> tuple[str | None, ...]:
        """Ask a session something between two requests, and return the first row. Its client does not learn of it."""
        assert link.server is not None
        assert link.conversation.is_between_requests
        reader = FrameReader()
        row: tuple[str | None, ...] = ()
        opened = link.server.socket
        opened.settimeout(ASK_SECONDS_MAX)
        try:
            opened.sendall(bytes(link.server.unsent) + wire.query_message(sql.encode()))
            link.server.unsent.clear()
            while data := opened.recv(RECEIVE_BYTES):
                reader.feed(data)
                frames = list(reader.frames())
                row = next((wire.read_text_row(frame.body) for frame in frames if frame.kind == b"D"), row)
                if any(frame.kind == b"Z" for frame in frames):
                    break
        except OSError:
            pass  # it has gone; that is seen when it is read from
        finally:
            opened.setblocking(False)
        return row

    def commit_at_once(self, link: Link) -> None:
        """Send the Sync that is held on this connection."""
        link.conversation.commit_at_once()
        self._flush(link)

    def is_washing(self) -> bool:
        """Whether a session is still being cleaned: its locks may not have been given back yet."""
        return any(not spare.clean for spares in self._spares.values() for spare in spares)

    def give(self, link: Link, participant: str) -> None:
        """Note whose the request is that is held on this connection."""
        self._links[link.participant].remove(link)
        self._links[participant].append(link)
        link.participant = participant
        link.is_owned = True

    def forget(self, participant: str) -> None:
        """Begin to count this participant's connections anew."""
        self._numbers[participant] = len(self._links[participant])

    def hang_up(self, participant: str) -> list[int]:
        """Close this participant's connections, and return the processes of those sessions that were not idle.

        The server rolls back what they have not committed, but not before it notices.
        """
        unfinished: list[int] = []
        for link in list(self._links[participant]):
            conversation = link.conversation
            is_idle = conversation.phase is Phase.READY and not conversation.is_busy and not conversation.holds_sync
            if is_idle and conversation.status == "I" and self._may_be_used_again(link):
                self._wash(link)
            elif conversation.pid:
                unfinished.append(conversation.pid)
            self._hang_up(link)
        return unfinished

    def _may_be_used_again(self, link: Link) -> bool:
        spares = self._spares[link.conversation.startup_packet]
        return self.reuse_sessions and not link.spoiled and link.server is not None and len(spares) < POOLED_MAX

    def drop_spares(self) -> None:
        """Close the sessions that nobody uses, so that the database can be dropped."""
        for spares in self._spares.values():
            for spare in spares:
                self._close(spare.endpoint)
        self._spares.clear()

    # Sockets.

    def _accept(self, participant: str, listener: socket.socket) -> None:
        try:
            opened, _ = listener.accept()
        except OSError:
            return
        if self.refuses or len(self._links[participant]) >= CONNECTIONS_MAX or not _is_ours(opened):
            opened.close()
            return
        if opened.family != socket.AF_UNIX:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = self._numbers[participant]
        self._numbers[participant] += 1
        link = Link(participant, Conversation(number), Endpoint(opened), home=participant)
        link.is_owned = participant not in self.shared
        self._links[participant].append(link)
        self._selector.register(opened, selectors.EVENT_READ, lambda mask: self._serve_client(link, mask))

    def _serve_client(self, link: Link, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._send(link.client)
        if mask & selectors.EVENT_READ:
            data = _receive(link.client)
            if data is None:
                return
            try:
                if data:
                    link.conversation.receive_from_client(data)
                else:
                    self._close(link.client)
                    link.conversation.client_left()
                self._connect_server(link)
            except (WireError, Unsupported) as error:
                self._refuse(link, error)
            self._flush(link)

    def _connect_server(self, link: Link) -> None:
        conversation = link.conversation
        if conversation.cancel is not None:
            with self.server.connect() as opened:
                opened.sendall(conversation.cancel)
        elif conversation.phase is Phase.AUTHENTICATING and link.server is None:
            spares = self._spares[conversation.startup_packet]
            spare = next((spare for spare in spares if spare.clean), None)
            if spare is not None:
                spares.remove(spare)
                self._selector.unregister(spare.endpoint.socket)
                link.server = spare.endpoint
                conversation.greet_as(spare.greeting, spare.pid)
            else:
                link.server = Endpoint(self.server.connect())
            server = link.server
            self._selector.register(server.socket, selectors.EVENT_READ, lambda mask: self._serve_server(link, mask))

    def _serve_server(self, link: Link, mask: int) -> None:
        assert link.server is not None
        if mask & selectors.EVENT_WRITE:
            self._send(link.server)
        if mask & selectors.EVENT_READ:
            data = _receive(link.server)
            if data is None:
                return
            try:
                if data:
                    link.conversation.receive_from_server(data)
                else:
                    link.conversation.server_left()
            except (WireError, Unsupported) as error:
                self._refuse(link, error)
            self._flush(link)

    def _refuse(self, link: Link, error: Exception) -> None:
        self.faults.setdefault(link.participant, str(error))
        if isinstance(error, WireError):
            link.conversation.server_left()

    def _flush(self, link: Link) -> None:
        """Send what the conversation has to say, and close what it has ended."""
        conversation = link.conversation
        if link.server is not None and link.server.is_open:
            link.server.unsent += conversation.to_server
            self._send(link.server)
        conversation.to_server.clear()
        if link.client.is_open:
            link.client.unsent += conversation.to_client
            self._send(link.client)
        conversation.to_client.clear()
        if conversation.phase is Phase.CLOSED and link in self._links[link.participant]:
            self._hang_up(link)

    def _hang_up(self, link: Link) -> None:
        self._links[link.participant].remove(link)
        self._close(link.client)
        if link.server is not None:
            self._close(link.server)
        link.conversation.phase = Phase.CLOSED

    def _close(self, endpoint: Endpoint) -> None:
        if endpoint.is_open:
            endpoint.is_open = False
            self.unwatch(endpoint.socket)
            endpoint.socket.close()

    def _send(self, endpoint: Endpoint) -> None:
        if not endpoint.is_open:
            return
        if endpoint.unsent:
            try:
                sent = endpoint.socket.send(endpoint.unsent)
                del endpoint.unsent[:sent]
            except BlockingIOError:
                pass
            except OSError:
                endpoint.unsent.clear()  # it has gone; that is seen when it is read from
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if endpoint.unsent else 0)
        key = self._selector.get_map().get(endpoint.socket)
        if key is not None and key.events != wanted:
            self._selector.modify(endpoint.socket, wanted, key.data)

    # Sessions that are used again.

    def _wash(self, link: Link) -> None:
        assert link.server is not None
        conversation, endpoint = link.conversation, link.server
        link.server = None
        spare = Spare(endpoint, bytes(conversation.greeting), conversation.pid)
        self._spares[conversation.startup_packet].append(spare)
        self._selector.modify(
            endpoint.socket,
            selectors.EVENT_READ,
            lambda mask: self._hear_spare(conversation.startup_packet, spare, mask),
        )
        endpoint.unsent += wire.query_message(b"DISCARD ALL")
        self._send(endpoint)
        conversation.server_left()

    def _hear_spare(self, packet: bytes, spare: Spare, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._send(spare.endpoint)
        if not mask & selectors.EVENT_READ:
            return
        data = _receive(spare.endpoint)
        if data is None:
            return
        spare.reader.feed(data)
        frames: list[Frame] = list(spare.reader.frames())
        if not data or any(frame.kind == b"E" for frame in frames):
            self._close(spare.endpoint)
            with suppress(ValueError):
                self._spares[packet].remove(spare)
        elif any(frame.kind == b"Z" for frame in frames):
            spare.clean = True


def _receive(endpoint: Endpoint) -> bytes | None:
    """Return what has arrived: nothing at the end, None if there was nothing after all."""
    try:
        return endpoint.socket.recv(RECEIVE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _is_ours(opened: socket.socket) -> bool:
    """Whether a connection to a port of ours comes from a process of ours, as far as Linux tells (proc(5), net/tcp).

    Everyone on the machine can reach a port; behind this one is a superuser's session.
    """
    if opened.family == socket.AF_UNIX or not Path("/proc/net/tcp").exists():
        return True
    peer = f"0100007F:{opened.getpeername()[1]:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return next((int(fields[7]) for fields in rows if fields[1] == peer), os.geteuid()) == os.geteuid()


def _make_directory() -> Path:
    """Make a directory for sockets, and remove those whose maker was killed: their names hold its pid.

    In the system's own temporary directory, for the path of a socket has about 100 characters.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{DIRECTORY}[0-9]*-*"):
        maker = left.name.removeprefix(DIRECTORY).partition("-")[0]
        with suppress(OSError, ValueError):
            if left.lstat().st_uid == os.geteuid() and not is_alive(int(maker)):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{DIRECTORY}{os.getpid()}-"))
