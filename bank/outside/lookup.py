"""How a name becomes a class: one of ours, ``package.module:Class``, or what an installed package offers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from bank.errors import CannotStart, DoesNotFit, unknown
from bank.outside.loading import folders_in, is_reference, load, recall
from bank.postgres import versions
from bank.settings import read_settings
from bank.strategies import STRATEGIES, Strategy

GROUP = "bankrun.strategies"
"""The entry point group under which an installed package offers strategies."""


def user_strategy(strategy: str | type) -> type[Strategy]:
    """Return a strategy by what a user calls it: a name of ours, ``module:Class``, or the class itself.

    Modules are looked for where Python looks, then in BANKRUN_STRATEGIES_PATH, then in the current folder. What was
    found here is what workers are told to accept when they are started. Raises CannotStart as ``strategy_named`` does.
    """
    if isinstance(strategy, type):
        if strategy in STRATEGIES.values():
            return strategy
        strategy = _refer_to(strategy)
    if ":" in strategy:
        make_importable([*folders_in(read_settings().strategies_path), Path.cwd()])
    return strategy_named(strategy)


def load_strategies(strategies: Iterable[str | type]) -> tuple[type[Strategy], ...]:
    """Return strategies by what a user calls them, each once. Raises CannotStart for the first that does not do."""
    return tuple(dict.fromkeys(user_strategy(one) for one in strategies))


def strategy_named(name: str) -> type[Strategy]:
    """Return a strategy's class: one of ours, ``package.module:Class``, or the name of an installed package's.

    Raises CannotStart for a name that does not exist, with the nearest that does; and its DoesNotFit for a class from
    outside that is no strategy. This is the one place where a name becomes a class.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    if ":" in name:
        if not is_reference(name):
            raise CannotStart(f"{name!r} is no strategy: one of your own is written package.module:Class")
        return load(name, name)
    offered = find_installed()
    if name in offered:
        return load(name, offered[name].value)
    also = "; one of your own is written package.module:Class"
    raise unknown("strategy", name, [*STRATEGIES, *offered], also)


def leave_out_too_new(names: Sequence[str], version: int) -> tuple[tuple[str, ...], list[str]]:
    """Return the strategies that a server of this version can run, and a sentence for each of the others.

    Raises CannotStart with these sentences if none is left.
    """
    needed = {name: strategy_named(name).postgres_min for name in names}
    too_new = {
        name: f"{name} is left out: it needs Postgres {oldest}, and this is {versions.tell(version)}"
        for name, oldest in needed.items()
        if version // 10_000 < oldest
    }
    left = tuple(name for name in names if name not in too_new)
    if not left:
        raise CannotStart("; ".join(too_new.values()))
    return left, list(too_new.values())


def known_strategy(name: str) -> type[Strategy] | None:
    """Return the class of a name that this process knows already: nothing is imported for it."""
    return STRATEGIES.get(name) or recall(name)


def find_installed() -> dict[str, EntryPoint]:
    """Return the strategies that installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=GROUP) if "/" not in point.name and ":" not in point.name}


def make_importable(folders: Iterable[Path]) -> None:
    """Add folders to the end of the import path: what is ours, or installed, is found before what is in them."""
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
            importlib.invalidate_caches()


def _refer_to(strategy: type) -> str:
    """Return the name under which a class can be loaded. Raises DoesNotFit if only its own function can reach it."""
    reference = f"{strategy.__module__}:{strategy.__qualname__}"
    if not is_reference(reference):
        raise DoesNotFit(
            f"{reference} cannot be imported by that name: define the class at the top of a module, since every "
            "instance imports it for itself"
        )
    return reference
