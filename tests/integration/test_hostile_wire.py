"""The engine's codec and conversations, fed what no client and no server sends: one error, no hang, bounded memory.

The inputs are real sessions, recorded here, of which something was changed.
"""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from contextlib import closing
from typing import NamedTuple

import psycopg
import pytest
from sqlalchemy import make_url

from bank.postgres.database import Database, psql_url
from bankrun.schedule import Unsupported, WireError
from bankrun.schedule.protocol import proxy as proxies
from bankrun.schedule.protocol.conversation import Conversation, Phase
from bankrun.schedule.protocol.proxy import Address, Proxy
from tests.mutations import LARGE, cut, mutate

INPUTS = 10_000 if LARGE else 400
SECONDS_MAX = 5.0
MEMORY_MAX = 4_000_000
MEMORY_PER_BYTE_MAX = 60
"""A message of five bytes becomes a request, which is an object."""


class Said(NamedTuple):
    """What one side of a connection sent."""

    by_client: bool
    data: bytes


Session = list[Said]


class Recording(Conversation):
    """A conversation that notes what it is fed."""

    made: list[Recording]

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.said: Session = []
        self.made.append(self)

    def receive_from_client(self, data: bytes) -> None:
        """Note it."""
        self.said.append(Said(True, data))
        super().receive_from_client(data)

    def receive_from_server(self, data: bytes) -> None:
        """Note it."""
        self.said.append(Said(False, data))
        super().receive_from_server(data)


def talk(url: str) -> None:
    """Say what drivers say: simple and extended, prepared, binary, in pipelines, by COPY, with errors."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE t (a integer PRIMARY KEY, b text)")
        connection.execute("INSERT INTO t VALUES (1, 'x'), (2, NULL)")
        with psycopg.ClientCursor(connection) as simple:
            simple.execute("SELECT 1; SELECT 2")
            simple.execute("UPDATE t SET b = %s WHERE a = 1", ["y"])
        connection.execute("SELECT a, b, 1.5::float8, now() FROM t WHERE a = %b", [1], binary=True)
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO t VALUES (1, 'again')")
        with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
            copy.write("7\tseven\n8\teight\n")
        with connection.cursor() as cursor, cursor.copy("COPY t TO STDOUT") as copy:
            assert len(list(copy)) == 4
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TEMPORARY TABLE t (a integer PRIMARY KEY, b text)")
        connection.prepare_threshold = 1
        for number in range(3):
            connection.execute("INSERT INTO t VALUES (%s, %s)", [number, "z" * number])
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s, 'many')", [(10,), (11,), (12,)])
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("SELECT 1 / 0")
        connection.commit()


@pytest.fixture(scope="module")
def recorded(database: Database) -> list[Recording]:
    """Two sessions with a real Postgres, as the proxy was fed with them."""
    url = make_url(database.url)
    Recording.made = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proxies, "Conversation", Recording)
        with closing(Proxy(Address(str(url.query["host"]), 5432), reuse_sessions=False)) as proxy:
            there = url.update_query_dict({"host": proxy.listen("a").host}).render_as_string(hide_password=False)
            client = threading.Thread(target=talk, args=(psql_url(there),))
            client.start()
            while client.is_alive() or proxy.links("a"):
                proxy.pump(0.01)
                for link in list(proxy.links("a")):
                    if link.conversation.pending is not None:
                        proxy.release(link)
    assert not proxy.faults
    assert len(Recording.made) == 2
    return Recording.made


def play(session: Session, chosen: random.Random) -> Conversation:
    """Feed a conversation, in pieces; let it release what it holds as soon as it can."""
    conversation = Conversation(0)
    for by_client, data in session:
        for piece in cut(data, chosen):
            if by_client:
                conversation.receive_from_client(piece)
            else:
                conversation.receive_from_server(piece)
            while conversation.pending is not None:
                conversation.release()
            conversation.to_server.clear()
            conversation.to_client.clear()
    return conversation


def spoil(session: Session, chosen: random.Random) -> Session:
    """Return a session of which something was changed: its bytes, their order, or who said them."""
    spoiled = list(session)
    every = [said.data for said in session]
    for _ in range(chosen.randint(1, 3)):
        at = chosen.randrange(len(spoiled))
        by_client, data = spoiled[at]
        match chosen.randrange(8):
            case 0:
                spoiled[at] = Said(not by_client, data)
            case 1:
                spoiled.insert(chosen.randrange(len(spoiled)), spoiled[at])
            case 2:
                spoiled[at : at + 1] = [spoiled[at]] * chosen.randint(2, 20)
            case 3:
                spoiled[at] = Said(by_client, chosen.randbytes(chosen.randint(1, 3_000)))
            case _:
                spoiled[at] = Said(by_client, mutate(data, chosen, every))
    return spoiled


def test_a_recorded_session_is_understood_however_it_is_cut(recorded: list[Recording]) -> None:
    for seed in range(20):
        for session in recorded:
            conversation = play(session.said, random.Random(seed))
            assert conversation.phase is Phase.LEAVING
            conversation.server_left()
            assert [str(request) for request in conversation.done] == [str(request) for request in session.done]
    tags = {tag for session in recorded for request in session.done for tag in request.tags}
    assert tags >= {"CREATE TABLE", "INSERT", "SELECT", "UPDATE", "COPY", "BEGIN", "COMMIT"}
    errors = {request.sqlstate for session in recorded for request in session.done}
    assert errors == {None, "23505", "22012"}


@pytest.mark.timeout(600)
def test_whatever_is_said_ends_with_one_error_or_none_at_once_and_in_bounded_memory(recorded: list[Recording]) -> None:
    refused = understood = 0
    tracemalloc.start()
    try:
        for seed in range(INPUTS):
            chosen = random.Random(seed)
            session = spoil(chosen.choice(recorded).said, chosen)
            size = sum(len(said.data) for said in session)
            tracemalloc.reset_peak()
            before, began = tracemalloc.get_traced_memory()[0], time.monotonic()
            try:
                play(session, chosen)
                understood += 1
            except (WireError, Unsupported):
                refused += 1
            assert time.monotonic() - began < SECONDS_MAX, seed
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY_MAX + MEMORY_PER_BYTE_MAX * size, seed
    finally:
        tracemalloc.stop()
    assert min(refused, understood) > INPUTS / 20  # both happen, or the inputs are no test
