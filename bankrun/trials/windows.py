"""A schedule as a script for psql: each step under the name of the window in which to type it.

Parameters are given to prepared statements, so that Postgres reads the SQL exactly as the program sent it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from bankrun.schedule import Execution, Statement, Step
from bankrun.trials.running.crew import NAMES
from bankrun.trials.running.programs import Program, Script


def write_script(
    schedule: str, programs: Sequence[Program], setup: Program | None, execution: Execution
) -> Iterator[str]:
    """Yield the lines."""
    yield f"-- {schedule}"
    for name, program in zip(NAMES, programs, strict=False):
        yield f"-- {name}: {program.name}".replace("\n", " ")
    yield f"-- Open {len(programs)} psql windows on a scratch database, and run each step in its window."
    if isinstance(setup, Script):
        yield f"\\i {os.path.relpath(setup.file)}"
    elif setup is not None:
        yield f"-- set it up with {setup.name}"
    number = 0
    for step in execution.steps:
        yield f"\n-- window {step.participant}" + (
            f" (waits for {', '.join(step.blocked_by)})" if step.blocked_by else ""
        )
        if step.kind == "commit":
            yield "-- what ran outside a transaction block is committed here: psql cannot wait before that"
            continue
        for statement in _typed(step):
            number += 1
            yield from _write(statement, f"s{number}")


def _typed(step: Step) -> list[Statement]:
    return [one for one in step.statements if one.kind == "statement" and one.sql.strip()]


def _write(statement: Statement, name: str) -> Iterator[str]:
    sql = statement.sql.strip().rstrip(";")
    if statement.parameters:
        given = ", ".join(_quote(one) for one in statement.parameters)
        yield f"PREPARE {name} AS {sql};\nEXECUTE {name}({given});"
    else:
        yield f"{sql};"
    if statement.sqlstate:
        yield f"-- {statement.sqlstate}: {statement.message.splitlines()[0] if statement.message else ''}"
    elif statement.rows is not None:
        yield f"-- {statement.tag} {statement.rows}"


def _quote(value: str | None) -> str:
    if value is None:
        return "NULL"
    quoted = value.replace("'", "''")
    return f" E'{quoted.replace(chr(92), chr(92) * 2)}'" if "\\" in quoted else f"'{quoted}'"
