"""``bankrun worker``: one instance of given servers."""

from __future__ import annotations

from bank.settings import read_settings
from bankrun.runs.standalone_worker import become_worker


def worker() -> None:
    """Be one worker instance of the given servers: on any machine, in any number. SIGTERM ends it in good order.

    BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL say where they are, BANKRUN_THREADS how many threads it has, and
    BANKRUN_INSTANCE what it is called, if not by its host.
    """
    become_worker(read_settings())
