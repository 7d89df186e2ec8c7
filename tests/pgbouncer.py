"""A real pgbouncer between tests and their Postgres: on loopback, as the user that Postgres runs as."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from bankrun.servers.binaries import Program
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from tests.places import make_place
from tests.waiting import wait_until

PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin:/opt/homebrew/bin")
USERS = ("bankrun", "bankrun_worker")


@contextmanager
def pgbouncer(
    keeper: Keeper, endpoints: Endpoints, pools: Mapping[str, str], settings: Mapping[str, str]
) -> Iterator[str]:
    """Run it for the block, and return its address as ``postgresql://…/{pool}``.

    ``pools`` are what it calls databases: to each, what is said of it. The keeper of the servers ends it, too.
    """
    behind = make_url(endpoints.database_url).query["host"]
    owner = Path(str(behind)).stat()
    place = make_place("pgbouncer")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        (place / "users.txt").write_text("".join(f'"{user}" ""\n' for user in USERS))
        said = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(place / "users.txt"),
            "default_pool_size": "40",
            "max_client_conn": "200",
            "query_wait_timeout": "20",
            **settings,
        }
        lines = ["[databases]", *(f"{name} = host={behind} port=5432 {more}" for name, more in pools.items())]
        lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in said.items())]
        (place / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        assert PROGRAM is not None
        name = f"pgbouncer-{port}"
        program = Program(name, [PROGRAM, str(place / "pgbouncer.ini")], (signal.SIGTERM,), signal.SIGKILL)
        keeper.spawn_server(program, cwd=place, log=keeper_log(place), user=(owner.st_uid, owner.st_gid))
        try:
            assert wait_until(lambda: listens(port), 30), keeper_log(place).read_text()
            yield f"postgresql://bankrun@127.0.0.1:{port}/{{pool}}"
        finally:
            keeper.stop([name], grace_seconds=2)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def keeper_log(place: Path) -> Path:
    """Return where it writes what it has to say."""
    return place / "pgbouncer.log"


def listens(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def leave_behind(url: str, statements: list[str]) -> None:
    """Use a session, and leave something in it."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
