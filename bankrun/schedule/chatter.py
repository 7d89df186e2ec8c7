"""Whether a statement that touched nothing may be no step of its own, like what drivers ask when they connect.

That it touched nothing once is not enough: ``nextval``, ``has_table_privilege`` and a look at the catalog touch nothing
that can be seen, and tell what others did. So it must compute one row from nothing but a few functions that are known.
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
HARMLESS = frozenset(
    {
        *("version", "current_schema", "current_database", "current_setting", "set_config", "pg_backend_pid"),
        *("pg_client_encoding", "getdatabaseencoding", "clock_timestamp", "timeofday", "now", "transaction_timestamp"),
        *("random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7"),
    }
)
"""Functions that tell only of the server, the session, the time, or nothing."""
KNOWN = frozenset({"select version()", "select pg_catalog.version()", "select current_schema()", "select 1"})
"""What drivers ask. Where a database has functions, operators or types of its own, only these: nothing else can be
looked up without running some of them (EXPLAIN computes what is called immutable)."""
_ENDS = ("COMMIT", "ROLLBACK")
_CALLS = re.compile(r'(?:"([^"]+)"|([a-zA-Z_][\w$]*))\(')
_HAS_ITS_OWN = """
SELECT EXISTS (SELECT FROM pg_proc WHERE oid >= 16384 AND pronamespace <> 'pg_catalog'::regnamespace)
    OR EXISTS (SELECT FROM pg_operator WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_cast WHERE oid >= 16384)
    OR EXISTS (SELECT FROM pg_type WHERE typtype = 'd' AND oid >= 16384)
"""
"""In pg_catalog are ours (see ``prepare_database``)."""


def find_chatter(executions: Iterable[Execution], admin: psycopg.Connection[Any]) -> frozenset[str]:
    """Return the statements that touched nothing, ended well, and cannot tell of others, in all of these executions."""
    seen: dict[str, bool] = {}
    told: dict[str, Statement] = {}
    executions = list(executions)
    changes = any(execution.catalog_changed for execution in executions)
    for execution in executions:
        for step in execution.steps:
            touched = not step.footprint.is_empty and step.footprint.universal != NOTHING_SEEN
            for one in step.statements:
                ends = one.tag in _ENDS or one.sqlstate is not None
                seen[one.sql] = seen.get(one.sql, True) and not touched and not ends
                told[one.sql] = one
    return frozenset(
        text
        for text, is_empty in seen.items()
        if is_empty and text and (told[text].tag in UTILITY_TAGS if changes else shows_nothing(admin, told[text]))
    )


def shows_nothing(admin: psycopg.Connection[Any], statement: Statement) -> bool:
    """Return whether what this statement calls cannot tell what other sessions do. False where that is not known."""
    if statement.tag in UTILITY_TAGS:
        return True
    if statement.tag != "SELECT":
        return False
    if " ".join(statement.sql.lower().split()) in KNOWN:
        return True
    try:
        if admin.execute(_HAS_ITS_OWN).fetchone() != (False,):
            return False
        # The tag is one statement's: there is no second one behind it. Nothing is run.
        explain = sql.SQL("EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF, GENERIC_PLAN) " + statement.sql)
        row = admin.execute(explain).fetchone()
    except psycopg.Error:
        return False
    if row is None:
        return False
    plan = row[0][0]["Plan"]
    if plan["Node Type"] != "Result" or "Plans" in plan:
        return False
    called = [quoted or plain for output in plan.get("Output", ()) for quoted, plain in _CALLS.findall(output)]
    return HARMLESS.issuperset(called)
