"""Given Postgres servers, of whichever versions: TEST_SERVERS has their addresses, separated by spaces.

Each gets a database of its own for these tests, and loses it again. Nothing else there is touched.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from pydantic import SecretStr
from sqlalchemy import make_url

from bank.postgres.database import Database, psql_url
from bank.postgres.schema import create_schema, open_for_lab
from bank.settings import Settings
from bankrun.proof.prover import Prover
from bankrun.servers.embedded import private_valkey
from tests.acceptance.conftest import bankrun, cli_state  # noqa: F401 - fixtures
from tests.integration.conftest import accepted, bank, branch, opened, own_settings, prover  # noqa: F401 - fixtures

SERVERS = os.environ.get("TEST_SERVERS", "").split()
NONE = pytest.param("", marks=pytest.mark.skip(reason="TEST_SERVERS names no server: see docs/servers.md"))


@pytest.fixture(scope="session", params=SERVERS or [NONE], ids=lambda url: f"server {url and 1 + SERVERS.index(url)}")
def server(request: pytest.FixtureRequest) -> str:
    """The address of a server, as it was given."""
    return str(request.param)


@pytest.fixture(scope="session")
def server_url(server: str) -> Iterator[str]:
    """The address of a database that was made there for these tests."""
    url = make_url(server).set(drivername="postgresql+psycopg")
    name = f"bankrun_test_{secrets.token_hex(4)}"
    with psycopg.connect(psql_url(url.render_as_string(hide_password=False)), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            with suppress(InsufficientPrivilege):  # after a second for each deadlock, one under load gives up
                connection.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '100ms'".encode())
            yield url.set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def broker_url(state_dir: Path) -> Iterator[str]:
    """A Valkey."""
    with private_valkey(state_dir) as url:
        yield url


@pytest.fixture(scope="session")
def settings(server_url: str, broker_url: str) -> Settings:
    """Settings that name these servers."""
    return Settings(database_url=SecretStr(server_url), broker_url=SecretStr(broker_url))


@pytest.fixture(scope="session")
def database(server_url: str) -> Iterator[Database]:
    """The lab's access to a bank whose schema exists."""
    lab = open_for_lab(server_url)
    create_schema(lab)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def worker_url(server_url: str) -> str:
    """The bank's address as workers log in: one role does everything here."""
    return server_url


@pytest.fixture(scope="session")
def given_prover(server: str, own_settings: Settings) -> Iterator[Prover]:  # noqa: F811
    """A prover in scratch databases of that server."""
    with Prover(own_settings, database_url=server) as there:
        yield there
