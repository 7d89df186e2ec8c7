"""When a measured run is over, and whether its money was kept."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bank.audit import audit
from bank.errors import BankError
from bankrun.runs.comparison import Lab

SECONDS_MAX = 600
POLL_SECONDS = 0.02


def until_decided(lab: Lab) -> Iterator[None]:
    """Yield until every transfer has its outcome. Raises BankError as ``waited`` does."""
    for _ in waited(lab):
        yield
        with lab.database.transaction() as transaction:
            # It looks for the first one, which costs little: the question must not become the load.
            if transaction.execute("SELECT 1 FROM transfers WHERE status = 'pending' LIMIT 1").fetchone() is None:
                return


def waited(lab: Lab) -> Iterator[None]:
    """Yield every now and then. Raises BankError once it has been too long, or if a process has ended."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        yield
        lab.check_processes()
        if time.monotonic() > deadline:
            raise BankError(f"after {SECONDS_MAX} s there is still work that nobody has done")
        time.sleep(POLL_SECONDS)


def check_kept(lab: Lab, name: str) -> None:
    """Raise BankError if an invariant fails: a rate of wrong transfers is no rate."""
    found = audit(lab.database)
    if not found.passed:
        raise BankError(f"{name} did not keep the money: {found.findings[0].examples[0]}")
