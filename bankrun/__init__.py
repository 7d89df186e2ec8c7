"""Run the same bank on many workers and see, measured and explained, which locks keep the money.

What is named here is the Python API (docs/api.md): it stays as it is, or the changelog says so. A name is loaded when
it is first used, so that ``import bankrun`` costs nothing. Our own modules import a name from where it is made, never
from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bank.audit import Audit as Audit
    from bank.audit import audit as audit
    from bank.errors import BankError as BankError
    from bank.errors import Conflict as Conflict
    from bank.errors import InsufficientFunds as InsufficientFunds
    from bank.errors import NotAcquired as NotAcquired
    from bank.errors import OutcomeUnknown as OutcomeUnknown
    from bank.errors import Refused as Refused
    from bank.errors import StrategyFault as StrategyFault
    from bank.errors import Transient as Transient
    from bank.errors import Unavailable as Unavailable
    from bank.errors import UnknownAccount as UnknownAccount
    from bank.orders import Order as Order
    from bank.orders import Posting as Posting
    from bank.orders import Snapshot as Snapshot
    from bank.outside import user_strategy as user_strategy
    from bank.postgres.database import Database as Database
    from bank.postgres.database import Transaction as Transaction
    from bank.postgres.database import psql_url as psql_url
    from bank.postgres.models import Account as Account
    from bank.settings import Settings as Settings
    from bank.strategies import STRATEGIES as STRATEGIES
    from bank.strategies import Attempt as Attempt
    from bank.strategies import ChunkAttempt as ChunkAttempt
    from bank.strategies import ChunkStrategy as ChunkStrategy
    from bank.strategies import Claim as Claim
    from bank.strategies import Guard as Guard
    from bank.strategies import Strategy as Strategy
    from bank.strategies.base import Lease as Lease
    from bank.strategies.base import ThreadGuard as ThreadGuard
    from bank.strategies.base import in_order as in_order
    from bank.strategies.redis_lock import redis_url as redis_url
    from bank.strategies.row_lock import RowLock as RowLock
    from bankrun.errors import BankrunError as BankrunError
    from bankrun.errors import CannotStart as CannotStart
    from bankrun.proof.verdicts import Proof as Proof
    from bankrun.proof.verdicts import prove as prove
    from bankrun.results.models.comparison import Cell as Cell
    from bankrun.results.models.comparison import Run as Run
    from bankrun.results.topology import Topology as Topology
    from bankrun.results.workload import Workload as Workload
    from bankrun.runs.adhoc import accounts_in as accounts_in
    from bankrun.runs.adhoc import decided_by as decided_by
    from bankrun.runs.adhoc import failures as failures
    from bankrun.runs.adhoc import open_fresh_bank as open_fresh_bank
    from bankrun.runs.adhoc import trigger as trigger
    from bankrun.runs.adhoc import watch as watch
    from bankrun.runs.comparison import Lab as Lab
    from bankrun.runs.comparison import Plan as Plan
    from bankrun.runs.comparison import Progress as Progress
    from bankrun.runs.progress import Silence as Silence
    from bankrun.runs.running import compare as compare
    from bankrun.runs.running import running_bank as running_bank
    from bankrun.runs.running import running_lab as running_lab
    from bankrun.trials.trial import Trial as Trial
    from bankrun.trials.trial import trial as trial

_HOMES = {
    "bank.audit": "Audit audit",
    "bank.errors": "BankError Conflict InsufficientFunds NotAcquired OutcomeUnknown "
    "Refused StrategyFault Transient Unavailable UnknownAccount",
    "bank.orders": "Order Posting Snapshot",
    "bank.outside": "user_strategy",
    "bank.postgres.database": "Database Transaction psql_url",
    "bank.settings": "Settings",
    "bank.strategies": "STRATEGIES Attempt ChunkAttempt ChunkStrategy Claim Guard Strategy",
    "bank.postgres.models": "Account",
    "bank.strategies.base": "Lease ThreadGuard in_order",
    "bank.strategies.redis_lock": "redis_url",
    "bank.strategies.row_lock": "RowLock",
    "bankrun.errors": "BankrunError CannotStart",
    "bankrun.proof.verdicts": "Proof prove",
    "bankrun.results.models.comparison": "Cell Run",
    "bankrun.results.topology": "Topology",
    "bankrun.results.workload": "Workload",
    "bankrun.runs.adhoc": "accounts_in decided_by failures open_fresh_bank trigger watch",
    "bankrun.runs.comparison": "Lab Plan Progress",
    "bankrun.runs.progress": "Silence",
    "bankrun.runs.running": "compare running_bank running_lab",
    "bankrun.trials.trial": "Trial trial",
}
"""Where each public name is made: what the block for type checkers says, for everyone else."""

_WITHOUT_BANK = {"bankrun.errors", "bankrun.trials.trial"}
"""What a project with a ``bank`` or ``workers`` of its own can use, too."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used.

    Raises CannotStart where a project's own ``bank`` or ``workers`` stands in for the one that the name needs.
    """
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'bankrun' has no attribute {name!r}")
    if home not in _WITHOUT_BANK:
        from bankrun.environ import check_packages

        check_packages()
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
