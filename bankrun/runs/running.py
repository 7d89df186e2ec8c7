"""What scripts call to have servers and workers for a block, or a whole comparison in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bank.outside import user_strategy
from bank.postgres.database import Database
from bank.settings import read_settings
from bankrun.results.models.comparison import Cell
from bankrun.runs.boundary import convert_errors
from bankrun.runs.comparison import Lab, Plan, Progress
from bankrun.runs.progress import Silence
from bankrun.runs.session import hold_bank, open_lab, open_servers


@contextmanager
def running_lab(
    *, instances: int, threads: int | None = None, any_running: bool = False, strategies: Iterable[str | type] = ()
) -> Iterator[Lab]:
    """Reach the servers and the workers for the block, as the environment says.

    With BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL, the workers are those that run there; ``any_running`` is content
    with however many these are. Without them, everything is started here, and ends with the block. ``threads`` is each
    worker's, by default BANKRUN_THREADS. ``strategies`` names those of your own that will be used: workers accept no
    others. Raises CannotStart if that is impossible.
    """
    with convert_errors():
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

    The schema is there, and no other lab is at it. Raises CannotStart if that is impossible.
    """
    with convert_errors(), open_servers(read_settings()) as servers, hold_bank(servers):
        yield servers.database


def compare(plan: Plan, progress: Progress | None = None) -> list[Cell]:
    """Run a plan's cells on servers and workers for this call, judge them, and return them.

    The control ``none`` runs too, wherever a verdict needs it. Raises CannotStart, StrategyFault, or BankError for
    what fails while it runs.
    """
    with running_lab(instances=plan.instances, threads=plan.threads, strategies=plan.strategies) as lab:
        return lab.compare(plan, progress or Silence())
