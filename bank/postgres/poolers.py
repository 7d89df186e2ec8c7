"""What may stand between us and Postgres: a pooler that leaves a client its session, or one that does not.

Sessions of ours have settings, advisory locks and prepared statements. A pooler by session (pgbouncer: pool_mode =
session) leaves all that alone. One by transaction or statement gives the next transaction to whichever session is free:
then money moves under settings that are somebody else's, and a lock that we hold is held by nobody.

Nothing here asks a pooler what it is, since what answers may be Postgres or another pooler. How it behaves shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from bank.errors import CannotStart
from bank.postgres.watchdog import Watchdog

Connection = psycopg.Connection[Any]

ROUNDS = 3
ANSWER_SECONDS_MAX = 10.0
REFUSALS = ("unsupported startup parameter", "command-line options")
"""What pgbouncer, and Amazon's proxy, say of a start-up packet's ``options``."""
PID = "SELECT pg_catalog.pg_backend_pid()"


def refuses_options(error: BaseException) -> bool:
    """Whether a login failed because something on the way takes no start-up options."""
    return any(refusal in str(error) for refusal in REFUSALS)


def stands_between(connection: Connection, backend_pid: int) -> bool:
    """Whether a connection goes through a pooler, given the pid of the backend that answers on it.

    At the login a server tells its own pid, for cancelling. A pooler has to make one up, or else could not tell whose
    statement is to be cancelled.
    """
    return connection.info.backend_pid != backend_pid


def check_keeps_sessions(first: Connection, open_second: Callable[[], Connection]) -> None:
    """Raise CannotStart unless the pooler leaves each of its clients a session of its own, for as long as it stays.

    Two clients are open at the same time. Where one of them is answered by the backend that has just answered the
    other, or by another one than before while the other is in a transaction, sessions are shared. Both are idle
    otherwise, so a pooler that shares them has no reason to give each its own.
    """
    watchdog = Watchdog(ANSWER_SECONDS_MAX)
    second: Connection | None = None
    try:
        second = open_second()
        ticket = watchdog.watch(second)
        _ask(second, PID)
    except psycopg.OperationalError as error:
        raise CannotStart(
            f"the pooler in between gives no second session within {ANSWER_SECONDS_MAX:g} s: each instance needs one "
            f"for each thread and one more, and the lab eight (pgbouncer: default_pool_size); it says: {_why(error)}"
        ) from error
    else:
        for _ in range(ROUNDS):
            _compare(first, second)
        watchdog.release(ticket)
    finally:
        if second is not None:
            second.close()
        watchdog.close()


def _compare(first: Connection, second: Connection) -> None:
    before = _ask(first, PID)
    try:
        _ask(second, "BEGIN")
    except psycopg.Error as error:  # by statement: it ends the connection of a client that begins a transaction
        raise CannotStart(SHARES.format(how=f"and lets nobody begin one: {_why(error)}")) from error
    during = _ask(second, PID)
    after = _ask(first, PID)
    _ask(second, "ROLLBACK")
    if during == before or after != before:
        raise CannotStart(SHARES.format(how="two clients of it were answered by one session, or one client by two"))


SHARES = (
    "the pooler in between gives each transaction whichever session is free ({how}): settings, advisory locks and "
    "prepared statements would be another's; let it pool by session (pgbouncer: pool_mode = session), or give the "
    "address of Postgres itself"
)


def _ask(connection: Connection, statement: str) -> Any:
    """Run one statement of the simple protocol, which needs nothing prepared, and return its first value, if any."""
    result = connection.pgconn.exec_(statement.encode())
    if connection.pgconn.transaction_status == TransactionStatus.UNKNOWN:
        raise psycopg.OperationalError(result.get_error_message())
    if result.error_message:
        raise psycopg.ProgrammingError(result.get_error_message())
    return result.get_value(0, 0) if result.ntuples else None


def _why(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
