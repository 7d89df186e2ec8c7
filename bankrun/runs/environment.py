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
from workers.fleet import InstanceInfo

PACKAGES = ("celery", "kombu", "redis", "sqlmodel", "sqlalchemy", "psycopg", "psycopg-binary")
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
        **describe_servers(database, redis_info(app), "embedded" if embedded else "given"),
        "instances": [asdict(info) for info in instances],
    }


def describe_servers(database: Database, broker: Mapping[str, str], servers: str) -> dict[str, Any]:
    """Return what a run depends on that has no instances: the machine, the packages, the servers."""
    return {
        **describe_machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "servers": servers,
        "postgres": server_settings(database, POSTGRES_SETTINGS),
        "redis": dict(broker),
    }


def redis_info(app: Celery) -> dict[str, str]:
    """Return the broker's kind, version and the settings that can lose messages."""
    with app.connection_for_write() as connection:
        return describe_redis(connection.default_channel.client)


def describe_redis(client: Any) -> dict[str, str]:
    """Return a Redis server's kind, version and the settings that can lose messages."""
    server = client.info("server")
    memory = client.info("memory")
    persistence = client.info("persistence")
    kind = "valkey" if "valkey_version" in server else "redis"
    return {
        "server": kind,
        "version": str(server.get("valkey_version") or server.get("redis_version")),
        "maxmemory_policy": str(memory.get("maxmemory_policy")),
        "appendonly": str(persistence.get("aof_enabled")),
    }
