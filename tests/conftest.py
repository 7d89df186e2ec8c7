"""One embedded stack for each process that runs tests, in a state directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bank.postgres.database import Database
from bank.postgres.roles import WORKER_ROLE, set_up_server
from bank.postgres.schema import create_schema, open_for_lab
from bank.settings import Settings
from bankrun.runs.lessons import FOLDER
from bankrun.servers.embedded import Endpoints, embedded_stack
from bankrun.servers.keeper_client import Keeper
from tests.places import make_place

DEAR = {"comparison", "lab", "browser"}
"""Fixtures that take seconds: all tests that use one of them run in the same process, where it is made once."""


def pytest_configure() -> None:
    """Let interruptions reach what tests start: a shell's background jobs, and nohup's, ignore them; so would ours."""
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, handler)


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `make test` starts: not more than cores, since many tests start fleets of workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(cores, 8))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep together what shares a dear fixture; xdist reads the groups before our later hooks run."""
    for name in DEAR.intersection(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse to run where xdist does not keep its groups together: tests would miss what others leave for them."""
    if getattr(config.option, "loadgroup", False):
        for item in items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError("this pytest-xdist keeps no groups with this pytest: see pyproject.toml")


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """A directory that the embedded servers can reach: pytest's own are closed to the user that Postgres runs as."""
    path = make_place("test")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def stack(state_dir: Path) -> Iterator[tuple[Keeper, Endpoints]]:
    """A real Postgres and a real Valkey."""
    with embedded_stack(state_dir, worker_user=WORKER_ROLE, set_up=set_up_server) as running:
        yield running


@pytest.fixture(scope="session")
def settings(stack: tuple[Keeper, Endpoints]) -> Settings:
    """Settings that name the test servers."""
    _, endpoints = stack
    return Settings(database_url=SecretStr(endpoints.database_url), broker_url=SecretStr(endpoints.broker_url))


@pytest.fixture(scope="session")
def database(stack: tuple[Keeper, Endpoints]) -> Iterator[Database]:
    """The lab's access to a bank whose schema exists."""
    _, endpoints = stack
    database = open_for_lab(endpoints.database_url)
    create_schema(database)
    yield database
    database.close()


@pytest.fixture(scope="session")
def worker_url(stack: tuple[Keeper, Endpoints]) -> str:
    """The bank's address as workers log in."""
    _, endpoints = stack
    return endpoints.worker_database_url


@pytest.fixture(scope="session")
def lessons_importable() -> Iterator[None]:
    """Let tests import what is in lessons/, which is no package: behind everything else, so that it shadows nothing."""
    sys.path.append(str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
