"""What scripts may use: everything named here stays as it is, or the changelog says so.

    with running_lab(instances=3, threads=8) as lab:
        trigger(lab, Workload(transfers=5_000), "row-lock", seed=1)
        for pending in watch(lab): ...
        assert audit(lab.database).passed

It is a module and not ``lab/__init__.py``, which the keeper imports too: that one must start at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bank.audit import Audit, audit
from bank.errors import BankError, CannotStart, StrategyFault
from bank.postgres.database import Database
from bank.settings import read_settings
from bank.strategies import STRATEGIES
from bankrun.proof.verdicts import Proof, prove
from bankrun.results.models import Cell, Run
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.adhoc import accounts_in, decided_by, failures, open_fresh_bank, trigger, watch
from bankrun.runs.comparison import Lab, Plan, Progress
from bankrun.runs.progress import Silence
from bankrun.runs.rehearsal import user_strategy
from bankrun.runs.session import hold_bank, open_lab, open_servers

__all__ = [
    "STRATEGIES",
    "Audit",
    "BankError",
    "CannotStart",
    "Cell",
    "Database",
    "Lab",
    "Plan",
    "Progress",
    "Proof",
    "Run",
    "Silence",
    "StrategyFault",
    "Topology",
    "Workload",
    "accounts_in",
    "audit",
    "decided_by",
    "failures",
    "open_fresh_bank",
    "prove",
    "running_bank",
    "running_lab",
    "trigger",
    "user_strategy",
    "watch",
]


@contextmanager
def running_lab(
    *, instances: int, threads: int | None = None, any_running: bool = False, strategies: Iterable[str | type] = ()
) -> Iterator[Lab]:
    """Reach the servers and the workers for the block, as the environment says.

    With BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL, the workers are those that run there; ``any_running`` is content
    with however many these are. Without them, everything is started here, and ends with the block. ``threads`` is each
    worker's, unless given as BANKRUN_THREADS says. ``strategies`` names those of your own that will be used, where no
    Plan has named them yet: workers accept no others. Raises CannotStart if that is impossible.
    """
    for strategy in strategies:
        user_strategy(strategy)
    settings = read_settings()
    with (
        open_servers(settings) as servers,
        open_lab(servers, instances=instances, threads=threads or settings.threads, any_running=any_running) as lab,
    ):
        yield lab


@contextmanager
def running_bank() -> Iterator[Database]:
    """Reach the servers for the block, as the environment says, without any workers: embedded ones if none are given.

    Our schema is there, and no other lab is at it. Raises CannotStart if that is impossible.
    """
    with open_servers(read_settings()) as servers, hold_bank(servers):
        yield servers.database
