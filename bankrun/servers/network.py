"""A network that is slow, or fails, on demand: a proxy between the instances and Postgres.

    instances ── <directory>/.s.PGSQL.5432 ──▶ proxy ──▶ Postgres' own socket

It understands one thing of the protocol, that something is committed; everything else is bytes.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

CHUNK_BYTES = 65_536
ANSWER_SECONDS = 10.0
COMMITTED = re.compile(rb"C.{4}(COMMIT|INSERT 0 [1-9]\d*|UPDATE [1-9]\d*)\0Z\0\0\0\x05I\Z", re.DOTALL)
"""The end of an answer after which something is committed, by COMMIT or by a statement that stands alone: its
CommandComplete, then a ReadyForQuery outside any transaction (manual, section 54.7)."""


@dataclass(eq=False, slots=True)
class Link:
    """One client's connection and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    silent: bool = False

    def close(self) -> None:
        """Close both ends at once: what was not sent yet is lost."""
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Forwards connections to a Unix socket, and fails on demand. For the block; its methods may come from any thread.

    Nothing is delayed or lost before one of them is called. ``delay_seconds`` is how long bytes take, each way; what
    changes it must know that nothing is on its way. ``precise`` delays are right within microseconds, and good for a
    few hundred connections in this process; others within a millisecond.
    """

    def __init__(self, listen: Path, target: Path, *, precise: bool = False) -> None:
        self.delay_seconds = 0.0
        self._listen = listen
        self._target = target
        self._links: set[Link] = set()
        self._to_swallow = 0
        self._swallowed = threading.Event()
        # The default selector waits for whole milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector() if precise else None)
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._open.set()
        self._server = self._run(self._begin_to_listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_SECONDS)
        self._loop.close()

    async def _begin_to_listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, str(self._listen))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self._target))

    def cut(self) -> int:
        """Close every connection, also in the middle of a transaction. Returns how many there were."""
        return self._run(self._for_all(Link.close))

    def half_open(self) -> int:
        """Close the server's end of every connection; the client is told nothing, and never gets an answer."""

        def leave(link: Link) -> None:
            link.silent = True
            link.server.transport.abort()

        return self._run(self._for_all(leave))

    def silence(self) -> int:
        """Drop every byte, both ways, of the connections that there are; new ones wait for ``speak``.

        Either end thinks that the other one is slow.
        """

        def hush(link: Link) -> None:
            link.silent = True

        self._loop.call_soon_threadsafe(self._open.clear)
        return self._run(self._for_all(hush))

    def speak(self) -> None:
        """Serve new connections again. Those that fell silent have lost bytes: they stay so until they are closed."""
        self._loop.call_soon_threadsafe(self._open.set)

    def swallow_commit(self, timeout_seconds: float) -> bool:
        """Lose the answer that says what is committed, and the connection with it. Returns whether one came in time."""
        self._swallowed.clear()
        self._to_swallow = 1
        came = self._swallowed.wait(timeout_seconds)
        self._to_swallow = 0
        return came

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(ANSWER_SECONDS)

    async def _for_all(self, act: Callable[[Link], None]) -> int:
        links = list(self._links)
        for link in links:
            act(link)
        return len(links)

    async def _stop(self) -> None:
        self._server.close()
        await self._for_all(Link.close)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._open.wait()
            try:
                answers, server = await self._connect()
            except OSError:  # Postgres is down: the client is told as it would be without us
                writer.transport.abort()
                return
            link = Link(writer, server)
            self._links.add(link)
            try:
                await asyncio.gather(self._forward(link, reader, server), self._return(link, answers))
            finally:
                self._links.discard(link)
                link.close()
        finally:
            self._tasks.discard(task)

    async def _forward(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what the client says."""
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if link.silent:
                    continue
                await self._pass_on(writer, data)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        link.server.transport.abort()
        if link.silent:
            link.client.transport.abort()

    async def _pass_on(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.delay_seconds:
            self._loop.call_at(self._loop.time() + self.delay_seconds, writer.write, data)
        else:
            writer.write(data)
            await writer.drain()

    async def _return(self, link: Link, reader: asyncio.StreamReader) -> None:
        """Carry what the server answers."""
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self._to_swallow and COMMITTED.search(data):
                    self._to_swallow -= 1
                    link.close()
                    self._swallowed.set()
                    return
                if not link.silent:
                    await self._pass_on(link.client, data)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if not link.silent:
            link.client.transport.abort()


class TcpProxy(Proxy):
    """The same before a server that is reached by TCP: it listens on a port of this machine's own."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(Path(), Path())
        self._address = (host, port)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.sockets[0].getsockname()[1])

    async def _begin_to_listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._address)
