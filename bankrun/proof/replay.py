"""One interleaving, told step by step in a column for each transfer, and as a script for as many psql windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime

from rich import box
from rich.table import Table
from rich.text import Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateSequence, CreateTable

from bank import ledger
from bank.audit import Audit
from bank.errors import CannotStart
from bank.postgres import models
from bank.postgres.connection import number_placeholders
from bankrun.proof.cases import ACCOUNTS, ALL_CASES, INSTANCES, OPENING, PARTICIPANTS, THREE, Case
from bankrun.proof.participant import SESSION_ENDS
from bankrun.schedule import Execution, Statement, Step
from bankrun.schedule.trace import CLOCK

BRIEF = {
    ledger.CLAIM: "claims its transfer",
    ledger.CLAIM_ALL: "claims its transfers",
    ledger.REFUSE: "refuses it",
    ledger.REFUSE_ALL: "refuses them",
    ledger.RECORD: "writes its two entries",
    ledger.POST: "writes both balances and both entries",
}
"""What the teller does for every strategy alike, in few words."""

QUIET = ("BEGIN", "START TRANSACTION", "SET", "SHOW", "SAVEPOINT", "RELEASE", "")
"""The tags of what belongs to the statement after it."""

LOOK = "SELECT id, balance FROM accounts ORDER BY id;"


def parse_id(text: str) -> tuple[str, str, Case, str]:
    """Return what an id says: strategy, instances, case, schedule. Raises CannotStart if it is none."""
    parts = text.strip().split("/")
    cases = {**ALL_CASES, THREE.name: THREE}
    known = {*PARTICIPANTS, CLOCK}
    if len(parts) != 4 or parts[1] not in INSTANCES or parts[2] not in cases or not set(parts[3]) <= known:
        raise CannotStart(
            f"{text!r} is no interleaving: `bankrun prove` prints some, as in none/two/same-pair/AAAAABBABBBB"
        )
    return parts[0], parts[1], cases[parts[2]], parts[3]


def draw_steps(execution: Execution, names: Sequence[str]) -> Table:
    """Return the steps in the order in which they were taken, a column for each transfer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("", justify="right")
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    for number, step in enumerate(execution.steps, start=1):
        told = dict(tell_step(step, names))
        table.add_row(str(number), *(Text("\n").join(told.get(name, ())) for name in names))
    return table


def tell_step(step: Step, names: Sequence[str]) -> Iterator[tuple[str, list[Text]]]:
    """Yield what a step did, by participant: the one that took it, and those that it let go on."""
    who = names[0] if step.participant == CLOCK else step.participant
    yield who, list(_tell(step))
    for name, statements in step.then.items():
        told = [line for statement in statements if statement.sql for line in _tell_result(statement)]
        yield name, [Text("goes on", style="yellow"), *told]


def _tell(step: Step) -> Iterator[Text]:
    if not step.statements:
        yield Text(step.text)
    for statement in step.statements:
        if statement.tag in QUIET and statement.sqlstate is None and not step.blocked_by:
            continue
        text = describe_statement(statement)
        yield Text(text, style="bold" if statement.tag in ("COMMIT", "ROLLBACK") else "")
        yield from _tell_result(statement)
    if step.kind == "commit":
        yield Text("(which commits itself)", style="dim")
    if step.blocked_by:
        yield Text(f"waits for {', '.join(step.blocked_by)}", style="yellow")
    for note in step.notes:
        if note != SESSION_ENDS:
            yield Text(note, style="dim")


def _tell_result(statement: Statement) -> Iterator[Text]:
    if statement.sqlstate is not None:
        yield Text(f"→ fails with {statement.sqlstate}: {statement.message}", style="red")
    elif statement.values and not find_brief(statement.sql):
        rows = "; ".join(", ".join(map(_show_value, row)) for row in statement.values)
        yield Text(f"→ {rows}", style="cyan")
    elif statement.rows is not None and not find_brief(statement.sql):
        yield Text(f"→ {statement.rows} row{'s' * (statement.rows != 1)}", style="cyan")


def _show_value(value: str | None) -> str:
    """Return a value that was read. A time of day is another one each time: it says nothing here."""
    if value is None:
        return "∅"
    with suppress(ValueError):
        datetime.fromisoformat(value)
        return "now" if ":" in value else value
    return value


def describe_statement(statement: Statement) -> str:
    """Return a statement as a reader wants it: in few words if it is the teller's, else with its values in it."""
    return find_brief(statement.sql) or fill_in(" ".join(statement.sql.split()), statement.parameters)


def find_brief(sql: str) -> str | None:
    """Return what a statement of the teller does, in few words; None for any other."""
    return _BRIEF_ON_THE_WIRE.get(" ".join(sql.split()))


_BRIEF_ON_THE_WIRE = {
    " ".join(number_placeholders(statement)[0].decode().split()): brief for statement, brief in BRIEF.items()
}


def fill_in(sql: str, parameters: Sequence[str | None]) -> str:
    """Return a statement with its values in the places of ``$1``, ``$2``, …: to read, never to run."""
    first, *rest = sql.split("$")
    parts = [first]
    for part in rest:
        digits = len(part) - len(part.lstrip("0123456789"))
        number = int(part[:digits] or 0)
        known = 1 <= number <= len(parameters)
        parts.append((_show(parameters[number - 1]) if known else "$" + part[:digits]) + part[digits:])
    return "".join(parts)


def _show(value: str | None) -> str:
    if value is None:
        return "NULL"
    is_number = value.lstrip("-").isdecimal() and str(int(value)) == value
    return value if is_number else "'" + value.replace("'", "''") + "'"


def tell_money(found: Audit, torn: Sequence[str] = ()) -> Iterator[str]:
    """Yield what the money came to."""
    counts = ", ".join(f"{count} {status}" for status, count in found.transfers.items() if count)
    yield f"in the end: {counts}; {found.opening_total} at opening, {found.closing_total} now"
    for finding in found.findings:
        for example in finding.examples:
            yield f"  {finding.invariant}, {finding.kind}: {example}"
    for text in torn if found.passed else ():
        yield f"  torn commit: after {text}, balances and journal disagreed, for all to see"
    if found.passed and not torn:
        yield "all five invariants hold"


def write_psql_script(execution: Execution, case: Case, *, title: str) -> Iterator[str]:
    """Yield a script: set-up, and then each statement under the name of the window in which to run it."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    names = list(case.messages())
    yield f"-- {title}"
    yield f"-- Open {len(names)} psql windows (16 or newer, for \\bind) on an empty scratch database; run the set-up in"
    yield "-- one, and each step in its window. Guards and leases live outside the database: they are told as comments."
    yield f"CREATE SCHEMA {models.SCHEMA};\nSET search_path TO {models.SCHEMA};"
    for sequence in models.metadata._sequences.values():  # noqa: SLF001 - SQLAlchemy lists them nowhere else
        yield str(CreateSequence(sequence).compile(dialect=dialect)) + ";"
    for table in models.metadata.sorted_tables:
        yield str(CreateTable(table).compile(dialect=dialect)).strip() + ";"
    for account in ACCOUNTS:
        yield f"INSERT INTO accounts (id, opening, balance) VALUES ({account}, {OPENING}, {OPENING});"  # noqa: S608
    for order in case.orders():
        values = f"'{order.id}', {order.debit}, {order.credit}, {order.amount}, 'replay'"
        yield f"INSERT INTO transfers (id, debit, credit, amount, strategy) VALUES ({values});"  # noqa: S608
    for name in names:
        yield f"\n-- window {name}\nSET search_path TO {models.SCHEMA};"
    for step in execution.steps:
        waits = f" (waits for {', '.join(step.blocked_by)})" if step.blocked_by else ""
        yield f"\n-- window {step.participant}{waits}"
        if not step.statements:
            yield f"-- {step.text}"
        for statement in step.statements:
            yield from _write_statement(statement)
    yield f"\n-- any window\n{LOOK}"


def _write_statement(statement: Statement) -> Iterator[str]:
    if not statement.sql.strip():
        return
    sql = statement.sql.strip()
    if None in statement.parameters:  # which \\bind cannot write
        yield fill_in(sql, statement.parameters) + ";"
    elif statement.parameters:
        yield f"{sql} \\bind {' '.join(map(_quote_for_psql, statement.parameters))} \\g"
    else:
        yield sql.rstrip(";") + ";"
    if statement.sqlstate is not None:
        yield f"-- fails with {statement.sqlstate}: {statement.message}"


def _quote_for_psql(value: str | None) -> str:
    """Return a value as psql takes it as an argument of a backslash command (manual, psql)."""
    return "'" + (value or "").replace("\\", "\\\\").replace("'", "''") + "'"
