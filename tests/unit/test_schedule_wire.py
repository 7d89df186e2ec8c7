"""The codec of the protocol and the state machine of one connection, by themselves."""

from __future__ import annotations

import random
import struct
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankrun.schedule import Unsupported, WireError
from bankrun.schedule.protocol import wire
from bankrun.schedule.protocol.conversation import Conversation, Phase
from bankrun.schedule.protocol.requests import Kind
from bankrun.schedule.protocol.wire import Frame, FrameReader

kinds = st.sampled_from([bytes([letter]) for letter in range(65, 123)])
frames = st.builds(Frame, kinds, st.binary(max_size=200))
READY = Frame(b"Z", b"I").encode()


def startup(**parameters: str) -> bytes:
    body = struct.pack("!I", 196608) + b"".join(f"{k}\0{v}\0".encode() for k, v in parameters.items()) + b"\0"
    return Frame(b"", body).encode()


def connected() -> Conversation:
    """A conversation that is past its greeting."""
    conversation = Conversation(0)
    conversation.receive_from_client(startup(user="app", database="app"))
    conversation.receive_from_server(
        Frame(b"R", b"\0\0\0\0").encode() + Frame(b"K", struct.pack("!II", 42, 7)).encode() + READY
    )
    assert conversation.phase is Phase.READY
    taken(conversation)
    return conversation


def taken(conversation: Conversation) -> tuple[bytes, bytes]:
    """What is to be sent to the server and to the client."""
    sent = bytes(conversation.to_server), bytes(conversation.to_client)
    conversation.to_server.clear()
    conversation.to_client.clear()
    return sent


def kinds_in(data: bytes) -> str:
    reader = FrameReader()
    reader.feed(data)
    return "".join(frame.kind.decode() for frame in reader.frames())


def complete(tag: str) -> bytes:
    return Frame(b"C", tag.encode() + b"\0").encode()


def query(sql: str) -> bytes:
    return wire.query_message(sql.encode())


def extended(sql: str, name: bytes = b"") -> bytes:
    parse = Frame(b"P", name + b"\0" + sql.encode() + b"\0\0\0").encode()
    bind = Frame(b"B", b"\0" + name + b"\0\0\0\0\0\0\0").encode()
    return parse + bind + wire.EXECUTE_UNNAMED + wire.SYNC


PARSED, BOUND, NO_DATA, CLOSED = (Frame(kind, b"").encode() for kind in (b"1", b"2", b"n", b"3"))


@given(st.lists(frames, max_size=20), st.lists(st.integers(1, 50), max_size=60))
def test_frames_are_the_same_however_they_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(frame.encode() for frame in sent)
    reader, found, at = FrameReader(), list[Frame](), 0
    for size in [*cuts, len(data)]:
        reader.feed(data[at : at + size])
        at += size
        found += reader.frames()
    assert found == sent


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_raise_one_error_or_none(data: bytes) -> None:
    for is_startup in (True, False):
        reader = FrameReader(startup=is_startup, bytes_max=1000)
        try:
            for at in range(0, len(data), 7):
                reader.feed(data[at : at + 7])
                list(reader.frames())
        except WireError:
            pass


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            frames.map(Frame.encode),
            st.sampled_from([wire.SYNC, wire.FLUSH, wire.EXECUTE_UNNAMED, wire.BIND_UNNAMED, wire.TERMINATE]),
        ),
        max_size=30,
    ),
    st.randoms(),
)
def test_hostile_clients_and_servers_never_crash_a_conversation(chunks: list[bytes], chosen: random.Random) -> None:
    conversation = connected()
    with suppress(WireError, Unsupported):
        for chunk in chunks:
            if chosen.random() < 0.6:
                conversation.receive_from_client(chunk)
            else:
                conversation.receive_from_server(chunk)
            if conversation.pending is not None and chosen.random() < 0.7:
                conversation.release()
            taken(conversation)


@given(st.binary(max_size=300))
def test_hostile_first_packets_never_crash_a_conversation(data: bytes) -> None:
    conversation = Conversation(0)
    with suppress(WireError, Unsupported):
        conversation.receive_from_client(data)


def test_encryption_is_declined_and_a_cancel_request_kept_as_it_is() -> None:
    conversation = Conversation(0)
    for code in (wire.SSL_REQUEST, wire.GSS_REQUEST):
        conversation.receive_from_client(struct.pack("!II", 8, code))
        assert taken(conversation) == (b"", b"N")
    cancel = struct.pack("!IIII", 16, wire.CANCEL_REQUEST, 42, 7)
    conversation.receive_from_client(cancel)
    assert conversation.cancel == cancel


def test_replication_is_refused_in_a_sentence() -> None:
    with pytest.raises(Unsupported, match="replication"):
        Conversation(0).receive_from_client(startup(user="app", replication="database"))


def test_a_request_is_held_until_it_is_released() -> None:
    conversation = connected()
    conversation.receive_from_client(extended("SELECT 1"))
    assert taken(conversation) == (b"", b"")
    assert conversation.pending is not None
    assert (conversation.pending.kind, conversation.pending.sql) == (Kind.STATEMENT, "SELECT 1")


def test_a_commit_can_be_held_after_a_statement_outside_a_transaction() -> None:
    conversation = connected()
    conversation.receive_from_client(extended("UPDATE t SET a = 1"))
    conversation.release()
    assert kinds_in(taken(conversation)[0]) == "PBEH"
    conversation.receive_from_server(PARSED + BOUND + complete("UPDATE 1"))
    to_server, to_client = taken(conversation)
    assert (kinds_in(to_server), kinds_in(to_client)) == ("CH", "12C")
    conversation.receive_from_server(CLOSED)
    assert taken(conversation)[1] == b""  # the answer to our Close is swallowed
    pending = conversation.pending
    assert pending is not None
    assert pending.kind is Kind.COMMIT
    conversation.release()
    assert taken(conversation)[0] == wire.SYNC
    conversation.receive_from_server(READY)
    assert taken(conversation)[1] == READY
    assert [request.kind for request in conversation.take_done()] == [Kind.STATEMENT, Kind.COMMIT]


def test_a_simple_query_is_sent_as_an_extended_one_and_its_answers_look_simple() -> None:
    conversation = connected()
    conversation.receive_from_client(query("SELECT 1"))
    conversation.release()
    assert kinds_in(taken(conversation)[0]) == "PBDEH"
    row = Frame(b"T", b"\0\0").encode() + Frame(b"D", b"\0\0").encode()
    conversation.receive_from_server(PARSED + BOUND + row + complete("SELECT 1") + CLOSED)
    conversation.commit_at_once()
    conversation.receive_from_server(READY)
    assert kinds_in(taken(conversation)[1]) == "TDCZ"


def test_several_statements_in_one_query_are_sent_as_they_were() -> None:
    conversation = connected()
    conversation.receive_from_client(query("SELECT 1; SELECT 2"))
    conversation.release()
    taken(conversation)
    conversation.receive_from_server(Frame(b"E", b"SERROR\0C42601\0Mmultiple commands\0\0").encode())
    assert taken(conversation) == (wire.SYNC, b"")
    conversation.receive_from_server(READY)
    assert taken(conversation) == (query("SELECT 1; SELECT 2"), b"")
    conversation.receive_from_server(complete("SELECT 1") + complete("SELECT 1") + READY)
    (request,) = conversation.take_done()
    assert request.unsplit
    assert request.sqlstate is None


def test_begin_is_committed_at_once_by_its_tag_and_commit_goes_through_as_it_is() -> None:
    conversation = connected()
    conversation.receive_from_client(query("BEGIN"))
    conversation.release()
    taken(conversation)
    conversation.receive_from_server(PARSED + BOUND + NO_DATA + complete("BEGIN") + CLOSED)
    assert kinds_in(taken(conversation)[0]) == "CHS"
    conversation.receive_from_server(Frame(b"Z", b"T").encode())
    conversation.receive_from_client(query("COMMIT"))
    conversation.release()
    assert taken(conversation)[0] == query("COMMIT")


def test_a_pipeline_is_released_execute_by_execute_and_its_rest_flows_after_an_error() -> None:
    conversation = connected()
    statement = extended("INSERT INTO t VALUES (1)").removesuffix(wire.SYNC)
    conversation.receive_from_client(statement * 3 + wire.SYNC)
    assert len(conversation.queue) == 3
    conversation.release()
    taken(conversation)
    conversation.receive_from_server(PARSED + BOUND + complete("INSERT 0 1") + CLOSED)
    taken(conversation)
    conversation.release()
    assert kinds_in(taken(conversation)[0]) == "PBEH"
    conversation.receive_from_server(PARSED + Frame(b"E", b"SERROR\0C23505\0Mtwice\0\0").encode())
    assert kinds_in(taken(conversation)[0]) == "PBES"
    conversation.receive_from_server(READY)
    assert not conversation.is_busy
    assert conversation.pending is None


def test_a_prepared_statement_is_shown_with_its_text_and_parameters() -> None:
    conversation = connected()
    parse = Frame(b"P", b"s1\0SELECT $1, $2\0" + struct.pack("!HII", 2, 23, 25)).encode()
    conversation.receive_from_client(parse + wire.SYNC)
    assert conversation.pending is not None
    assert conversation.pending.kind is Kind.PREPARE
    conversation.release()
    conversation.receive_from_server(PARSED + READY)
    values = struct.pack("!HHHH", 2, 1, 0, 2) + struct.pack("!ii", 4, 7) + struct.pack("!i", 1) + b"x"
    conversation.receive_from_client(
        Frame(b"B", b"\0s1\0" + values + b"\0\0").encode() + wire.EXECUTE_UNNAMED + wire.SYNC
    )
    assert conversation.pending is not None
    assert (conversation.pending.sql, conversation.pending.parameters) == ("SELECT $1, $2", ("7", "x"))


def test_statement_texts_that_never_repeat_do_not_grow_memory() -> None:
    conversation = connected()
    for number in range(10_000):
        conversation.receive_from_client(extended(f"SELECT {number}", b"s%d" % number))
        conversation.queue.clear()
    assert len(conversation._reader._statements) <= 4096


def test_many_large_parameters_and_columns_are_read_in_a_moment() -> None:
    count = 65_535
    value = struct.pack("!i", 200) + b"x" * 200
    bind = b"\0\0" + struct.pack("!HH", 0, count) + value * count + b"\0\0"
    columns = struct.pack("!H", count) + (b"c" * 60 + b"\0" + struct.pack("!IhIhih", 0, 0, 23, 4, -1, 0)) * count
    row = struct.pack("!H", count) + value * count
    began = time.monotonic()
    assert len(wire.read_bind(bind)[2]) == count
    described = wire.read_columns(columns)
    assert described == ((23, False),) * count
    assert len(wire.read_row(row, described, 10)) == count
    assert time.monotonic() - began < 5  # copied anew for each of them, it is some minutes


def test_a_client_that_asks_without_end_is_refused_before_memory_ends() -> None:
    conversation = connected()
    conversation.receive_from_client(query("SELECT 1"))
    conversation.release()
    for _ in range(100):
        conversation.receive_from_client(wire.SYNC * 1_000)
    with pytest.raises(WireError, match="more than 100,000 requests"):
        conversation.receive_from_client(wire.SYNC)


@pytest.mark.parametrize("digits", ["9" * 5_000, "9" * 21])
def test_a_count_that_no_server_sends_is_refused(digits: str) -> None:
    assert wire.read_tag(b"INSERT 0 18446744073709551615\0") == ("INSERT", 2**64 - 1)
    with pytest.raises(WireError, match="digits"):
        wire.read_tag(f"SELECT {digits}\0".encode())


def test_copy_from_the_client_is_passed_on_and_its_second_sync_is_the_one_that_commits() -> None:
    conversation = connected()
    conversation.receive_from_client(extended("COPY t FROM STDIN"))
    conversation.release()
    taken(conversation)
    conversation.receive_from_server(PARSED + BOUND + Frame(b"G", b"\0\0\0").encode())
    conversation.receive_from_client(Frame(b"d", b"1\n").encode() + Frame(b"c", b"").encode() + wire.SYNC)
    assert kinds_in(taken(conversation)[0]) == "dcH"
    conversation.receive_from_server(complete("COPY 1") + CLOSED)
    assert conversation.pending is not None
    assert conversation.pending.kind is Kind.COMMIT


def test_listen_is_refused_in_a_sentence() -> None:
    conversation = connected()
    conversation.receive_from_client(query("LISTEN x"))
    conversation.release()
    with pytest.raises(Unsupported, match="LISTEN"):
        conversation.receive_from_server(PARSED + BOUND + NO_DATA + complete("LISTEN"))


def test_who_waits_for_a_lock_says_so_and_the_client_does_not_hear_it() -> None:
    conversation = connected()
    conversation.receive_from_client(query("UPDATE t SET a = 1"))
    conversation.release()
    taken(conversation)
    told = b"SLOG\0VLOG\0C00000\0Mprocess 42 still waiting for ShareLock on transaction 7 after 1.0 ms\0Fproc.c\0\0"
    conversation.receive_from_server(Frame(b"N", told).encode())
    assert conversation.is_waiting
    assert taken(conversation)[1] == b""


def test_a_client_that_vanishes_leaves_by_a_request_of_its_own() -> None:
    conversation = connected()
    conversation.client_left()
    assert conversation.pending is not None
    assert conversation.pending.kind is Kind.LEAVE


def test_a_parameter_more_is_read_behind_the_others() -> None:
    body = struct.pack("!I", 3 << 16) + b"user\0ann\0client_min_messages\0error\0\0"
    more = wire.with_parameter(body, "client_min_messages", "debug5")
    assert wire.read_startup(more).parameters == {"user": "ann", "client_min_messages": "debug5"}
    assert more.startswith(body[:-1])
    assert more.endswith(b"debug5\0\0")
