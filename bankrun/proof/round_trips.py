"""How often a transfer waits for Postgres, and for how many of these waits it keeps others out: counted on the wire."""

from __future__ import annotations

from collections.abc import Iterable

from bank.postgres.models import SCHEMA
from bank.settings import Settings
from bank.strategies.base import Strategy
from bankrun.proof.cases import CASES
from bankrun.proof.prover import Prover
from bankrun.results.models.bench import RoundTrips
from bankrun.schedule import Step
from bankrun.schedule.observation.footprints import ADVISORY
from bankrun.schedule.search import follow

ACCOUNTS = f"{SCHEMA}.accounts"
SHUTS_OUT = frozenset({"ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"})
"""Table locks that keep other writers out (manual, section 13.3)."""


def count_round_trips(strategies: Iterable[type[Strategy]], settings: Settings) -> dict[str, RoundTrips]:
    """Return for each strategy the round trips of one transfer that nobody disturbs."""
    with Prover(settings) as prover:
        return {strategy.name: _count(prover, strategy) for strategy in strategies}


def _count(prover: Prover, strategy: type[Strategy]) -> RoundTrips:
    courtroom = prover.open(strategy, "two")
    courtroom.hear(CASES["same-pair"])
    execution = courtroom.engine.execute(follow(""), ["A"])
    total = holding = 0
    holds = False
    for step in execution.steps:
        trips = sum(one.kind == "statement" for one in step.statements)
        total += trips
        if holds:
            holding += trips
        holds = step.kind != "leave" and (holds or step.kind == "enter" or _keeps_others_out(step))
    return RoundTrips(total, holding)


def _keeps_others_out(step: Step) -> bool:
    locks = {relation for relation, _ in step.footprint.locks}
    return bool(
        locks & {ACCOUNTS, ADVISORY}
        or any(relation == ACCOUNTS and mode in SHUTS_OUT for relation, mode in step.footprint.modes)
    )
