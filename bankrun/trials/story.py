"""A schedule in words: who does what, line by line, in two columns or more."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import replace

from rich import box
from rich.table import Table
from rich.text import Text

from bankrun.render.terminal import Terminal
from bankrun.results.models.schedule import StepTold
from bankrun.schedule import Execution, Statement, Step
from bankrun.trials.judging.judge import SERIAL, Finding
from bankrun.trials.running.crew import NAMES
from bankrun.trials.running.execution import find_line, find_text
from bankrun.trials.running.programs import Program

WIDTH = 118
SQL_LENGTH_MAX = 160


def leave_out_chatter(execution: Execution, chatter: Collection[str]) -> Execution:
    """Return the execution without what drivers ask when they connect; it belongs to the step that follows it."""
    return replace(
        execution,
        steps=[replace(step, statements=_without_chatter(step.statements, chatter)) for step in execution.steps],
    )


def _without_chatter(statements: Sequence[Statement], chatter: Collection[str]) -> list[Statement]:
    ends = [number for number, one in enumerate(statements[:-1]) if one.tag in ("COMMIT", "ROLLBACK")]
    kept = statements[ends[-1] + 1 :] if ends else statements
    return [one for one in kept if one.sql not in chatter] or list(statements)


def tell_story(schedule: str, programs: Sequence[Program], execution: Execution, finding: Finding | None) -> str:
    """Return the story as text."""
    console = Terminal(file=io.StringIO(), width=WIDTH, no_color=True)
    console.print(Text(f"{schedule}, step by step"))
    console.print(steps_table(programs, execution))
    for line in endings(programs, execution, finding):
        console.print(Text(line), soft_wrap=True)
    written = console.file
    assert isinstance(written, io.StringIO)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def steps_table(programs: Sequence[Program], execution: Execution) -> Table:
    """Return the steps, a column for each program."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, width=WIDTH)
    names = NAMES[: len(programs)]
    for name, program in zip(names, programs, strict=True):
        table.add_column(f"{name}: {program.short_name}", ratio=1, overflow="fold")
    for step in execution.steps:
        cells = {step.participant: describe_step(step)}
        for name, statements in step.then.items():
            told = "\n".join(f"  goes on: {_say(one)}" for one in statements if one.sql)
            cells[name] = told or "  goes on"
        table.add_row(*(Text(cells.get(name, "")) for name in names))
    return table


def describe_step(step: Step) -> str:
    """Return a step's statements, the line that sent them, and whom it waits for."""
    line = find_line(step.source)
    told = [_say(one) for one in step.statements if one.sql or one.tag] or [step.text or step.kind]
    if line:
        told[-1] += f"\n  {line}"
    if step.blocked_by:
        told.append(f"  waits for {' and '.join(step.blocked_by)}")
    return "\n".join([*told, *(f"  {note}" for note in step.notes)])


def as_steps(execution: Execution) -> list[StepTold]:
    """Return the steps as they are saved."""
    return [
        StepTold(
            step.participant,
            step.kind,
            [_say(one) for one in step.statements if one.sql or one.tag] or [step.text or step.kind],
            find_line(step.source),
            list(step.blocked_by),
            sorted({*step.woken, *step.then}),
            find_text(step.source),
            {name: [_say(one) for one in statements if one.sql] for name, statements in step.then.items()},
        )
        for step in execution.steps
    ]


def _say(statement: Statement) -> str:
    sql = " ".join(statement.sql.split())
    sql = sql if len(sql) <= SQL_LENGTH_MAX else sql[: SQL_LENGTH_MAX - 1] + "…"
    given = ", ".join("null" if one is None else one for one in statement.parameters)
    text = f"{sql}  [{given}]" if given else sql
    if statement.sqlstate:
        return f"{text}\n  {statement.sqlstate}: {statement.message.splitlines()[0] if statement.message else ''}"
    return text or statement.tag


def endings(programs: Sequence[Program], execution: Execution, finding: Finding | None) -> list[str]:
    """Return how each ended, and what is wrong."""
    lines = []
    for name, program in zip(NAMES, programs, strict=False):
        ended = execution.outcomes.get(name)
        if ended is not None and ended.error:
            lines.append(
                f"{name}, {program.short_name}, fails: {ended.error}: {(ended.message.splitlines() or [''])[0]}"
            )
        elif ended is not None and ended.result is not None:
            lines.append(f"{name}, {program.short_name}, returns {ended.result!r}")
    if finding is not None and finding.kind != SERIAL:
        lines.append(
            finding.difference or f"{finding.kind}: {' and '.join(finding.sqlstates)}; run again, it is serial"
        )
    elif finding is not None and finding.like:
        lines.append(f"It ends like {' then '.join(finding.like)}.")
    return lines
