"""What the engine saw of an execution, as the judge reads it: rows by table, endings, who was where in its program."""

from __future__ import annotations

import json
import linecache
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from bankrun.schedule import Execution, Rows, Statement, Step
from bankrun.schedule import Outcome as Ended
from bankrun.trials.judging.outcomes import Ending, Outcome, Row

FAILED_TRANSACTION = "25P02"
"""What follows an error in a transaction; the error itself says more."""
COMMAND_ENDS_BADLY = "exit "


@lru_cache(maxsize=100_000)
def read_row(text: str) -> Row:
    """Return a row as JSON has it, with exact fractions."""
    row: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return row


def short_table(name: str) -> str:
    """Return a table's name as people write it."""
    return name.removeprefix("public.")


def read_outcome(execution: Execution) -> Outcome:
    """Return what is compared of an execution."""
    errors = last_errors(execution.steps)
    return Outcome(
        read_tables(execution.rows),
        {name: _ending(ended, errors.get(name)) for name, ended in execution.outcomes.items()},
    )


def read_tables(rows: Rows) -> dict[str, list[Row]]:
    """Return the rows of all tables."""
    return {short_table(name): [read_row(text) for text in texts] for name, texts in rows.items()}


def last_errors(steps: Sequence[Step]) -> dict[str, str]:
    """Return the last error that Postgres gave each participant."""
    errors: dict[str, str] = {}
    for step in steps:
        told: Mapping[str, Sequence[Statement]] = {step.participant: step.statements, **step.then}
        for name, statements in told.items():
            for statement in statements:
                if statement.sqlstate and statement.sqlstate != FAILED_TRANSACTION:
                    errors[name] = statement.sqlstate
    return errors


def _ending(ended: Ended, sqlstate: str | None) -> Ending:
    # A command tells no SQLSTATE of its own: the last one on the wire is what it failed with, if it failed.
    failed_with = ended.sqlstate or (sqlstate if ended.error else None)
    message = "" if ended.error.startswith(COMMAND_ENDS_BADLY) else ended.message
    return Ending(ended.error, failed_with, message, _exact(ended.result), ended.output)


def _exact(result: Any) -> Any:
    return json.loads(json.dumps(result), parse_float=Decimal) if isinstance(result, (dict, list, float)) else result


def find_line(stack: Sequence[tuple[str, int, str]]) -> str:
    """Return the user's own line in a stack, as ``shop.py:12``: the innermost that is in no package and no library."""
    file, line = _find_spot(stack)
    return f"{Path(file).name}:{line}" if file else ""


def find_text(stack: Sequence[tuple[str, int, str]]) -> str:
    """Return what stands in that line."""
    return linecache.getline(*_find_spot(stack)).strip()


def _find_spot(stack: Sequence[tuple[str, int, str]]) -> tuple[str, int]:
    return next(((file, line) for file, line, _ in reversed(stack) if _is_users(file)), ("", 0))


@lru_cache(maxsize=10_000)
def _is_users(file: str) -> bool:
    path = Path(file)
    libraries = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    ours = Path(__file__).resolve().parents[2]
    if not path.is_file() or "site-packages" in path.parts or ours in path.parents:
        return False
    return not any(folder and Path(folder) in path.parents for folder in [*libraries, sys.base_prefix])
