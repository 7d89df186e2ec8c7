"""The strategies, by name. Adding one is a file, a line here, and a row in the README."""

from __future__ import annotations

import difflib

from bank.errors import CannotStart
from bank.strategies.atomic_update import AtomicUpdate
from bank.strategies.base import Claim, Guard, Strategy, ThreadGuard
from bank.strategies.none import NoLock
from bank.strategies.row_lock import RowLock
from bank.strategies.row_lock_orm import RowLockOrm
from bank.strategies.serializable import Serializable
from bank.strategies.thread_lock import ThreadLock
from bank.strategies.version_check import VersionCheck

__all__ = ["CONTROL", "STRATEGIES", "Claim", "Guard", "Strategy", "ThreadGuard", "strategy_named"]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (NoLock, ThreadLock, RowLock, RowLockOrm, AtomicUpdate, VersionCheck, Serializable)
}
"""In the order in which they are shown."""

CONTROL = NoLock.name
"""The strategy that must lose money for any other to have proved something."""


def strategy_named(name: str) -> type[Strategy]:
    """Return a strategy's class. Raises CannotStart for a name that does not exist, with the nearest that does."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    near = difflib.get_close_matches(name, STRATEGIES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(STRATEGIES)}"
    raise CannotStart(f"there is no strategy {name!r}: {hint}")
