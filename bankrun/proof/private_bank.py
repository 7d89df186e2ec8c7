"""The bank that strategies are proved in: on a Postgres of its own, in a database that nobody used before.

The engine needs settings that no bank should have, and must be able to throw a database away. So a proof has its own
servers wherever it runs: nothing that a strategy does, or leaves behind, reaches another strategy or another bank. On a
given server it has databases of its own, and sees less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import URL

from bank import outside
from bank.postgres.database import Database
from bank.postgres.models import SCHEMA
from bank.postgres.roles import WORKER_ROLE, set_up_server
from bank.postgres.schema import create_schema, reset_bank
from bank.settings import PREFIX
from bank.strategies.base import Strategy
from bank.strategies.redis_lock import redis_url
from bankrun.proof.cases import ACCOUNTS, OPENING, Case
from bankrun.runs.environment import describe_servers
from bankrun.schedule import SETTINGS, Server, prepare_database
from bankrun.schedule.server import Connection, tune_database
from bankrun.servers.embedded import private_postgres, private_valkey
from bankrun.servers.places import TEMPLATE_SUFFIX, Place, mark, open_keeper, own_place, read_place, scratch_copy
from workers.broker.brokers import describe_redis

ACCEPT = f"INSERT INTO {SCHEMA}.transfers (id, debit, credit, amount, strategy) VALUES (%s, %s, %s, %s, %s)".encode()  # noqa: S608 - our own schema
WAITS_MS = {
    "lease_ttl_ms": 600_000,
    "lock_timeout_ms": 700_000,
    "idle_timeout_ms": 1_500_000,
    "attempt_timeout_ms": 1_600_000,
    "visibility_timeout_ms": 1_700_000,
}
"""No clock runs out by itself in a proof: what came of it would depend on the machine."""


@dataclass(frozen=True, slots=True)
class PrivateBank:
    """A Postgres and a Valkey for proofs, with an empty bank to copy: the database ``template``."""

    place: Place
    broker_url: str
    keeper: Connection
    template: str

    @property
    def worker(self) -> str:
        """The role in which instances log in: on a given server, the one that everything there is done in."""
        return WORKER_ROLE if self.place.is_ours else self.place.user

    def server(self, database: str) -> Server:
        """Return the address of one of its databases, as the superuser, or the role that was given."""
        place = self.place
        return Server(place.host, place.port, place.user, place.password or None, database)

    def url(self, database: str) -> str:
        """Return the same as a SQLAlchemy URL."""
        place = self.place
        where = {"host": place.host, "port": str(place.port)}
        url = URL.create("postgresql+psycopg", place.user, place.password or None, database=database, query=where)
        return url.render_as_string(hide_password=False)

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
            with self.connect(self.template) as database:
                kind = "private" if self.place.is_ours else "given"
                return describe_servers(database, describe_redis(client), kind)
        finally:
            client.close()

    @contextmanager
    def database_for(self, strategy: type[Strategy]) -> Iterator[str]:
        """Copy the empty bank, let a strategy install what it needs, and drop the copy after the block.

        Raises StrategyFault where ``install`` fails.
        """
        with scratch_copy(self.place, self.keeper, self.template) as name:
            if not self.place.is_ours:
                tune_database(self.keeper, name)
            with self.connect(name) as database:
                outside.install(strategy, database)
            yield name

    def mark_template(self, database: str) -> None:
        """Say of the copy that an engine has made of a database that it is ours to drop."""
        mark(self.keeper, database + TEMPLATE_SUFFIX)


@contextmanager
def open_private_bank(state_dir: Path | None, database_url: str | None = None) -> Iterator[PrivateBank]:
    """Start the servers for the block, and make the empty bank; with ``database_url``, beside others' databases there.

    Raises CannotStart if that is impossible.
    """
    with _open_servers(state_dir, database_url) as (place, broker_url), open_keeper(place) as keeper:
        named = replace(place, user=keeper.info.user)
        with scratch_copy(named, keeper) as template:
            bank = PrivateBank(named, broker_url, keeper, template)
            if place.is_ours:
                with bank.server(template).connect() as admin:
                    prepare_database(admin)
                    set_up_server(admin)
            with bank.connect(template) as database:
                create_schema(database)
            yield bank


@contextmanager
def _open_servers(state_dir: Path | None, database_url: str | None) -> Iterator[tuple[Place, str]]:
    """Return where proofs are to run, and the address of a Valkey, for the block."""
    if database_url is None:
        with private_postgres(state_dir, SETTINGS, valkey=True) as private:
            assert private.broker_url is not None
            yield own_place(private), private.broker_url
        return
    place = read_place(database_url)
    with private_valkey(state_dir) as broker_url:
        yield place, broker_url


def accept_case(admin: Connection, case: Case, strategy: str) -> None:
    """Open the accounts anew, and accept the transfers of a case for a strategy."""
    with admin.transaction():
        reset_bank(admin, ACCOUNTS, OPENING)
        for order in case.orders():
            admin.execute(ACCEPT, [order.id, order.debit, order.credit, order.amount, strategy])
