"""What several commands ask for in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from bank.outside import user_strategy
from bank.strategies import STRATEGIES

ALL = ["all"]
Strategies = Annotated[
    list[str], typer.Option(help="A strategy, `all` of ours, or your own as module:Class. Repeatable.")
]


def chosen_strategies(names: Sequence[str]) -> tuple[str, ...]:
    """Return the strategies' names, each once. Raises CannotStart for one that does not exist, or that is none."""
    wanted = [name for given in names for name in (STRATEGIES if given == "all" else [given])]
    return tuple(dict.fromkeys(user_strategy(name).name for name in wanted))
