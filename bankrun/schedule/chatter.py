"""Whether a statement that touched nothing may be no step of its own, like what drivers ask when they connect.

That it touched nothing once is not enough: ``nextval`` and ``pg_sequence_last_value`` touch nothing that can be seen,
and tell what others did. So all that it calls is looked up: functions of Postgres that are not volatile, and do not
tell of other sessions, and the few volatile ones that are known to tell nothing (manual, Function Volatility).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import sql

from bankrun.schedule.stepping import NOTHING_SEEN
from bankrun.schedule.trace import Execution, Statement

UTILITY_TAGS = frozenset({"BEGIN", "START TRANSACTION", "SET", "RESET", "SHOW", "DEALLOCATE", "SAVEPOINT", "RELEASE"})
VOLATILE_AND_HARMLESS = frozenset(
    {"set_config", "clock_timestamp", "timeofday", "random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7"}
)
_ENDS = ("COMMIT", "ROLLBACK")
_TELLS_OF_OTHERS = re.compile(r"snapshot|xact|txid|pg_stat|pg_lock|sequence|wal|recovery|visible_in|pg_blocking")
_CALLS = re.compile(r'(?:"([^"]+)"|([a-zA-Z_][\w$]*))\(')
_FIRST_OF_A_USER = 16_384  # FirstNormalObjectId


def find_chatter(executions: Iterable[Execution], admin: psycopg.Connection[Any]) -> frozenset[str]:
    """Return the statements that touched nothing, ended well, and cannot tell of others, in all of these executions."""
    seen: dict[str, bool] = {}
    told: dict[str, Statement] = {}
    for execution in executions:
        for step in execution.steps:
            touched = not step.footprint.is_empty and step.footprint.universal != NOTHING_SEEN
            for one in step.statements:
                ends = one.tag in _ENDS or one.sqlstate is not None
                seen[one.sql] = seen.get(one.sql, True) and not touched and not ends
                told[one.sql] = one
    return frozenset(text for text, is_empty in seen.items() if is_empty and text and shows_nothing(admin, told[text]))


def shows_nothing(admin: psycopg.Connection[Any], statement: Statement) -> bool:
    """Return whether what this statement calls cannot tell what other sessions do. False where that is not known."""
    if statement.tag in UTILITY_TAGS:
        return True
    if statement.tag != "SELECT":
        return False
    try:
        # The tag is one statement's: there is no second one behind it. Nothing is run.
        explain = sql.SQL("EXPLAIN (VERBOSE, COSTS OFF, GENERIC_PLAN) " + statement.sql)
        plan = "\n".join(str(row[0]) for row in admin.execute(explain).fetchall())
        names = [quoted or plain for quoted, plain in _CALLS.findall(plan)]
        found = admin.execute(
            "SELECT proname::text, bool_or(provolatile = 'v'), bool_or(oid >= %s) FROM pg_proc WHERE proname = ANY(%s)"
            " GROUP BY 1",
            [_FIRST_OF_A_USER, names],
        ).fetchall()
    except psycopg.Error:
        return False
    return not any(
        theirs or _TELLS_OF_OTHERS.search(str(name)) or (volatile and name not in VOLATILE_AND_HARMLESS)
        for name, volatile, theirs in found
    )
