"""What several commands ask for in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from bank.strategies import STRATEGIES, strategy_named

ALL = ["all"]
Strategies = Annotated[list[str], typer.Option(help="A strategy, or `all`. Repeatable.")]


def chosen_strategies(names: Sequence[str]) -> tuple[str, ...]:
    """Return the strategies' names, each once. Raises CannotStart for one that does not exist."""
    wanted = [name for given in names for name in (STRATEGIES if given == "all" else [given])]
    return tuple(dict.fromkeys(strategy_named(name).name for name in wanted))
