"""`bankrun lesson` as a user types it, and the lessons as plain files."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bank.errors import CannotStart
from bankrun.cli import lesson as command_module
from bankrun.runs.lessons import FOLDER, LESSONS
from tests.acceptance.conftest import Bankrun, command, environment, processes_of
from tests.waiting import wait_until


def test_the_list_names_every_lesson_within_80_columns(bankrun: Bankrun) -> None:
    done = bankrun("lesson")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(any(line.startswith(name + " ") for line in lines) for name in LESSONS)
    assert max(len(line) for line in lines) <= 80


def test_a_lesson_is_told_in_80_columns_without_colours_for_a_pipe(bankrun: Bankrun) -> None:
    done = bankrun("lesson", "deadlock")
    assert (done.returncode, done.stderr) == (0, "")
    assert "A waits for the lock in _update_balance()" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert {"Think", "In earnest"} <= {line.partition(":")[0] for line in done.stdout.splitlines()}


def test_the_source_is_the_file(bankrun: Bankrun) -> None:
    done = bankrun("lesson", "rlock", "--source")
    assert done.stdout == LESSONS["rlock"].path.read_text(encoding="utf-8")


def test_a_typo_is_one_sentence_with_the_nearest_name_and_exit_code_2(bankrun: Bankrun) -> None:
    done = bankrun("lesson", "bank-rase")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bankrun: there is no lesson 'bank-rase': did you mean bank-race?\n"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"name": "lock", "run_all": True}, "not both"),
        ({"source": True}, "needs the name of a lesson"),
        ({"run_all": True, "source": True}, "needs the name of a lesson"),
        ({"name": "lock", "step": True}, "there is no terminal"),
        ({"name": "lock", "step": True, "source": True}, "give one of them"),
    ],
)
def test_options_that_do_not_go_together_start_nothing(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], hint: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(CannotStart, match=hint):
        command_module.lesson(**options)


def test_all_lessons_share_one_postgres_and_leave_nothing(
    cli_state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    two = {name: LESSONS[name] for name in ("lock", "bank-instances")}  # all 17 take five times as long
    monkeypatch.setattr(command_module, "LESSONS", two)
    monkeypatch.setenv("BANKRUN_STATE_DIR", str(cli_state))
    command_module.lesson(run_all=True)
    out, err = capfd.readouterr()
    assert err == ""
    assert "in the bank, not 300" in out
    assert "holds: John 90, Jane 100, Alice 110: 300 in the bank" in out
    assert "2 lessons in" in out
    assert processes_of(cli_state) == []


def test_a_wheel_has_every_lesson_where_the_lab_looks_for_it(tmp_path: Path) -> None:
    words = ("-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    subprocess.run([sys.executable, *words], cwd=FOLDER.parent, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"bankrun/runs/lessons.py", *(f"bankrun/lessons/{path.name}" for path in FOLDER.glob("*.py"))} <= names
    metadata = (
        f"bankrun-{tomllib.loads((FOLDER.parent / 'pyproject.toml').read_text())['project']['version']}.dist-info"
    )
    assert {name.partition("/")[0] for name in names} == {"bank", "workers", "bankrun", metadata}
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-m", "bankrun", "lesson", "lock"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_plain_file_runs_anywhere_without_bankrun(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(LESSONS["lock"].path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "broken: up to 2 in it at once" in done.stdout


def test_a_bank_lesson_without_its_packages_says_which_python_to_use(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(LESSONS["bank"].path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "bankrun lesson" in done.stderr


def test_a_bank_lesson_without_its_server_is_one_sentence_and_exit_code_2(bankrun: Bankrun) -> None:
    nowhere = "127.0.0.1:1"
    done = bankrun(
        *("lesson", "bank"),
        BANKRUN_DATABASE_URL=f"postgresql://me:hunter2@{nowhere}/bank",
        BANKRUN_BROKER_URL=f"redis://{nowhere}/0",
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "no Postgres at" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_lesson_that_hangs_is_ended_and_shows_where_it_stood(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(
        f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        "import threading\n"
        "from telling import Lesson, perform\n"
        "def waits_for_ever(stage): 'For ever.'; threading.Event().wait()\n"
        "perform(Lesson('hangs', '', (waits_for_ever,), '', '', seconds_max=0.2))\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "hangs.py")], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in waits_for_ever" in done.stderr


def test_step_waits_for_keys_in_colours_and_ctrl_c_ends_it_with_130(cli_state: Path, tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, command("lesson", "lock", "--step"), environment(cli_state, TERM="xterm"))
    shown = b""

    def read_until(wanted: bytes) -> None:
        nonlocal shown
        while wanted not in shown:
            assert select.select([terminal], [], [], 20)[0], shown
            shown += os.read(terminal, 4096)

    os.write(terminal, b" ")  # the heading
    read_until(b"with 0 others")
    assert b"\x1b[36m" in shown
    assert b"with 1 others" not in shown  # it waits
    os.write(terminal, b" ")
    read_until(b"with 1 others")
    os.write(terminal, b"\x03")
    assert wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None, 15)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    os.close(terminal)


def test_a_signal_ends_a_lesson_on_postgres_and_leaves_nothing(cli_state: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("lesson", "bank-row-lock"),
        cwd=tmp_path,
        env=environment(cli_state),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(lambda: any("postgres" in line for line in processes_of(cli_state)), 30)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in out + err
    assert wait_until(lambda: not processes_of(cli_state), 5), processes_of(cli_state)
