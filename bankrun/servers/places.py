"""Servers that trials and proofs run on, of our own or somebody else's, and the scratch databases that they make there.

On a given server a session holds a lock for each of its databases: a marked one whose lock is free was left by a
command that was killed, and the next one drops it. No other database is touched.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from bankrun.errors import CannotStart
from bankrun.own_sessions import is_direct, pin_session
from bankrun.prepared import roll_back_prepared
from bankrun.servers.embedded import PrivatePostgres

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

PREFIX = "bankrun_trial_"
TEMPLATE_SUFFIX = "_as_it_was"
MARKER = "a scratch database of bankrun try"
VERSION_MIN = 150_000


@dataclass(frozen=True, slots=True)
class Place:
    """A server that may be used: ``database`` is where one connects to make another."""

    host: str
    port: int
    user: str
    password: str
    database: str
    is_ours: bool
    log: Path | None = None

    def connect(self, database: str | None = None) -> Connection:
        """Open a session of ours, in autocommit mode. Raises CannotStart, in a sentence without a password."""
        try:
            connection = psycopg.connect(
                host=self.host,
                port=self.port,
                user=self.user or None,
                password=self.password or None,
                dbname=database or self.database,
                autocommit=True,
                application_name="bankrun try",
                connect_timeout=10,
            )
            pin_session(connection)
            return connection
        except psycopg.Error as error:
            raise CannotStart(f"{self.host}:{self.port} cannot be used: {first_line(error)}") from error


def own_place(server: PrivatePostgres) -> Place:
    """Return a server of our own as a place."""
    return Place(str(server.host), int(server.port), server.user, "", "postgres", is_ours=True, log=server.log)


def read_place(url: str) -> Place:
    """Return the server that a URL names. Raises CannotStart for what is no URL of a Postgres, or needs TLS."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise CannotStart("--database-url is postgresql://user@host:port/database")
    try:
        given = conninfo_to_dict(f"postgresql://{rest}")
    except psycopg.Error as error:
        raise CannotStart(f"--database-url cannot be read: {first_line(error)}") from error
    if str(given.get("sslmode", "")) in ("require", "verify-ca", "verify-full"):
        raise CannotStart(
            "--database-url asks for TLS: steps are read from the connection, so it must be plain; "
            "leave --database-url out (a private server is started), or reach the server through a tunnel"
        )
    port = str(given.get("port") or os.environ.get("PGPORT") or 5432)
    if not re.fullmatch("[0-9]{1,5}", port):
        raise CannotStart(f"--database-url names the port {port!r}, which is no number of one")
    host = str(given.get("host") or os.environ.get("PGHOST") or "127.0.0.1")
    user = str(given.get("user") or os.environ.get("PGUSER") or "")
    return Place(
        host,
        int(port),
        user,
        str(given.get("password") or os.environ.get("PGPASSWORD") or ""),
        str(given.get("dbname") or user or "postgres"),
        is_ours=False,
    )


@contextmanager
def open_keeper(place: Place) -> Iterator[Connection]:
    """Open the session that keeps scratch databases for the block. Drops what killed commands left.

    Raises CannotStart if the server is too old, or is reached through a pooler.
    """
    with place.connect() as keeper:
        if keeper.info.server_version < VERSION_MIN:
            raise CannotStart(f"this server is Postgres {keeper.info.server_version // 10_000}: 15 or newer is needed")
        if not is_direct(keeper):
            raise CannotStart(
                f"{place.host}:{place.port} is a pooler: who waits for whom is told by the backend that each session "
                "logged in to, and a pooler hides it; give the address of Postgres itself, or leave --database-url out "
                "(a private server is started)"
            )
        sweep(place, keeper)
        yield keeper


@contextmanager
def scratch_copy(place: Place, keeper: Connection, template: str = "template0") -> Iterator[str]:
    """Make a marked database for the block, as a copy, and drop it after it; return its name.

    Raises CannotStart if our role may not create databases.
    """
    name = PREFIX + secrets.token_hex(6)
    keeper.execute(f"SELECT pg_advisory_lock({_KEY})".encode(), [name])
    try:
        keeper.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
        mark(keeper, name)
    except psycopg.Error as error:
        raise CannotStart(f"no database can be made there: {first_line(error)}") from error
    try:
        yield name
    finally:
        if keeper.closed:
            with place.connect() as another:
                drop(another, name)
        else:
            drop(keeper, name)
            keeper.execute(f"SELECT pg_advisory_unlock({_KEY})".encode(), [name])


_KEY = "hashtextextended(%s, 0)"


def mark(keeper: Connection, name: str) -> None:
    """Say of a database that it is ours to drop."""
    keeper.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(MARKER)))


def drop(keeper: Connection, name: str) -> None:
    """Drop a database and the template that was made of it."""
    for one in (name + TEMPLATE_SUFFIX, name):
        keeper.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(one)))


def sweep(place: Place, keeper: Connection) -> list[str]:
    """Drop what commands that were killed left, and return its names; what is in use, or has no marker, stays."""
    marked = {
        name.removesuffix(TEMPLATE_SUFFIX)
        for (name,) in keeper.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
            " AND shobj_description(oid, 'pg_database') = %s AND pg_has_role(datdba, 'USAGE')",
            [PREFIX, MARKER],
        )
    }
    left = []
    for name in sorted(marked):
        if keeper.execute(f"SELECT pg_try_advisory_lock({_KEY})".encode(), [name]).fetchone() == (True,):
            if keeper.execute("SELECT 1 FROM pg_prepared_xacts WHERE database = %s", [name]).fetchone():
                with place.connect(name) as inside:
                    roll_back_prepared(inside)
            drop(keeper, name)
            keeper.execute(f"SELECT pg_advisory_unlock({_KEY})".encode(), [name])
            left.append(name)
    return left


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
