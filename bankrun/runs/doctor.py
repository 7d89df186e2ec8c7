"""Look at the servers and name every setting that would break a promise."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kombu.utils.text import version_string_as_tuple
from sqlalchemy import make_url

from bank.postgres.presets import NOT_AT_STARTUP, PINNED, UNPINNED, find_presets
from bank.postgres.roles import excess, missing, workers_now
from bank.postgres.schema import LAB_CONNECTIONS, bank_id, server_settings
from bank.settings import WAITS
from bankrun.runs.environment import POSTGRES_SETTINGS
from bankrun.runs.session import Servers
from workers.app import broker_of
from workers.broker.brokers import RABBITMQ
from workers.broker.rabbitmq import DAY_MS, declare_queue
from workers.errors import LOST_SERVER

PROBE_SECONDS = 5.0
PROBE_DELIVERIES = 25
"""RabbitMQ 4 drops what it has delivered 20 times, unless a queue says otherwise."""
BY_QUEUE_SINCE = (3, 12)
CONSUMER_TIMEOUT_SECONDS = 1_800.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``why`` says what a bad finding would break."""

    name: str
    ok: bool
    found: str
    why: str = ""


def examine(servers: Servers) -> list[Check]:
    """Return what was found, in the order in which it matters."""
    return [
        *_postgres(servers),
        *_sessions(servers),
        *(_rabbitmq(servers) if broker_of(servers.app) is RABBITMQ else _redis(servers)),
        *_waits(servers),
        *_fleet(servers),
        *_roles(servers),
    ]


def _postgres(servers: Servers) -> Iterator[Check]:
    found = server_settings(servers.database, POSTGRES_SETTINGS)
    yield Check("Postgres", True, found["server_version"])
    yield Check("bank", True, bank_id(servers.database) or "none yet")
    for name in ("fsync", "full_page_writes"):
        yield Check(
            name, found[name] == "on", found[name], "a crash of Postgres could lose or damage what was committed"
        )
    durable = found["synchronous_commit"] != "off"
    yield Check("synchronous_commit", durable, found["synchronous_commit"], "a crash could lose the last commits")
    tracked = found["track_commit_timestamp"]
    yield Check(
        "track_commit_timestamp", True, tracked if tracked == "on" else f"{tracked}: stories will lack commit times"
    )
    needed = servers.settings.threads + LAB_CONNECTIONS
    enough = int(found["max_connections"]) >= needed
    yield Check("max_connections", enough, found["max_connections"], f"one instance and the lab need {needed}")


def _sessions(servers: Servers) -> Iterator[Check]:
    """Look at what is preset for sessions, and what became of what ours ask for when they connect.

    What ours depend on they have: opening one fails otherwise. The rest is the choice of the server's owner.
    """
    database = servers.database
    with database.engine.connect() as connection:
        found = find_presets(connection)
        replica, encoding, as_other, standby = connection.exec_driver_sql(
            "SELECT current_setting('session_replication_role'), current_setting('server_encoding'),"
            " CASE WHEN current_user <> session_user THEN session_user || ' acts as ' || current_user END,"
            " pg_is_in_recovery()"
        ).one()
    pooled = "through a pooler that keeps sessions; prove and try need the address of Postgres itself"
    way = pooled if database.is_pooled else "directly"
    yield Check("reached", True, way)
    dropped = database.set_after_connecting - {*NOT_AT_STARTUP}
    taken = "not taken on the way, by a pooler perhaps; each setting was made after connecting" if dropped else "taken"
    yield Check("start-up options", True, taken)
    pinned = [f"{one.name}={one.value} of {one.whose}" for one in found if one.value != PINNED.get(one.name, one.value)]
    yield Check("session presets", True, f"not for bankrun: {', '.join(pinned)}" if pinned else "none that matter")
    for one in found:
        if one.name in UNPINNED:
            harmless = one.name == "role" or one.value in ("on", "local", "remote_write", "remote_apply", "origin")
            yield Check(one.name, harmless, f"{one.value} of {one.whose}", UNPINNED[one.name])
    if replica != "origin":
        yield Check("session_replication_role", False, replica, UNPINNED["session_replication_role"])
    if as_other:
        yield Check("role", True, as_other)
    if standby:
        yield Check("primary", False, "this server is a standby", "nothing can be written to it")
    if encoding != "UTF8":
        yield Check("server_encoding", False, encoding, "it cannot keep every letter of a name or a reason")


def _redis(servers: Servers) -> Iterator[Check]:
    found = broker_of(servers.app).describe(servers.app)
    yield Check(found["server"].capitalize(), True, found["version"])
    policy = found["maxmemory_policy"]
    yield Check("maxmemory-policy", policy == "noeviction", policy, "jobs could be evicted; it should be noeviction")
    kept = "on" if found["appendonly"] == "1" else "off: after a crash jobs come back from Postgres only"
    yield Check("appendonly", True, kept)


def _rabbitmq(servers: Servers) -> Iterator[Check]:
    """Look at RabbitMQ by using it as workers do: its settings cannot be asked for in AMQP.

    That the shared queue is a durable quorum queue was found before: nothing starts where it is another.
    """
    version = broker_of(servers.app).describe(servers.app)["version"]
    yield Check("RabbitMQ", True, version)
    yield Check("queue type", True, "quorum, and durable")
    name = f"doctor.{secrets.token_hex(4)}"
    with servers.app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.confirm_seconds = PROBE_SECONDS
        try:
            declare_queue(channel, name)
            try:
                began = time.perf_counter()
                channel.basic_publish(channel.prepare_message(b"doctor"), routing_key=name)
                yield Check("publisher confirms", True, f"the first took {1000 * (time.perf_counter() - began):.0f} ms")
                left = _redeliver(channel, name)
            finally:
                channel.queue_delete(name)
        except LOST_SERVER as error:
            said = str(getattr(error, "reply_text", None) or error)
            yield Check("queues can be used", False, said, "messages could not be sent, or not be taken")
        else:
            yield Check(
                "delivery limit",
                left,
                f"none within {PROBE_DELIVERIES} deliveries" if left else f"less than {PROBE_DELIVERIES}",
                "a policy drops messages that were delivered again; Postgres counts deliveries here",
            )
    yield from _consumer_timeout(servers, version)


def _redeliver(channel: Any, queue: str) -> bool:
    """Take a message and give it back, more often than RabbitMQ's default limit; return whether it is still there."""
    for _ in range(PROBE_DELIVERIES):
        message = channel.basic_get(queue)
        if message is None:
            return False
        channel.basic_reject(message.delivery_tag, requeue=True)
    return channel.basic_get(queue) is not None


def _consumer_timeout(servers: Servers, version: str) -> Iterator[Check]:
    settings = servers.settings
    longest = settings.prefetch * (settings.patience_ms + settings.attempt_timeout_ms) / 1000
    if version_string_as_tuple(version) >= BY_QUEUE_SINCE:
        found, limit = f"{DAY_MS // 3_600_000} hours, as our queues say", DAY_MS / 1000
    else:
        found, limit = "cannot be asked for; 30 minutes unless rabbitmq.conf says otherwise", CONSUMER_TIMEOUT_SECONDS
    why = "RabbitMQ would close the channel of a worker that holds a message for longer"
    yield Check("consumer_timeout", limit > longest, f"{found}; a message is held for up to {longest:g} s", why)


def _waits(servers: Servers) -> Iterator[Check]:
    settings = servers.settings
    values = [getattr(settings, name) for name in WAITS]
    order = " < ".join(
        f"{name.removesuffix('_ms')} {value / 1000:g} s" for name, value in zip(WAITS, values, strict=True)
    )
    yield Check("waits", values == sorted(set(values)), order, "they must rise from left to right")


def _fleet(servers: Servers) -> Iterator[Check]:
    yield Check("Python", True, f"{platform.python_implementation()} {platform.python_version()}")
    running = [] if servers.endpoints.embedded else servers.fleet.discover()
    said = ", ".join(f"{info.instance} ({info.threads} threads)" for info in running)
    yield Check("instances", True, said or "none running: bankrun starts its own")
    bank = bank_id(servers.database)
    strangers = [info.instance for info in running if bank is not None and info.bank not in (bank, None)]
    if strangers:
        yield Check("bank of the instances", False, ", ".join(strangers), "they work for another database")


def _roles(servers: Servers) -> Iterator[Check]:
    """Look at what the workers may do. One role for everything is a choice; too few rights are not."""
    with servers.database.engine.connect() as connection:
        ours = make_url(servers.endpoints.worker_database_url).username
        ours = ours or str(connection.exec_driver_sql("SELECT current_user").scalar_one())
        for role in workers_now(connection) or [ours]:
            lacking, more = missing(connection, role), excess(connection, role)
            said = f"{role}, {'which ' + ', '.join(more) + ': more than it needs' if more else 'no more than it needs'}"
            yield Check(
                "workers' role", not lacking, said, f"it lacks {', '.join(lacking)}: transfers would stay pending"
            )
