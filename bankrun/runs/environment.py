"""What a result depends on besides its seed: versions, cores, server settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from celery import Celery

from bank.postgres.database import Database
from bank.postgres.schema import server_settings
from bankrun.results.provenance import describe_machine
from workers.app import broker_of
from workers.fleet import InstanceInfo

PACKAGES = ("celery", "kombu", "amqp", "redis", "sqlmodel", "sqlalchemy", "psycopg", "psycopg-binary")
POSTGRES_SETTINGS = (
    "server_version",
    "max_connections",
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "deadlock_timeout",
    "track_commit_timestamp",
    "autovacuum",
    "data_checksums",
)


def environment(
    database: Database, app: Celery, instances: Sequence[InstanceInfo], *, embedded: bool
) -> dict[str, Any]:
    """Return what this run depends on. No address is in it: it would carry a password."""
    return {
        **describe_servers(database, broker_of(app).describe(app), "embedded" if embedded else "given"),
        "instances": [asdict(info) for info in instances],
    }


def describe_servers(database: Database, broker: Mapping[str, str], servers: str) -> dict[str, Any]:
    """Return what a run depends on that has no instances: the machine, the packages, the servers."""
    return {
        **describe_machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "servers": servers,
        "postgres": server_settings(database, POSTGRES_SETTINGS),
        "rabbitmq" if broker["server"] == "rabbitmq" else "redis": dict(broker),
    }
