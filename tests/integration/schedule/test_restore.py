"""Each execution begins as the first did, and nothing of it is left."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bankrun.schedule import Engine, Server, follow
from bankrun.schedule.restore import Keeper
from bankrun.schedule.server import tune_database
from tests.schedule_support import programs
from tests.schedule_support.exploring import SUPPORT, balances, calls
from tests.schedule_support.private_server import make_database

RC, AUTOCOMMIT = 2, 0


def test_a_change_of_the_definition_is_undone_and_sessions_are_fresh(database: Server) -> None:
    programs_ = [
        ("run", AUTOCOMMIT, "CREATE TABLE made (a int)", "SET search_path = nowhere", "SELECT pg_advisory_lock(1)"),
        (
            "run",
            AUTOCOMMIT,
            "SELECT count(*) FROM account",
            "SHOW search_path",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        ),
    ]
    with Engine(database, calls(*programs_)) as engine:
        first = engine.execute(follow(""), ["A", "B"])
        assert first.catalog_changed
        assert "public.made" not in first.rows
        second = engine.execute(follow(""), ["A", "B"])
        assert [o.error for o in second.outcomes.values()] == ["", ""]
        assert second.outcomes["B"].result == first.outcomes["B"].result
        assert second.outcomes["B"].result[1:] == [[['"$user", public']], [[0]]]
        engine.give("B", [RC, "SELECT count(*) FROM account", "UPDATE account SET balance = 0 WHERE id = 1"])
        assert not engine.execute(follow(""), ["A", "B"]).outcomes["B"].error
        engine.give("B", [RC, "SELECT 1 FROM account WHERE id = 2", "SELECT 2"])
        assert not engine.execute(follow("")).outcomes["B"].error


def test_physical_order_and_sequences_are_restored(database: Server) -> None:
    programs_ = [
        (
            "run",
            RC,
            "UPDATE account SET balance = 1 WHERE id = 3",
            "INSERT INTO loose (email) VALUES ('a') RETURNING id",
        ),
        ("run", RC, "SELECT id, ctid FROM account"),
    ]
    with Engine(database, calls(*programs_)) as engine:
        seen = [engine.execute(follow(""), ["B", "A"]).outcomes for _ in range(3)]
    assert len({repr(o["B"].result) for o in seen}) == 1
    assert {repr(o["A"].result[1]) for o in seen} == {"[[1]]"}


@pytest.fixture
def own_temporary_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files in which no other test's engine clears up."""
    with tempfile.TemporaryDirectory(prefix="bankrun-killed-", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


def test_nothing_is_left_when_the_engine_is_killed(server: Server, own_temporary_files: Path) -> None:
    database = make_database(server, "killed", programs.SETUP)
    code = (
        f"import sys, os; sys.path.insert(0, {SUPPORT!r})\n"
        "from bankrun.schedule import *\n"
        f"server = Server({database.host!r}, {database.port}, {database.user!r}, None, 'killed')\n"
        f"calls = [Call(n, 'programs:transfer', (1, 2, 10), path=[{SUPPORT!r}]) for n in 'AB']\n"
        "engine = Engine(server, calls)\n"
        "def choose(able, steps):\n"
        "    if len(steps) == 3:\n"
        "        print(os.getpid(), *[member.pid for member in engine._crew.members.values()], flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return able[0]\n"
        "engine.execute(choose)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    killed, *pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    [its_sockets] = own_temporary_files.glob(f"bankrun-wire-{killed}-*")
    with Engine(database, calls(("transfer", 1, 2, 10), ("transfer", 1, 2, 10))):
        assert not its_sockets.exists()


def test_programs_run_again_find_what_the_others_left_and_the_next_execution_does_not(database: Server) -> None:
    specs = calls(("plain_transfer", 1, 2, 10), ("plain_transfer", 1, 3, 10), kept=False)
    with Engine(database, specs) as engine:
        before = engine.read_rows()
        once = engine.execute(follow(""), ["A", "B"])
        twice = engine.run_again(["B"])
        assert balances(once) == {1: 80, 2: 110, 3: 110}
        assert balances(twice) == {1: 70, 2: 110, 3: 120}
        assert list(twice.outcomes) == ["B"]
        engine.restore()
        assert engine.read_rows() == before


def test_what_prepares_a_process_asks_unscheduled_and_leaves_nothing(database: Server) -> None:
    specs = calls(
        ("plain_transfer", 1, 2, 10), kept=False, prepare="programs:change_at_import", prepare_arguments=["at_import"]
    )
    with Engine(database, specs) as engine:
        assert balances(engine.execute(follow(""))) == {1: 90, 2: 110, 3: 100}
        assert "public.at_import" not in engine.read_rows()


PRESET = (
    "SELECT setting FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
    " CROSS JOIN unnest(setconfig) setting WHERE datname = current_database() ORDER BY 1"
)


def test_a_database_that_is_copied_anew_presets_what_it_did(server: Server) -> None:
    preset = make_database(server, "preset", programs.SETUP)
    with server.connect("postgres") as connection:
        for setting in (
            "default_transaction_isolation = serializable",
            "default_transaction_read_only = on",
            'search_path = "$user", public, "a, b"',
            "auto_explain.log_format = yaml",
        ):
            connection.execute(f"ALTER DATABASE preset SET {setting}")  # type: ignore[call-overload]
    admin = preset.connect()
    before = admin.execute(PRESET).fetchall()
    keeper = Keeper(preset, admin, recreates=True)
    try:
        assert keeper.recreate().execute(PRESET).fetchall() == before != []
    finally:
        keeper.admin.close()
        keeper.drop_template()


def test_a_scratch_database_gets_what_one_database_can_have_from_a_superuser(server: Server) -> None:
    tuned = make_database(server, "tuned", "CREATE ROLE plain LOGIN", prepare=False)
    with replace(tuned, user="plain").connect() as connection:
        tune_database(connection, "tuned")
    with tuned.connect() as connection:
        assert connection.execute(PRESET).fetchall() == []
        tune_database(connection, "tuned")
        found = {setting for (setting,) in connection.execute(PRESET).fetchall()}
    assert {"deadlock_timeout=1ms", "log_lock_waits=on", "client_min_messages=log"} <= found
    assert not {one for one in found if one.startswith(("fsync", "full_page_writes", "shared_preload"))}
