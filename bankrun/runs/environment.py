"""What a result depends on besides its seed: versions, cores, server settings."""

from __future__ import annotations

from collections.abc import Sequence
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
        **describe_machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "servers": "embedded" if embedded else "given",
        "postgres": server_settings(database, POSTGRES_SETTINGS),
        "redis": redis_info(app),
        "instances": [asdict(info) for info in instances],
    }


def redis_info(app: Celery) -> dict[str, str]:
    """Return the broker's kind, version and the settings that can lose messages."""
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
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
