"""The strategies, by name. Adding one is a file, a line here, and a row in the README."""

from __future__ import annotations

from bank.settings import Settings
from bank.strategies.advisory_lock import AdvisoryLock
from bank.strategies.advisory_lock_early import AdvisoryLockEarly
from bank.strategies.atomic_update import AtomicUpdate
from bank.strategies.base import (
    Attempt,
    ChunkAttempt,
    ChunkStrategy,
    Claim,
    Guard,
    Lease,
    Strategy,
    ThreadGuard,
    in_order,
    takes_chunks,
)
from bank.strategies.batch import Batch
from bank.strategies.check_then_debit import CheckThenDebit
from bank.strategies.file_lock import FileLock
from bank.strategies.no_key_lock import NoKeyLock
from bank.strategies.none import NoLock
from bank.strategies.redis_lock import RedisLock
from bank.strategies.redis_lock_fenced import RedisLockFenced
from bank.strategies.redis_lock_fenced_late import RedisLockFencedLate
from bank.strategies.repeatable_read import RepeatableRead
from bank.strategies.retry_without_reread import RetryWithoutReread
from bank.strategies.row_lock import RowLock
from bank.strategies.row_lock_nowait import RowLockNowait
from bank.strategies.row_lock_orm import RowLockOrm
from bank.strategies.row_lock_unordered import RowLockUnordered
from bank.strategies.serializable import Serializable
from bank.strategies.share_lock import ShareLock
from bank.strategies.single_statement import SingleStatement
from bank.strategies.single_writer import SingleWriter
from bank.strategies.striped_lock import StripedLock
from bank.strategies.table_lock import TableLock
from bank.strategies.thread_lock import ThreadLock
from bank.strategies.thread_lock_early import ThreadLockEarly
from bank.strategies.version_check import VersionCheck

__all__ = [
    "CONTROL",
    "STRATEGIES",
    "Attempt",
    "ChunkAttempt",
    "ChunkStrategy",
    "Claim",
    "Guard",
    "Lease",
    "RowLock",
    "Strategy",
    "ThreadGuard",
    "in_order",
    "takes_chunks",
]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        NoLock,
        # one process, one host
        ThreadLock,
        StripedLock,
        FileLock,
        # the row itself
        RowLock,
        RowLockOrm,
        RowLockUnordered,
        RowLockNowait,
        NoKeyLock,
        SingleStatement,
        Batch,
        ShareLock,
        AtomicUpdate,
        VersionCheck,
        # the transaction
        RepeatableRead,
        Serializable,
        # another lock that all instances share
        AdvisoryLock,
        TableLock,
        RedisLock,
        RedisLockFenced,
        SingleWriter,
        # almost right
        ThreadLockEarly,
        AdvisoryLockEarly,
        RedisLockFencedLate,
        CheckThenDebit,
        RetryWithoutReread,
    )
}
"""In the order in which they are shown."""

CONTROL = NoLock.name
"""The strategy that must lose money for any other to have proved something."""


def check_settings(name: str, settings: Settings) -> None:
    """Raise CannotStart, in one sentence, if a strategy of ours cannot be opened with these settings."""
    if name in STRATEGIES:
        STRATEGIES[name].open(settings).close()
