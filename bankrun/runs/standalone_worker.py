"""From a shell to a worker: the checks that a person can act upon, then Celery in this process' place."""

from __future__ import annotations

import os
import re
import socket
from typing import NoReturn

from bank.errors import CannotStart
from bank.postgres.roles import check_own_role
from bank.settings import INSTANCE_PATTERN, Settings
from bankrun.runs.session import open_servers
from workers.fleet import worker_command

STARTUP_WAIT_MS = 30_000


def become_worker(settings: Settings) -> NoReturn:
    """Replace this process by a worker instance, once both servers can be reached.

    Raises CannotStart if that takes too long, if there is anything wrong with them, or if the name is taken.
    """
    if settings.database_url is None or settings.broker_url is None:
        raise CannotStart(
            "a worker needs BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL; "
            "without servers of your own, run `bankrun compare`: it starts its workers by itself"
        )
    name = settings.instance or socket.gethostname()
    if re.fullmatch(INSTANCE_PATTERN, name) is None:
        raise CannotStart(f"this host's name, {name!r}, is no name for an instance: set BANKRUN_INSTANCE")
    if settings.startup_wait_ms is None:
        settings = settings.model_copy(update={"startup_wait_ms": STARTUP_WAIT_MS})
    with open_servers(settings) as servers:
        check_own_role(servers.database)
        if servers.fleet.is_running(name):
            raise CannotStart(f"an instance named {name} is running already: set BANKRUN_INSTANCE to another name")
    command = worker_command(name, settings.threads)
    os.chdir("/")  # Celery imports from the working directory, and a worker writes nothing there
    os.execve(command[0], command, {**os.environ, "BANKRUN_INSTANCE": name})  # noqa: S606 - a shell is what is not wanted
