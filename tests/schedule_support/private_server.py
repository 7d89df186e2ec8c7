"""A private Postgres with the settings that the engine's rule needs; for the tests of the engine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from psycopg import sql

from bankrun.schedule import SETTINGS, Server, prepare_database
from bankrun.servers.embedded import private_postgres
from tests.places import make_place


@contextmanager
def private_server(settings: Mapping[str, str] = SETTINGS) -> Iterator[Server]:
    """Start a server, and stop it at the end of the block."""
    directory = make_place("engine")
    try:
        with private_postgres(directory, settings) as private:
            yield Server(str(private.host), int(private.port), private.user, None, "postgres")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def make_database(server: Server, name: str, setup: str, *, prepare: bool = True) -> Server:
    """Make a database anew and set it up."""
    with server.connect("postgres") as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
    with server.connect(name) as connection:
        if prepare:
            prepare_database(connection)
        connection.execute(setup)  # type: ignore[call-overload]
    return replace(server, database=name)
