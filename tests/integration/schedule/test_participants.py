"""What can take part in an execution: functions, threads, whole programs."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bankrun.schedule import Call, Command, Engine, NotStarted, Server, Warmed, follow
from bankrun.schedule.cast.threads import find_descriptors, find_inode
from tests.schedule_support import programs
from tests.schedule_support.exploring import SUPPORT, Found, calls
from tests.schedule_support.private_server import make_database


def test_plain_functions_are_forked_and_what_they_print_is_kept(database: Server) -> None:
    participants = [
        Call("A", "programs:plain_transfer", (1, 2, 10), kept=False, path=[SUPPORT]),
        Call("B", "programs:plain_transfer", (1, 3, 10), kept=False, path=[SUPPORT]),
    ]
    with Engine(database, participants) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken
    assert all(o.output == "done\n" for x in found.executions for o in x.outcomes.values())


def test_any_program_can_take_part(database: Server) -> None:
    code = (
        "import os, psycopg\n"
        "with psycopg.connect(os.environ['DATABASE_URL']) as c:\n"
        "    x = c.execute('SELECT balance FROM account WHERE id = 1').fetchone()[0]\n"
        "    c.execute('UPDATE account SET balance = %s WHERE id = 1', (x - 10,))\n"
        "print('done')\n"
    )
    participants = [Command(name, [sys.executable, "-c", code]) for name in "AB"]
    with Engine(database, participants, tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken
    assert {o.output for x in found.executions for o in x.outcomes.values()} == {"done\n"}


def test_a_program_that_fails_and_one_that_asks_nothing_are_outcomes(database: Server) -> None:
    participants = [
        Command("A", [sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"]),
        Command("B", [sys.executable, "-c", "pass"]),
    ]
    with Engine(database, participants) as engine:
        execution = engine.execute(follow(""))
    assert execution.outcomes["A"].error == "exit 3"
    assert execution.outcomes["A"].message == "no\n"
    assert execution.steps == []


def test_a_wait_that_is_not_for_postgres_is_seen_as_one(database: Server, tmp_path: Path) -> None:
    code = (
        "import fcntl, os, psycopg\n"
        f"f = open({str(tmp_path / 'lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "with psycopg.connect(os.environ['DATABASE_URL']) as c:\n"
        "    x = c.execute('SELECT balance FROM account WHERE id = 1').fetchone()[0]\n"
        "    c.execute('UPDATE account SET balance = %s WHERE id = 1', (x - 10,))\n"
    )
    participants = [Command(name, [sys.executable, "-c", code]) for name in "AB"]
    with Engine(database, participants, tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken == 0
    assert all(not x.stuck for x in found.executions)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are told apart on Linux only")
def test_threads_of_one_process_are_told_apart_from_outside(database: Server) -> None:
    def two(function: str) -> list[Call]:
        return [
            Call(name, f"programs:{function}", (1, other, 10), kept=False, process="one", path=[SUPPORT])
            for name, other in (("A", 2), ("B", 3))
        ]

    with Engine(database, two("threaded_transfer"), tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete, found.exploration.reason
    assert found.broken
    with Engine(database, two("threaded_locked"), tcp=True) as engine:
        found = Found(engine)
    assert found.exploration.complete, found.exploration.reason
    assert (found.exploration.executions, found.broken) == (2, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are told apart on Linux only")
def test_a_port_that_another_connection_had_a_moment_ago_hides_no_socket() -> None:
    def connect(port: int, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", port))
        client.connect(listener.getsockname())
        return client, listener.accept()[0]

    with socket.create_server(("127.0.0.1", 0)) as before, socket.create_server(("127.0.0.1", 0)) as now:
        client, other_end = connect(0, before)
        port = client.getsockname()[1]
        client.close()  # first, so the port is kept for a minute
        assert other_end.recv(1) == b""
        other_end.close()
        client, other_end = connect(port, now)
        with client, other_end:
            lines = Path("/proc/net/tcp").read_text().splitlines()
            assert sum(line.split()[1] == f"0100007F:{port:04X}" for line in lines) == 2
            assert find_descriptors(os.getpid(), find_inode(other_end)) == {client.fileno()}


def test_a_server_that_wants_a_password_gets_it_from_the_participants_too(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'it''s/secret'")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        connection.execute("SELECT pg_reload_conf()")
    database = replace(make_database(server, "scram", programs.SETUP), user="guarded", password="it's/secret")
    with Engine(database, calls(("transfer", 1, 2, 10), ("transfer", 1, 3, 10))) as engine:
        found = Found(engine)
    assert found.exploration.complete
    assert found.broken


def test_processes_forked_from_a_warmed_one_have_an_environment_each(database: Server) -> None:
    warmed = Warmed.start({**os.environ, "NAME": "nobody"})
    try:
        warmed.import_all(["programs"], path=[SUPPORT])
        specs = [
            Call(one.name, "programs:tell_environment", ("NAME",), path=[SUPPORT], environment={"NAME": one.name})
            for one in calls(("transfer",), ("transfer",))
        ]
        for _ in range(2):
            with Engine(database, specs, warmed=[warmed, warmed]) as engine:
                done = engine.execute(follow(""))
                pids = {member.pid for member in engine._crew.members.values()}
            assert {name: one.result for name, one in done.outcomes.items()} == {"A": "A", "B": "B"}
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        warmed.close()


def test_an_interruption_while_a_process_is_forked_leaves_nobody_to_wait_for(
    database: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with Engine(database, calls(("plain_transfer", 1, 2, 10), ("plain_transfer", 1, 3, 10), kept=False)) as engine:
        with monkeypatch.context() as patched:
            for warmed in engine._crew._warmed.values():
                patched.setattr(warmed, "fork", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.execute(follow(""))
        assert not engine.execute(follow("")).stuck


def test_a_process_that_cannot_be_prepared_is_one_sentence(database: Server) -> None:
    specs = calls(
        ("plain_transfer", 1, 2, 10), kept=False, prepare="programs:change_at_import", prepare_arguments=["1x"]
    )
    with pytest.raises(NotStarted, match=r"^programs cannot be imported: SyntaxError: "):
        Engine(database, specs)
