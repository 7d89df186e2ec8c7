"""What a user gets wrong: one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import Bankrun, command, environment, processes_of
from tests.waiting import wait_until


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--topology", "0x8"),
        ("compare", "--topology", "banana"),
        ("compare", "--transfers", "-1"),
        ("compare", "--transfers", "many"),
        ("compare", "--accounts", "1"),
        ("compare", "--strategy", "rowlock"),
        ("compare", "--skew", "sideways"),
        ("compare", "--repeat", "0"),
        ("compare", "--warmup", "-1"),
        ("compare", "--think-ms", "-1"),
        ("compare", "--cell-timeout", "0"),
        ("compare", "--cell-timeout", "nan"),
        ("compare", "--seed", "-1"),
        ("compare", "--think-ms", "15000"),
        ("compare", "--export-json", "same", "--export-csv", "./same"),
        ("compare", "--export-json", ""),
        ("compare", "--export-json", "é" * 200),
        ("compare", "--chunk", "0"),
        ("compare", "--export-json", "."),
        ("compare", "--export-json", "-", "--export-csv", "-"),
        ("compare", "--no-such-option"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(
    typed: Bankrun, tmp_path: Path, cli_state: Path, words: tuple[str, ...]
) -> None:
    check_mistake(typed(*words), tmp_path, cli_state)


@pytest.mark.parametrize(
    "words",
    [("compare", "--topology", "8x64"), ("comparee",), ("compare", "--export-json", "no/such/folder/r.json")],
    ids=" ".join,
)
def test_a_wrong_command_is_one_sentence_in_a_process_of_its_own_too(
    bankrun: Bankrun, tmp_path: Path, cli_state: Path, words: tuple[str, ...]
) -> None:
    check_mistake(bankrun(*words), tmp_path, cli_state)


def check_mistake(done: subprocess.CompletedProcess[str], cwd: Path, cli_state: Path) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bankrun: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(cwd.iterdir()) == []
    assert processes_of(cli_state) == []


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("BANKRUN_TREADS", "9", "did you mean BANKRUN_THREADS?"),
        ("BANKRUN_THREADS", "0", "BANKRUN_THREADS"),
        ("BANKRUN_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/bank", "BANKRUN_BROKER_URL is not set"),
        ("BANKRUN_BROKER_URL", "redis://:hunter2@127.0.0.1:1/0", "BANKRUN_DATABASE_URL is not set"),
        ("BANKRUN_STATE_DIR", "/dev/null/here", "/dev/null/here"),
    ],
)
def test_a_wrong_environment_is_one_sentence_and_exit_code_2(typed: Bankrun, name: str, value: str, hint: str) -> None:
    done = typed("compare", **{name: value})
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert hint in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("words", [("compare",), ("audit",), ("doctor",)], ids=" ".join)
def test_no_server_at_the_given_address_is_one_sentence(typed: Bankrun, words: tuple[str, ...]) -> None:
    done = typed(
        *words,
        BANKRUN_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/bank",
        BANKRUN_BROKER_URL="redis://127.0.0.1:1/0",
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no Postgres at" in done.stderr
    assert "hunter2" not in done.stderr


def test_an_audit_before_there_is_a_bank_says_so(
    bankrun: Bankrun, tmp_path_factory: pytest.TempPathFactory, cli_state: Path
) -> None:
    empty = cli_state.with_name(cli_state.name + "-empty")
    empty.mkdir(mode=0o755)
    try:
        done = bankrun("audit", BANKRUN_STATE_DIR=str(empty))
        assert (done.returncode, done.stderr) == (2, "bankrun: there is no bank yet: run `bankrun compare` first\n")
    finally:
        subprocess.run(["rm", "-rf", str(empty)], check=True)


def long_run(cli_state: Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a comparison that takes long, and wait until its workers are at it."""
    words = (
        "compare",
        "--topology",
        "2x4",
        "--think-ms",
        "50",
        "--transfers",
        "4000",
        "--warmup",
        "0",
        "--export-json",
        "r.json",
    )
    process = subprocess.Popen(
        command(*words), cwd=cwd, env=environment(cli_state), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if not wait_until(lambda: sum("workers.app" in line for line in processes_of(cli_state)) == 2, 60):
        process.kill()  # the next test wants the directory
        pytest.fail(f"no workers after a minute: {process.communicate()}")
    return process


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_within_seconds_and_leaves_nothing(
    cli_state: Path, tmp_path: Path, signum: int, code: int
) -> None:
    process = long_run(cli_state, tmp_path)
    process.send_signal(signum)
    out, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert "Traceback" not in out + err
    assert wait_until(lambda: not processes_of(cli_state), 3), processes_of(cli_state)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_of_the_lab_takes_everything_with_it(cli_state: Path, tmp_path: Path) -> None:
    process = long_run(cli_state, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert wait_until(lambda: not processes_of(cli_state), 3), processes_of(cli_state)


def test_a_second_lab_on_the_same_state_directory_is_told_so(bankrun: Bankrun, cli_state: Path, tmp_path: Path) -> None:
    process = long_run(cli_state, tmp_path)
    try:
        done = bankrun("audit")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert str(cli_state) in done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert wait_until(lambda: not processes_of(cli_state), 3)


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_a_server_that_is_killed_in_mid_run_is_named_and_nothing_is_left(
    cli_state: Path, tmp_path: Path, server: str
) -> None:
    process = long_run(cli_state, tmp_path)
    pid_file = next(cli_state.rglob("postmaster.pid" if server == "postgres" else "valkey.pid"))
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
    try:
        out, err = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Traceback" not in out + err
    assert err.splitlines()[-1].startswith("bankrun: ")
    assert wait_until(lambda: not processes_of(cli_state), 3), processes_of(cli_state)


def test_what_is_no_regular_file_is_written_to_and_never_replaced(bankrun: Bankrun, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "target").chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    done = bankrun(
        *("compare", "--strategy", "row-lock", "--topology", "1x1", "--transfers", "5", "--warmup", "0"),
        *("--export-json", "link", "--export-csv", "/dev/null"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink()
    assert '"schema": 1' in (tmp_path / "target").read_text()
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o640
    assert Path("/dev/null").is_char_device()


def test_what_is_meant_for_others_changes_nothing(bankrun: Bankrun, tmp_path: Path) -> None:
    for package in ("bank", "workers", "bankrun"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    done = bankrun(
        *("compare", "--strategy", "row-lock", "--topology", "1x1", "--transfers", "5", "--warmup", "0"),
        CELERY_BROKER_URL="redis://127.0.0.1:1/0",
        PGSERVICE="no-such-service",
        PGREQUIREAUTH="scram-sha-256",
        PYTHONWARNINGS="error",
    )
    assert done.returncode == 0, done.stderr
