"""The embedded stack: it starts anywhere, keeps its data, lets nobody else in, and leaves nothing running."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from kombu import Connection

from bankrun.errors import BankrunError, CannotStart
from bankrun.servers import binaries as servers
from bankrun.servers import embedded, state_dir
from bankrun.servers.embedded import Endpoints, embedded_stack, keeper_only, private_postgres
from bankrun.servers.keeper_client import Keeper
from bankrun.servers.state_dir import own
from tests.places import make_place

LAB = """
import signal, sys, time
from pathlib import Path
from bankrun.servers.embedded import embedded_stack

state_dir = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with embedded_stack(state_dir) as (keeper, endpoints):
    argv = [sys.executable, "-c", "import time; time.sleep(600)", str(state_dir)]
    keeper.spawn("worker", argv, env={}, cwd=state_dir, log=state_dir / "logs" / "worker.log")
    print(keeper.pid, flush=True)
    time.sleep(600)
"""
KNOCK = """
import os, socket, sys

os.setgroups([])
os.setuid(12345)
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    sys.exit(13)
"""
AS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def used() -> Iterator[Path]:
    """A state directory that has a database; what a test leaves in it, the next one finds."""
    path = make_place("stack")
    with embedded_stack(path):
        pass
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fresh() -> Iterator[Path]:
    """An empty state directory."""
    path = make_place("stack")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def connect(endpoints: Endpoints) -> psycopg.Connection[tuple[object, ...]]:
    """Open a session, as libpq reads the address."""
    return psycopg.connect(endpoints.database_url.replace("postgresql+psycopg", "postgresql"), autocommit=True)


def processes_of(state_dir: Path) -> list[str]:
    """Return the command lines that mention the directory: the lab's, the keeper's, the servers', the workers'."""
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(state_dir) in line]


def seconds_until(condition: Callable[[], bool], limit: float = 10.0) -> float:
    """Wait for a condition and return how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < limit, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - begin


def is_gone(state_dir: Path) -> Callable[[], bool]:
    """Return whether no process of the directory is left, as a condition."""
    return lambda: not processes_of(state_dir)


@pytest.fixture
def lab(used: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another lab, running, with a worker; and its keeper's pid."""
    with subprocess.Popen([sys.executable, "-c", LAB, str(used)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()
    seconds_until(is_gone(used))


# ---- starting and stopping


def test_nothing_runs_and_no_socket_is_left_after_the_block(used: Path) -> None:
    with embedded_stack(used) as (keeper, endpoints), connect(endpoints):
        assert endpoints.embedded
        assert {path.name for path in (used / "run").iterdir()} >= {".s.PGSQL.5432", "redis.sock"}
        assert len(processes_of(used)) == 3
    assert processes_of(used) == []
    assert not (used / "run").exists()
    keeper.close()  # again does no harm


def test_what_was_committed_is_there_the_next_time(used: Path) -> None:
    with embedded_stack(used) as (_, endpoints), connect(endpoints) as session:
        session.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
    with embedded_stack(used) as (_, endpoints), connect(endpoints) as session:
        assert session.execute("SELECT answer FROM kept").fetchall() == [(42,)]


def test_postgres_is_durable_and_keeps_commit_timestamps(used: Path) -> None:
    with (
        embedded_stack(used, max_connections=33, postgres_settings={"deadlock_timeout": "7ms"}) as (_, endpoints),
        connect(endpoints) as session,
    ):
        shown = {str(name): value for name, value in session.execute("SELECT name, setting FROM pg_settings")}
    expected = {"fsync": "on", "synchronous_commit": "on", "autovacuum": "on", "track_commit_timestamp": "on"}
    expected |= {"max_connections": "33", "deadlock_timeout": "7", "listen_addresses": "", "server_encoding": "UTF8"}
    assert {name: shown[name] for name in expected} == expected


def test_a_message_goes_through_the_broker_and_is_forgotten_with_it(used: Path) -> None:
    for _ in range(2):
        with embedded_stack(used) as (_, endpoints), Connection(endpoints.broker_url) as connection:
            with connection.SimpleQueue("letters") as queue:
                queue.put("hello")
                assert queue.qsize() == 1
            assert connection.default_channel.client.config_get("maxmemory-policy") == {
                "maxmemory-policy": "noeviction"
            }


def test_only_the_servers_user_can_reach_the_sockets(used: Path) -> None:
    with embedded_stack(used):
        for directory in ("run", "postgres", "valkey", "logs"):
            assert stat.S_IMODE((used / directory).stat().st_mode) == 0o700, directory
        for name in (".s.PGSQL.5432", "redis.sock"):
            assert stat.S_IMODE((used / "run" / name).stat().st_mode) == 0o700, name
        assert not AS_ROOT or (used / "run").owner() == "nobody"


@pytest.mark.skipif(not AS_ROOT, reason="only root can become someone else")
def test_another_user_is_turned_away_at_the_socket(used: Path) -> None:
    with embedded_stack(used):
        for name in (".s.PGSQL.5432", "redis.sock"):
            outcome = subprocess.run([sys.executable, "-c", KNOCK, str(used / "run" / name)], check=False)
            assert outcome.returncode == 13, name


def test_a_path_too_long_or_too_odd_for_a_socket_works(fresh: Path) -> None:
    state_dir = fresh / "Application Support, it's odd – ü" / ("long" * 25)
    before = set(Path("/tmp").glob("bankrun-[!w]*"))  # sockets of proofs come and go
    with embedded_stack(state_dir) as (_, endpoints), connect(endpoints) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
        assert str(state_dir) not in endpoints.database_url
        with Connection(endpoints.broker_url) as connection:
            connection.default_channel.client.ping()
    assert set(Path("/tmp").glob("bankrun-[!w]*")) == before


# ---- whoever dies


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lab_that_is_killed_takes_all_processes_with_it(
    used: Path, lab: tuple[subprocess.Popen[str], int], signum: signal.Signals
) -> None:
    process, _ = lab
    assert len(processes_of(used)) == 5
    process.send_signal(signum)
    process.wait()
    assert seconds_until(is_gone(used)) < 2
    assert not (used / "run").exists()


def test_a_killed_lab_can_be_started_again_at_once(used: Path, lab: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = lab
    process.kill()
    process.wait()
    with embedded_stack(used) as (_, endpoints), connect(endpoints) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell the children")
def test_a_killed_keeper_takes_servers_and_workers_with_it(used: Path) -> None:
    with embedded_stack(used) as (keeper, _):
        keeper.spawn("worker", ["sleep", "600"], env={}, cwd=used, log=used / "logs" / "worker.log")
        os.kill(keeper.pid, signal.SIGKILL)
        only_the_zombie = lambda: not [line for line in processes_of(used) if "defunct" not in line]  # noqa: E731
        assert seconds_until(only_the_zombie) < 2
        with pytest.raises(BankrunError, match=r"the keeper .* has ended"):
            keeper.returncode("worker")
    with embedded_stack(used):
        pass


def test_everything_killed_at_once_can_be_started_again_at_once(
    used: Path, lab: tuple[subprocess.Popen[str], int]
) -> None:
    process, keeper = lab
    pids = [int(line.split()[0]) for line in processes_of(used)]
    os.kill(keeper, signal.SIGSTOP)
    with psycopg.connect(host=str(used / "run"), user="bankrun", dbname="bankrun") as busy:
        busy.pgconn.send_query(b"DO 'BEGIN LOOP NULL; END LOOP; END'")  # it does not notice that its postmaster is gone
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        assert (used / "postgres" / "postmaster.pid").exists()
        with embedded_stack(used) as (_, endpoints), connect(endpoints) as session:
            assert session.execute("SELECT 1").fetchone() == (1,)
        busy.close()


def test_servers_that_outlived_their_keeper_are_ended_before_new_ones_start(used: Path) -> None:
    with own(used, for_servers=True) as state:
        binaries = servers.find_binaries()
        if state.servers_user is not None:
            binaries = binaries.copied_to(used / "binaries")
        sockets = state.socket_directory()
        data, valkey = used / "postgres", state.servers_directory("valkey")
        identity = {"user": state.servers_user[0], "group": state.servers_user[1]} if state.servers_user else {}
        with (used / "logs" / "orphans.log").open("wb") as log:
            orphans = [
                subprocess.Popen(program.argv, stdout=log, stderr=log, cwd=valkey, env={"LC_ALL": "C"}, **identity)  # type: ignore[call-overload]
                for program in (
                    servers.postgres(binaries, data, sockets, {}),
                    servers.valkey(binaries, valkey, sockets),
                )
            ]
        seconds_until(lambda: servers.postgres_is_ready(data, orphans[0].pid) and servers.valkey_is_ready(sockets))
    with embedded_stack(used) as (_, endpoints), connect(endpoints) as session:
        assert [orphan.wait(0) for orphan in orphans] == [0, 0]
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_stranger_with_an_old_servers_pid_is_left_alone(used: Path) -> None:
    identity = {"user": "nobody"} if AS_ROOT else {}
    with subprocess.Popen(["sleep", "600"], **identity) as stranger:  # type: ignore[call-overload]
        try:
            (used / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n{used / 'postgres'}\n")
            with embedded_stack(used):
                assert stranger.poll() is None
        finally:
            stranger.kill()


def test_an_interrupted_initdb_is_done_again(fresh: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LAB, str(fresh)]) as process:
        seconds_until((fresh / "postgres.unfinished" / "PG_VERSION").exists)
        process.kill()
    assert not (fresh / "postgres").exists()
    with embedded_stack(fresh) as (_, endpoints), connect(endpoints) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert not (fresh / "postgres.unfinished").exists()


def test_a_close_that_is_interrupted_still_ends_everything(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "_read_until_closed", interrupt)
    with pytest.raises(KeyboardInterrupt), embedded_stack(used):
        pass
    assert seconds_until(is_gone(used)) < 2


# ---- what is refused, in one sentence


def test_a_second_lab_on_the_same_directory_is_refused(used: Path) -> None:
    with (
        embedded_stack(used),
        pytest.raises(
            CannotStart, match=rf"^{used} is in use by another lab \(process {os.getpid()}\): wait .*STATE_DIR"
        ),
        embedded_stack(used),
    ):
        pass


def test_a_file_in_the_directorys_place_is_refused(fresh: Path) -> None:
    file = fresh / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(CannotStart, match=r"[Nn]ot a directory; set BANKRUN_STATE_DIR"), embedded_stack(path):
            pass


def test_another_versions_database_is_refused(fresh: Path) -> None:
    (fresh / "postgres").mkdir()
    (fresh / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(CannotStart, match="was made by Postgres 17, and this is 18"), embedded_stack(fresh):
        pass


def test_a_server_that_cannot_start_says_why_and_leaves_nothing_running(used: Path) -> None:
    with (
        pytest.raises(CannotStart, match=r'did not start: .*"no_such_setting"'),
        embedded_stack(used, postgres_settings={"no_such_setting": "1"}),
    ):
        pass
    assert processes_of(used) == []


@pytest.mark.skipif(not AS_ROOT, reason="only as root do the servers run as someone else")
def test_a_directory_that_nobody_can_enter_is_refused(fresh: Path) -> None:
    fresh.chmod(0o700)
    with pytest.raises(CannotStart, match=f"nobody, who cannot enter {fresh} "), embedded_stack(fresh / "state"):
        pass
    assert not (fresh / "state").exists()


def test_a_directory_that_everyone_can_write_in_is_refused(fresh: Path) -> None:
    (fresh / "something").touch()
    fresh.chmod(0o777)
    with pytest.raises(CannotStart, match="everyone can write in it"), embedded_stack(fresh):
        pass


def test_a_machine_without_the_wheels_is_pointed_to_docker(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with (
        pytest.raises(CannotStart, match=r"Docker .* BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL"),
        embedded_stack(fresh),
    ):
        pass


# ---- the keeper and plain processes


@pytest.fixture
def keeper(fresh: Path) -> Iterator[Keeper]:
    """A keeper without servers."""
    with keeper_only(fresh) as running:
        yield running


def run(keeper: Keeper, state_dir: Path, *argv: str, name: str = "child", **env: str | None) -> int:
    """Spawn a process with its log in the state directory."""
    return keeper.spawn(name, argv, env=env, cwd=state_dir, log=state_dir / "child.log")


def returned(keeper: Keeper, name: str = "child") -> int | None:
    """Wait until a process has ended and return its code."""
    seconds_until(lambda: keeper.returncode(name) is not None)
    return keeper.returncode(name)


def test_a_process_gets_its_environment_and_its_code_and_output_are_kept(
    keeper: Keeper, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "HOME" in os.environ
    run(keeper, fresh, "sh", "-c", "echo ${ADDED-no} ${HOME-no}; exit 3", ADDED="yes", HOME=None)
    assert returned(keeper) == 3
    assert (fresh / "child.log").read_text() == "yes no\n"


def test_a_name_can_be_used_again_once_its_process_has_ended(keeper: Keeper, fresh: Path) -> None:
    first = run(keeper, fresh, "sleep", "600")
    with pytest.raises(BankrunError, match="child is already running"):
        run(keeper, fresh, "sleep", "600")
    keeper.signal("child", signal.SIGKILL)
    assert returned(keeper) == -signal.SIGKILL
    keeper.signal("child", signal.SIGKILL)  # nothing happens
    assert run(keeper, fresh, "sleep", "600") != first
    assert keeper.returncode("child") is None


def test_stop_asks_first_and_insists_after_the_grace(keeper: Keeper, fresh: Path) -> None:
    run(keeper, fresh, "sleep", "600", name="gentle")
    run(keeper, fresh, "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done", name="deaf")
    seconds_until(lambda: "deaf" in (fresh / "child.log").read_text())
    keeper.stop(["gentle", "deaf"], grace_seconds=0.3)
    assert (keeper.returncode("gentle"), keeper.returncode("deaf")) == (-signal.SIGTERM, -signal.SIGKILL)


def test_a_stopped_process_is_ended_all_the_same(fresh: Path) -> None:
    with keeper_only(fresh) as keeper:
        pid = run(keeper, fresh, "sleep", "600")
        keeper.signal("child", signal.SIGSTOP)
        begin = time.monotonic()
    assert time.monotonic() - begin < 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_keeper_that_hangs_is_killed_and_so_is_what_it_owns(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with keeper_only(fresh) as keeper:
        pid = run(keeper, fresh, "sleep", "600")
        for bound in ("SHUTDOWN_SECONDS", "REPLY_SECONDS", "ABANDON_SECONDS"):
            monkeypatch.setattr(f"bankrun.servers.keeper_client.{bound}", 0.2)
        os.kill(keeper.pid, signal.SIGSTOP)
        with pytest.raises(BankrunError, match="does not answer"):
            keeper.returncode("child")
    seconds_until(lambda: not Path(f"/proc/{pid}").exists())


def test_sigterm_to_the_keeper_ends_everything_in_order(keeper: Keeper, fresh: Path) -> None:
    run(keeper, fresh, "sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    seconds_until(lambda: "up" in (fresh / "child.log").read_text())
    os.kill(keeper.pid, signal.SIGTERM)
    seconds_until(lambda: "bye" in (fresh / "child.log").read_text())
    with pytest.raises(BankrunError, match=r"has ended|being shut down"):
        run(keeper, fresh, "true", name="late")


def test_a_malformed_command_gets_an_error_and_harms_nothing() -> None:
    commands = [
        b"no json",
        b"[1]",
        b"{}",
        b'{"do": "dance"}',
        b'{"do": "status", "extra": 1}',
        b'{"do": "spawn", "name": "x"}',
        b'{"do": "spawn", "name": "x", "argv": ["/no/such/program"], "env": {}, "cwd": "/", "log": "/dev/null"}',
        b'{"do": "spawn", "name": "x", "argv": 7, "env": {}, "cwd": "/", "log": "/dev/null"}',
        b'{"do": "spawn", "name": "x", "argv": ["true"], "env": {"A": 1}, "cwd": "/", "log": "/dev/null"}',
        b'{"do": "signal", "name": "x", "signum": 9}',
        b'{"do": "stop", "names": [], "grace_seconds": NaN}',
        b'{"id": 7, "do": "status"}',
    ]
    answered = subprocess.run(
        [sys.executable, "-P", "-m", "bankrun.servers.keeper"],
        input=b"\n".join(commands) + b"\n",
        capture_output=True,
        check=True,
    )
    *refused, last = [json.loads(line) for line in answered.stdout.splitlines()]
    assert ["error" in reply for reply in refused] == [True] * (len(commands) - 1)
    assert refused[6]["error"] == "/no/such/program: No such file or directory"
    assert last == {"id": 7, "children": {}}
    assert answered.stderr == b""


def test_several_private_postgres_run_at_once_and_leave_nothing(fresh: Path) -> None:
    """What a killed one left is removed by the next; one that is in use stays."""
    with private_postgres(fresh, {"fsync": "off"}) as one, private_postgres(fresh, {}) as other:
        for server in (one, other):
            with psycopg.connect(
                host=str(server.host), port=server.port, user=server.user, dbname="bankrun"
            ) as session:
                assert session.execute("SELECT 1").fetchone() == (1,)
        assert one.host != other.host
        assert len(list((fresh / "private").iterdir())) == 2
        abandoned = fresh / "private" / "4194305-killed"  # no process has an id above 2**22
        abandoned.mkdir()
        (abandoned / "lock").touch()
        with private_postgres(fresh, {}):
            assert not abandoned.exists()
    assert list((fresh / "private").iterdir()) == []


@pytest.mark.parametrize("has_room", [True, False])
def test_without_a_state_directory_a_private_postgres_is_in_memory_where_there_is_room(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    memory = state_dir.directory_in_memory()
    if memory is None:
        pytest.skip("there is no memory to put files in")
    kept = fresh / "kept"
    monkeypatch.setattr(embedded, "default_state_dir", lambda: kept)
    if not has_room:
        monkeypatch.setattr(state_dir, "MEMORY_BYTES_MIN", 1 << 60)
    for _ in range(2):  # the second one is a copy of what was kept
        with private_postgres(None, {}) as one, psycopg.connect(host=str(one.host), user=one.user) as session:
            [[where]] = session.execute("SHOW data_directory").fetchall()
            assert Path(where).is_relative_to(memory if has_room else kept / "private")
        assert not Path(where).exists()
    assert not list(kept.glob("unfinished*"))
    assert not list(kept.glob("binaries/unfinished*"))


def test_a_limit_of_the_container_is_room_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\n",
        "memory.max": "3000000",
        "memory.current": "1000000",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: texts[path.name])
    assert state_dir._memory_bytes() == 2_000_000
    texts["memory.max"] = "max"
    assert state_dir._memory_bytes() == 4_096_000
