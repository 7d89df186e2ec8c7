"""A user's own strategies: where they are looked for."""

from __future__ import annotations

from pathlib import Path

from bank.settings import read_settings
from bank.strategies import STRATEGIES, Strategy, outside, strategy_named


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
