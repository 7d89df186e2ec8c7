"""`bankrun try` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bankrun.servers.embedded import private_postgres
from bankrun.servers.state_dir import default_state_dir

EXAMPLES = Path(__file__).parents[2] / "examples" / "trials"
ODD = """
import os, signal, sys
import psycopg

def touch():
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("UPDATE account SET balance = balance + 1 WHERE id = 1")

def crashes():
    touch()
    os.kill(os.getpid(), signal.SIGSEGV)

def exits():
    touch()
    sys.exit(3)

def exits_well():
    touch()
    sys.exit(0)

def raises():
    touch()
    raise ValueError("no money")

def binary():
    touch()
    sys.stdout.buffer.write(b"\\xff\\xfe\\x00")

def ten():
    connections = [psycopg.connect(os.environ["DATABASE_URL"]) for _ in range(10)]
    connections[7].execute("UPDATE account SET balance = balance + 1 WHERE id = 1")
    connections[7].commit()
    for connection in connections:
        connection.close()

def never():
    return 5

def listens():
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("LISTEN news")

def spins():
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        while True:
            connection.execute("UPDATE account SET balance = balance WHERE id = 1")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the examples and a few odd programs."""
    for file in EXAMPLES.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "odd.py").write_text(ODD)
    return tmp_path


def run_try(folder: Path, *words: str, command: str = "try") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "bankrun", command, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_thread_lock_is_safe_in_one_process_and_broken_in_two(folder: Path) -> None:
    calls = [f"transfer.py:transfer_with_lock(1, {to}, 10)" for to in (2, 3)]
    done = run_try(folder, *calls, "--setup", "schema.sql", "--export-json", "trial.json", "--report", "trial.html")
    assert done.returncode == 3, done.stderr
    two, one, again, look = done.stdout.splitlines()[-4:]
    assert two.startswith("two processes: broken: 4 of 6; account.balance of id 1 is 90; either serial order gives 80")
    assert one == (
        "one process: safe: all 2 interleavings of these two calls, on this data, end like one after the other"
    )
    assert "transfer.py:21" in done.stdout  # the line that reads the balance
    trial = json.loads((folder / "trial.json").read_text())
    assert (trial["kind"], trial["programs"]) == ("trial", calls)
    assert [case["verdict"] for case in trial["cases"]] == ["broken", "safe"]
    shortest = trial["cases"][0]["shortest"]
    assert (again, look) == (f"bankrun replay trial.json {shortest}", "bankrun page trial.json")
    check_what_is_saved_to_be_looked_at(trial["cases"][0])
    page = (folder / "trial.html").read_text()
    assert "<svg" in page
    assert "either serial order gives 80" in page

    replayed = run_try(folder, "trial.json", shortest, "--export-sql", "windows.sql", command="replay")
    assert replayed.returncode == 0, replayed.stderr
    assert "account.balance of id 1 is 90; either serial order gives 80" in replayed.stdout
    script = (folder / "windows.sql").read_text()
    assert "\\i schema.sql" in script
    assert script.count("-- window") == len(shortest.partition("/")[2])

    (folder / "transfer.py").write_text((folder / "transfer.py").read_text() + "\n# changed\n")
    changed = run_try(folder, "trial.json", shortest, command="replay")
    assert changed.returncode == 2
    assert "transfer.py changed since the trial" in changed.stderr


def check_what_is_saved_to_be_looked_at(case: dict[str, Any]) -> None:
    seen = case["background"]
    balances = [step["tables"]["account"]["rows"][0][-1] for step in case["steps"] if step["tables"]]
    assert seen["tables"]["account"]["rows"][0] == ["1", "John", "100"]
    assert balances[0] == balances[-1] == "90"  # each commits what it computed from 100
    assert [(one["order"], one["tables"]["account"]["rows"][0][-1]) for one in seen["serial"]] == [
        ("AB", "80"),
        ("BA", "80"),
    ]
    assert seen["ended"] == ["account.balance of id 1 is 90; either serial order gives 80"]
    assert (seen["sources"]["A"]["file"], seen["varying"]) == ("transfer.py", [])
    reads = [step for step in case["steps"] if step["line"] == "transfer.py:21"]
    assert {step["text"] for step in reads} == {seen["sources"]["B"]["lines"][20].strip()}


def test_scripts_are_run_by_psql_and_one_statement_can_be_broken(folder: Path) -> None:
    (folder / "tag.sql").write_text(
        "INSERT INTO tag (name) SELECT 'red' WHERE NOT EXISTS (SELECT 1 FROM tag WHERE name = 'red');\n"
    )
    done = run_try(folder, "tag.sql", "--setup", "schema.sql")
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1].endswith("tag has 2 rows; either serial order gives 1")


def test_a_command_and_a_function_meet(folder: Path) -> None:
    (folder / "buy.py").write_text("import report\nreport.transfer(10)\n")
    command = f"{sys.executable} buy.py"
    done = run_try(
        folder,
        "report.py:total()",
        "--command",
        command,
        "--setup",
        "schema.sql",
        "--invariant",
        "SELECT 1 WHERE false",
    )
    assert done.returncode == 3, done.stderr
    assert "A returns 210; serially it returns 200" in done.stdout


@pytest.mark.parametrize(
    ("function", "code", "sentence"),
    [
        ("crashes", 1, "crashes() fails in every order: died"),
        ("exits", 1, "exits() fails in every order: SystemExit: 3"),
        ("exits_well", 0, "safe: all"),
        ("raises", 1, "raises() fails in every order: ValueError: no money"),
        ("binary", 0, "safe: all"),
        ("ten", 0, "safe: all"),
        ("never", 2, "never() sends nothing to the Postgres that DATABASE_URL and PGHOST name"),
        ("listens", 1, "LISTEN: what is notified depends on who listens when"),
        ("spins", 1, "has taken 200 steps, and does not come to an end"),
    ],
)
def test_what_an_odd_program_does_is_one_sentence(folder: Path, function: str, code: int, sentence: str) -> None:
    done = run_try(folder, f"odd.py:{function}()", "--setup", "schema.sql", "--instances", "two")
    assert done.returncode == code, done.stderr
    said = done.stdout if code == 0 else done.stderr
    assert sentence in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["shop.py:buy(1)"], "there is no file"),
        (["report.py:total()", "--setup", "none.sql"], "there is no file"),
        (["report.py:total()", "--ignore", "account.colour", "--setup", "schema.sql"], "makes no such column"),
        (["report.py:total()", "--judge", "invariant"], "needs an --invariant"),
        (["--command", "ls", "--instances", "same"], "only Python functions"),
        (["report.py:total()", "--env", "X={nothing}"], "a template has {url}"),
        (["report.py:total()", "--database-url", "postgresql://x/y?sslmode=require"], "asks for TLS"),
        ([], "nothing to try"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_started(folder: Path, words: list[str], sentence: str) -> None:
    done = run_try(folder, *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.long
def test_a_project_with_a_bank_of_its_own_needs_none_of_ours(folder: Path) -> None:
    for name in ("bank", "workers"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("OURS = False\n")
    (folder / "celery.py").write_text("raise ImportError('celery is not for trials')\n")
    (folder / "kombu.py").write_text("raise ImportError('kombu is not for trials')\n")
    (folder / "own.py").write_text(
        "import bank\nimport sign_up\n\ndef join(email):\n    assert not bank.OURS\n    sign_up.sign_up(email)\n"
    )
    words = ["own.py:join('a@x')", "own.py:join('b@x')", "--setup", "schema.sql", "--instances", "two"]
    done = subprocess.run(
        [sys.executable, "-m", "bankrun", "try", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(EXAMPLES.parents[1])])},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("safe: all ")
    (folder / "test_own.py").write_text(
        "import bank\n\n"
        "def test_safe(bankrun):\n"
        "    found = bankrun.serializable('report.py:transfer(10)', setup='schema.sql', instances='two')\n"
        "    assert found.complete\n\n"
        "def test_broken(bankrun):\n"
        "    bankrun.serializable('jobs.py:take(\"ann\")', setup='schema.sql', instances='two')\n"
    )
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n2", "test_own.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "1 failed, 1 passed" in tests.stdout, tests.stdout + tests.stderr
    assert "broken: " in tests.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_outlives_it(folder: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    marker = f"outlives-{os.getpid()}-{number}"
    words = ["--command", f"{sys.executable} wait.py {marker}", "--setup", "schema.sql"]
    (folder / "wait.py").write_text("import report, time\nreport.transfer(1)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bankrun", "try", *words], cwd=folder, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not find_processes(f"wait.py {marker}", but=process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.5)  # it has moved its money by now, and sleeps: a socket that is closed ends it no more
    process.send_signal(number)
    assert process.wait(30) == code
    deadline = time.monotonic() + 5
    while left := [*find_processes(marker), *find_processes(f"private/{process.pid}-")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def find_processes(text: str, but: int = 0) -> list[str]:
    lines = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    found = [line.strip() for line in lines.splitlines() if text in line]
    return [line for line in found if int(line.split()[0]) != but and "bankrun try" not in line]


@pytest.mark.long
def test_four_at_once_do_not_meet(folder: Path) -> None:
    words = [sys.executable, "-P", "-m", "bankrun", "try", "report.py:transfer(10)", "--setup", "schema.sql"]
    four = [
        subprocess.Popen([*words, "--instances", "two"], cwd=folder, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = {process.communicate(timeout=110)[0] for process in four}
    assert [process.returncode for process in four] == [0] * 4
    assert len(said) == 1
    assert said.pop().startswith("safe: all ")


@pytest.mark.long
@pytest.mark.parametrize("user", ["owner", "plain"])
def test_on_a_given_server_only_scratch_databases_come_and_go(folder: Path, tmp_path: Path, user: str) -> None:
    state = Path(os.environ["BANKRUN_STATE_DIR"]) if "BANKRUN_STATE_DIR" in os.environ else default_state_dir()
    with private_postgres(state, {}) as server:
        address = {"host": str(server.host), "port": server.port, "user": server.user, "autocommit": True}
        with psycopg.connect(**address, dbname="postgres") as connection:
            connection.execute("CREATE ROLE plain LOGIN CREATEDB")
            connection.execute("CREATE ROLE owner LOGIN SUPERUSER")
            connection.execute("CREATE DATABASE bankrun_trial_of_a_user")  # our prefix, and not our marker
            for name in ("bankrun_trial_left", "bankrun_trial_left_as_it_was"):
                connection.execute(f"CREATE DATABASE {name} OWNER {user}")
            connection.execute("COMMENT ON DATABASE bankrun_trial_left IS 'a scratch database of bankrun try'")
        url = f"postgresql://{user}@/postgres?host={server.host}&port={server.port}"
        words = [f"transfer.py:transfer_money(1, {to}, 10)" for to in (2, 3)]
        done = run_try(folder, *words, "--setup", "schema.sql", "--instances", "two", "--database-url", url)
        with psycopg.connect(**address, dbname="postgres") as connection:
            left = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1].endswith("account.balance of id 1 is 90; either serial order gives 80")
    assert left == {"postgres", "template0", "template1", "bankrun", "bankrun_trial_of_a_user"}


TWO_PHASE = """
import os, psycopg

def prepare_it():
    with psycopg.connect(os.environ["DATABASE_URL"]) as c:
        c.tpc_begin(c.xid(1, "one", "x"))
        c.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
        c.tpc_prepare()
        c.tpc_commit()
"""


@pytest.mark.long
def test_two_phases_are_refused_and_nothing_prepared_is_left(folder: Path) -> None:
    (folder / "phases.py").write_text(TWO_PHASE)
    state = Path(os.environ["BANKRUN_STATE_DIR"]) if "BANKRUN_STATE_DIR" in os.environ else default_state_dir()
    with private_postgres(state, {"max_prepared_transactions": "5"}) as server:
        address = {"host": str(server.host), "port": server.port, "user": server.user}
        with psycopg.connect(**address, dbname="postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE bankrun_trial_left")
            connection.execute("COMMENT ON DATABASE bankrun_trial_left IS 'a scratch database of bankrun try'")
            with psycopg.connect(**address, dbname="bankrun_trial_left") as killed:
                killed.execute("CREATE TABLE t ()")
                killed.execute("PREPARE TRANSACTION 'left by a trial that was killed'")
            url = f"postgresql://{server.user}@/postgres?host={server.host}&port={server.port}"
            done = run_try(folder, "phases.py:prepare_it()", "--setup", "schema.sql", "--database-url", url)
            left = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            prepared = connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall()
    assert done.returncode == 1
    assert "PREPARE TRANSACTION" in done.stderr
    assert (prepared, left) == ([], {"postgres", "template0", "template1", "bankrun"})


OUTSIDE = """
import fcntl, os, threading
import psycopg

lock = threading.Lock()

def add(connection, to):
    connection.execute("UPDATE account SET balance = balance + 1 WHERE id = %s", [to])

def lock_then_row():
    with lock, psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        add(connection, 1)

def row_then_lock():
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        add(connection, 1)
        with lock:
            add(connection, 2)

def read_and_write_in_a_file_lock():
    with open("lockfile", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            (balance,) = connection.execute("SELECT balance FROM account WHERE id = 1").fetchone()
            connection.execute("UPDATE account SET balance = %s WHERE id = 1", [balance + 1])
"""


def test_a_lock_of_the_process_and_a_row_that_wait_for_each_other_never_end(folder: Path) -> None:
    (folder / "outside.py").write_text(OUTSIDE)
    calls = ["outside.py:lock_then_row()", "outside.py:row_then_lock()"]
    done = run_try(folder, *calls, "--setup", "schema.sql", "--instances", "same")
    assert done.returncode == 3, done.stderr
    waits = "neither ends: A waits in Postgres for B; B waits for something that is not Postgres"
    assert done.stdout.splitlines()[-1].endswith(waits)


def test_a_file_lock_is_seen_from_outside_and_scheduled_around(folder: Path) -> None:
    (folder / "outside.py").write_text(OUTSIDE)
    calls = ["outside.py:read_and_write_in_a_file_lock()"]
    done = run_try(folder, *calls, "--setup", "schema.sql", "--instances", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("safe: all ")
