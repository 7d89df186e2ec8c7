"""The bank that strategies are proved in: on a Postgres of its own, in a database that nobody used before.

The engine needs settings that no bank should have, and must be able to throw a database away. So a proof has its own
servers wherever it runs: nothing that a strategy does, or leaves behind, reaches another strategy or another bank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from psycopg import sql

from bank import outside
from bank.postgres.database import Database
from bank.postgres.models import SCHEMA
from bank.postgres.roles import set_up_server
from bank.postgres.schema import create_schema, reset_bank
from bank.settings import PREFIX
from bank.strategies.base import Strategy
from bank.strategies.redis_lock import redis_url
from bankrun.proof.cases import ACCOUNTS, OPENING, Case
from bankrun.runs.environment import describe_redis, describe_servers
from bankrun.schedule import SETTINGS, Server, prepare_database
from bankrun.schedule.server import Connection
from bankrun.servers.embedded import PrivatePostgres, private_postgres

ACCEPT = f"INSERT INTO {SCHEMA}.transfers (id, debit, credit, amount, strategy) VALUES (%s, %s, %s, %s, %s)".encode()  # noqa: S608 - our own schema
TEMPLATE = "bankrun"
WAITS_MS = {
    "lease_ttl_ms": 600_000,
    "lock_timeout_ms": 700_000,
    "idle_timeout_ms": 1_500_000,
    "attempt_timeout_ms": 1_600_000,
    "visibility_timeout_ms": 1_700_000,
}
"""No clock runs out by itself in a proof: what came of it would depend on the machine."""


@dataclass(slots=True)
class PrivateBank:
    """A Postgres and a Valkey for proofs, with an empty bank to copy."""

    private: PrivatePostgres
    _databases: int = 0

    @property
    def broker_url(self) -> str:
        """The Valkey's address."""
        assert self.private.broker_url is not None
        return self.private.broker_url

    def server(self, database: str) -> Server:
        """Return the address of one of its databases, as the superuser."""
        return Server(str(self.private.host), int(self.private.port), self.private.user, None, database)

    def url(self, database: str) -> str:
        """Return the same as a SQLAlchemy URL."""
        return f"postgresql+psycopg://{self.private.user}@/{database}?host={self.private.host}&port={self.private.port}"

    @contextmanager
    def connect(self, database: str) -> Iterator[Database]:
        """Open one of its databases for the block, as the lab does."""
        opened = Database(self.url(database), connections_max=2, application_name="bankrun proof", options={})
        try:
            yield opened
        finally:
            opened.close()

    def describe_settings(self, database_url: str) -> dict[str, str]:
        """Return the environment of an instance that works for one of its databases."""
        waits = {f"{PREFIX}{name.upper()}": str(value) for name, value in WAITS_MS.items()}
        return {**waits, f"{PREFIX}DATABASE_URL": database_url, f"{PREFIX}BROKER_URL": self.broker_url}

    def describe(self) -> dict[str, Any]:
        """Return what a proof depends on, for its file."""
        client = redis.Redis.from_url(redis_url(self.broker_url))
        try:
            with self.connect(TEMPLATE) as database:
                return describe_servers(database, describe_redis(client), "private")
        finally:
            client.close()

    @contextmanager
    def database_for(self, strategy: type[Strategy]) -> Iterator[str]:
        """Copy the empty bank, let a strategy install what it needs, and drop the copy after the block.

        Raises StrategyFault where ``install`` fails.
        """
        self._databases += 1
        name = f"proof_{self._databases}"
        with self.server("postgres").connect() as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
            )
        try:
            with self.connect(name) as database:
                outside.install(strategy, database)
            yield name
        finally:
            with self.server("postgres").connect() as admin:
                admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def open_private_bank(state_dir: Path | None) -> Iterator[PrivateBank]:
    """Start the servers for the block, and make the empty bank. Raises CannotStart if that is impossible."""
    with private_postgres(state_dir, SETTINGS, valkey=True) as private:
        bank = PrivateBank(private)
        with bank.server(TEMPLATE).connect() as admin:
            prepare_database(admin)
            set_up_server(admin)
        with bank.connect(TEMPLATE) as database:
            create_schema(database)
        yield bank


def accept_case(admin: Connection, case: Case, strategy: str) -> None:
    """Open the accounts anew, and accept the transfers of a case for a strategy."""
    with admin.transaction():
        reset_bank(admin, ACCOUNTS, OPENING)
        for order in case.orders():
            admin.execute(ACCEPT, [order.id, order.debit, order.credit, order.amount, strategy])
