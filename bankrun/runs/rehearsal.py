"""A user's own strategies: where they are looked for, and their rehearsal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bank.outside import calling as outside
from bank.postgres.database import Database
from bank.settings import Settings, read_settings
from bank.strategies import STRATEGIES, Strategy, strategy_named
from bankrun.proof.interleavings import Prover


def user_strategy(name: str | type) -> type[Strategy]:
    """Return a strategy by what a user calls it: a name of ours, ``module:Class``, or the class itself.

    Modules are looked for where Python looks, then in BANKRUN_STRATEGIES_PATH, then in the current folder. What was
    found here is what workers are told to accept when they are started. Raises CannotStart as ``strategy_named`` does.
    """
    if isinstance(name, type):
        if name in STRATEGIES.values():
            return name
        name = outside.reference_to(name)
    if ":" in name:
        outside.make_importable([*outside.folders_in(read_settings().strategies_path), Path.cwd()])
    return strategy_named(name)


def rehearse(database: Database, settings: Settings, names: Iterable[str]) -> None:
    """Let strategies from outside show that they can be used at all: each runs two transfers, one after the other.

    It happens on the bank, which is emptied. Raises StrategyFault, and says what is wrong. Our own always can.
    """
    theirs = [strategy_named(name) for name in dict.fromkeys(names) if name not in STRATEGIES]
    if theirs:
        with Prover(database, settings) as prover:
            for strategy in theirs:
                prover.rehearse(strategy)
