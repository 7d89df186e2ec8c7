"""The Postgres that executions run on: its address, the settings that the dependence rule needs, and how we ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg import sql

from bankrun.own_sessions import pin_session
from bankrun.schedule.protocol.conversation import TRIED_LOCK
from bankrun.schedule.protocol.proxy import Address

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "wal_level": "replica",
    "max_wal_size": "512MB",
    "checkpoint_timeout": "1h",
    "bgwriter_lru_maxpages": "0",
    "plan_cache_mode": "force_custom_plan",
    # Who waits for a lock says so at once, after it has looked for a deadlock in vain: to its client, where we hear it.
    "deadlock_timeout": "1ms",
    "log_lock_waits": "on",
    "client_min_messages": "log",
    "lc_messages": "C",
    "max_pred_locks_per_transaction": "256",
    "max_pred_locks_per_page": "100",
    "max_pred_locks_per_relation": "1000",
    # Plans come as messages to the client, too: INFO is sent whatever client_min_messages is.
    "shared_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_format": "json",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_verbose": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_analyze": "off",
    "auto_explain.log_level": "info",
}
"""What our own servers are started with, beside where they listen. Not durable: nothing on them is worth keeping."""

TEMPLATE_SUFFIX = "_as_it_was"


@dataclass(frozen=True, slots=True)
class Server:
    """A database on a server, and the superuser (or owner) that restores it."""

    host: str
    port: int = 5432
    user: str = "postgres"
    password: str | None = None
    database: str = "postgres"

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(self.host, self.port)

    def connect(self, database: str | None = None) -> Connection:
        """Open a connection of ours, in autocommit mode; it is not scheduled, and tells no plans."""
        connection = psycopg.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=database or self.database,
            autocommit=True,
            application_name="bankrun scheduler",
            sslmode="disable" if self.host.startswith("/") else "prefer",
            gssencmode="disable",
        )
        pin_session(connection)
        return connection


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server lets us see."""

    version: int
    reads_wal: bool
    tells_plans: bool
    tells_waits: bool
    deadlock_timeout_seconds: float
    is_superuser: bool
    tells_advisory: bool
    """Whether advisory lock functions are wrapped: see ``prepare_database``."""

    @property
    def sees_rows(self) -> bool:
        """Whether footprints go down to rows; else they are relations, as pg_locks has them."""
        return self.reads_wal and self.tells_plans


def ask_capabilities(connection: Connection) -> Capabilities:
    """Ask a server what it lets us see."""
    wanted = ("auto_explain.log_min_duration", "auto_explain.log_level", "auto_explain.log_format")
    settings = {name: one(connection, "SELECT current_setting(%s, true)", [name]) for name in wanted}
    plans = settings == dict(zip(wanted, ("0", "info", "json"), strict=True))
    superuser = bool(one(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
    version = connection.info.server_version
    wal = (
        superuser
        and version >= 170000  # pg_logical_emit_message can flush from 17 on
        and one(connection, "SELECT current_setting('full_page_writes') = 'off'")
        and bool(one(connection, "SELECT count(*) FROM pg_extension WHERE extname = 'pg_walinspect'"))
    )
    waits = one(
        connection,
        "SELECT current_setting('log_lock_waits') = 'on' AND current_setting('client_min_messages') = 'log'",
    )
    seconds = one(connection, "SELECT extract(epoch FROM current_setting('deadlock_timeout')::interval)::float8")
    wrapped = bool(one(connection, "SELECT count(*) FROM pg_proc WHERE proname = 'bankrun_pg_try_advisory_lock'"))
    return Capabilities(version, bool(wal), bool(plans), bool(waits), float(seconds), superuser, wrapped)


def tune_database(connection: Connection, database: str) -> None:
    """Give a scratch database on somebody else's server those of our settings that one database can have.

    With them its sessions say that they wait, and look for deadlocks at once. Only a superuser may; for others
    everything stays as it is.
    """
    if not one(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        return
    changeable = "SELECT name FROM pg_settings WHERE name = ANY(%s) AND context IN ('user', 'superuser')"
    for (name,) in connection.execute(changeable, [list(SETTINGS)]).fetchall():
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                sql.Identifier(database), sql.Identifier(*name.split(".")), sql.Literal(SETTINGS[name])
            )
        )


def one(connection: Connection, query: LiteralString, parameters: Any = None) -> Any:
    """Return the first value of the first row."""
    row = connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]


def prepare_database(connection: Connection) -> None:
    """Make a database of our own server ready to be observed; before anything else is set up in it.

    A ``pg_try_advisory_…`` that does not get its lock leaves no trace anywhere: not in the plan where a function or a
    view calls it, not in pg_locks, not in the log; nor does a lock that is taken and given back in one statement. So
    the functions that try, and those that give back, are wrapped, and the wrapper tells.
    """
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect SCHEMA pg_catalog")
    functions = connection.execute(
        "SELECT proname, pg_get_function_identity_arguments(oid), pronargs FROM pg_proc"
        " WHERE pronamespace = 'pg_catalog'::regnamespace AND pronargs > 0"
        " AND proname ~ '^pg_(try_advisory_|advisory_unlock)'"
    ).fetchall()
    for name, arguments, count in functions:
        inner = "bankrun_" + name
        key = "(a0 >> 32) & 4294967295, a0 & 4294967295, 1" if count == 1 else _TWO_INTEGERS
        connection.execute(
            sql.SQL("ALTER FUNCTION pg_catalog.{}({}) RENAME TO {}").format(
                sql.Identifier(name), sql.SQL(arguments), sql.Identifier(inner)
            )
        )
        parameters = "a0 bigint" if count == 1 else "a0 int, a1 int"
        names = "a0" if count == 1 else "a0, a1"
        body = (
            f"DECLARE got boolean := pg_catalog.{inner}({names}); BEGIN RAISE INFO USING"
            f" ERRCODE = '{TRIED_LOCK}', MESSAGE = concat_ws(':', {key}); RETURN got; END"
        )
        connection.execute(
            sql.SQL("CREATE FUNCTION pg_catalog.{}({}) RETURNS boolean LANGUAGE plpgsql VOLATILE STRICT AS {}").format(
                sql.Identifier(name), sql.SQL(parameters), sql.Literal(body)
            )
        )
    connection.execute(sql.SQL(_UNLOCK_ALL).format(sql.Literal(TRIED_LOCK)))


_UNLOCK_ALL = """
ALTER FUNCTION pg_catalog.pg_advisory_unlock_all() RENAME TO bankrun_pg_advisory_unlock_all;
CREATE FUNCTION pg_catalog.pg_advisory_unlock_all() RETURNS void LANGUAGE plpgsql VOLATILE STRICT AS $$
DECLARE one text;
BEGIN
  FOR one IN SELECT DISTINCT concat_ws(':', classid, objid, objsubid) FROM pg_catalog.pg_lock_status()
             WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
  LOOP RAISE INFO USING ERRCODE = {}, MESSAGE = one; END LOOP;
  PERFORM pg_catalog.bankrun_pg_advisory_unlock_all();
END $$
"""
_TWO_INTEGERS = "a0::bigint & 4294967295, a1::bigint & 4294967295, 2"
