"""A Postgres for the engine, with the tables of the programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bankrun.schedule import Server
from tests.schedule_support import programs
from tests.schedule_support.private_server import make_database, private_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of this module's tests."""
    with private_server() as found:
        yield found


@pytest.fixture(scope="module")
def database(server: Server) -> Server:
    """A database with the tables of the programs, which each engine leaves as it was."""
    return make_database(server, "app", programs.SETUP)
