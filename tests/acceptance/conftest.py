"""The command line as a user types it: a process of its own, with a state directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bank.settings import Settings
from bankrun.cli import app
from bankrun.runs.comparison import Lab
from bankrun.runs.session import open_lab, open_servers
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from tests.places import make_place

SECONDS_MAX = 110
Bankrun = Callable[..., "subprocess.CompletedProcess[str]"]


def command(*words: str) -> list[str]:
    """Return the command line of bankrun."""
    return [sys.executable, "-P", "-m", "bankrun", *words]


def environment(state_dir: Path, **extra: str) -> dict[str, str]:
    """Return an environment in which bankrun knows nothing but its state directory."""
    # CI: pytest prints failures a second time where that is set, and users read them at home too.
    foreign = ("BANKRUN_", "COLUMNS", "CI", "BUILD_NUMBER")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**clean, "BANKRUN_STATE_DIR": str(state_dir), "PYTHONWARNINGS": "ignore", **extra}


@pytest.fixture(scope="session")
def cli_state() -> Iterator[Path]:
    """The state directory of all commands: Postgres is set up in it once."""
    path = make_place("cli")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def bankrun(cli_state: Path, tmp_path: Path) -> Bankrun:
    """Return a function that runs bankrun in an empty folder and returns what it printed."""

    def run(*words: str, cwd: Path = tmp_path, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words),
            cwd=cwd,
            env=environment(cli_state, **extra),
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def typed(
    cli_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bankrun:
    """Return a function as above, but in this process: for what ends before anything is started.

    A process of its own takes a second, nearly all of it to import.
    """

    def run(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            for name in os.environ.keys() - environment(cli_state).keys():
                patch.delenv(name)
            for name, value in environment(cli_state, **extra).items():
                patch.setenv(name, value)
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", ["bankrun", *words])
            code = app.run()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, err)

    return run


@pytest.fixture(scope="module")
def lab(stack: tuple[Keeper, Endpoints], state_dir: Path) -> Iterator[Lab]:
    """Two instances with four threads each, on the test session's servers."""
    _, endpoints = stack
    settings = Settings(
        database_url=SecretStr(endpoints.database_url),
        broker_url=SecretStr(endpoints.broker_url),
        state_dir=state_dir / "lab",
    )
    with open_servers(settings) as servers, open_lab(servers, instances=2, threads=4) as opened:
        yield opened


def processes_of(state_dir: Path) -> list[str]:
    """Return the command lines of all processes that work in a state directory."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            environ = (directory / "environ").read_bytes()
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            where = str((directory / "cwd").readlink())
        except OSError:
            continue
        if line and (
            str(state_dir) in line
            or where.startswith(str(state_dir))
            or f"BANKRUN_STATE_DIR={state_dir}".encode() in environ
        ):
            found.append(line)
    return found
