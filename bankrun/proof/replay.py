"""One interleaving, told step by step, and as a script for as many psql windows.

The script is for reading and running by hand: its values are written into the SQL, and they are all our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import sql
from rich import box
from rich.table import Table
from rich.text import Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateSequence, CreateTable

from bank import ledger
from bank.audit import Audit
from bank.errors import CannotStart
from bank.postgres import models
from bankrun.proof.interleavings import ACCOUNTS, CASES, CHUNKS, INSTANCES, OPENING, THREE, Case
from bankrun.proof.scheduler import CLOCK, Event, Execution

BRIEF = {
    ledger.CLAIM.name: "claims its transfer",
    ledger.CLAIM_ALL.name: "claims its transfer",
    ledger.REFUSE.name: "refuses it",
    ledger.REFUSE_ALL.name: "refuses it",
    ledger.RECORD.name: "writes its two entries",
}
"""What the teller does for every strategy alike, in few words."""

SCRIPT_SCHEMA = "bankrun_replay"


def parse_id(text: str) -> tuple[str, str, Case, str]:
    """Return what an id says: strategy, instances, case, choices. Raises CannotStart if it is none."""
    parts = text.strip().split("/")
    cases = {**CASES, CHUNKS.name: CHUNKS, THREE.name: THREE}
    if len(parts) != 4 or parts[1] not in INSTANCES or parts[2] not in cases or not re.fullmatch(r"[ABCt]*", parts[3]):
        raise CannotStart(
            f"{text!r} is no interleaving: `bankrun prove` prints some, as in none/two/same-pair/AAABABBB"
        )
    return parts[0], parts[1], cases[parts[2]], parts[3]


def steps_table(execution: Execution, names: Sequence[str]) -> Table:
    """Return the steps in the order in which they were taken, a column for each transfer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("", justify="right")
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    number = 0
    for event in execution.events:
        if event.kind != "begin":
            number += 1
        cells = [Text() for _ in names]
        at = 0 if event.who == CLOCK else list(names).index(event.who)
        cells[at] = Text("\n").join(_told(event))
        table.add_row(str(number or ""), *cells)
    return table


def told(event: Event) -> Iterator[str]:
    """Yield what a step did, in plain lines."""
    yield from (line.plain for line in _told(event))


def _told(event: Event) -> Iterator[Text]:
    yield from _said(event)
    for later in event.then:
        for line in _said(later):
            line.stylize("dim")
            yield line


def _said(event: Event) -> Iterator[Text]:
    if event.kind == "begin":
        yield Text("begins", style="bold")
        return
    brief = BRIEF.get(ledger.name_of(event.text) or "")
    if brief is not None:
        yield Text(brief + (f": {event.result}" if event.result.startswith("fails") else ""))
        return
    yield Text(statement(event.text, event.parameters), style="bold" if event.kind in ("commit", "rollback") else "")
    if event.waited_for:
        then = ", then goes on:" if event.result else ""
        yield Text(f"waits for {event.waited_for}{then}", style="yellow")
    if event.result and event.kind == "statement":
        yield Text(f"→ {event.result}", style="red" if event.result.startswith("fails") else "cyan")


def statement(text: str, parameters: Mapping[str, Any]) -> str:
    """Return a statement with its values in it: to read, never to run with values from outside."""

    def value(match: re.Match[str]) -> str:
        found = parameters.get(match[1])
        if isinstance(found, datetime):
            return "clock_timestamp()"  # it is another one each time
        if isinstance(found, int):
            return str(found)
        return sql.Literal(str(found) if isinstance(found, UUID) else found).as_string(None)

    return re.sub(r"%\((\w+)\)s(?:::\w+)?", value, text).replace("%%", "%")


def money(found: Audit) -> Iterator[str]:
    """Yield what the money came to."""
    counts = ", ".join(f"{count} {status}" for status, count in found.transfers.items() if count)
    yield f"in the end: {counts}; {found.opening_total} at opening, {found.closing_total} now"
    for finding in found.findings:
        for example in finding.examples:
            yield f"  {finding.invariant}, {finding.kind}: {example}"
    if found.passed:
        yield "all five invariants hold"


def psql_script(execution: Execution, case: Case, names: Sequence[str], *, title: str, isolation: str) -> Iterator[str]:
    """Yield a script: set-up, and then each statement under the name of the window in which to run it."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    yield f"-- {title}"
    yield f"-- Open {len(names)} psql windows on a scratch database; run the set-up in one, each step in its window."
    yield "-- Guards and leases live outside the database: they are told as comments."
    yield f"DROP SCHEMA IF EXISTS {SCRIPT_SCHEMA} CASCADE;\nCREATE SCHEMA {SCRIPT_SCHEMA};"
    yield f"SET search_path TO {SCRIPT_SCHEMA};"
    for sequence in models.metadata._sequences.values():  # noqa: SLF001 - SQLAlchemy lists them nowhere else
        yield _unqualified(str(CreateSequence(sequence).compile(dialect=dialect))) + ";"
    for table in models.metadata.sorted_tables:
        yield _unqualified(str(CreateTable(table).compile(dialect=dialect))).strip() + ";"
    for account in ACCOUNTS:
        yield f"INSERT INTO accounts (id, opening, balance) VALUES ({account}, {OPENING}, {OPENING});"  # noqa: S608
    for order in {order.id: order for message in case.messages().values() for order in message}.values():
        values = f"'{order.id}', {order.debit}, {order.credit}, {order.amount}, 'replay'"
        yield f"INSERT INTO transfers (id, debit, credit, amount, strategy) VALUES ({values});"  # noqa: S608
    for name in names:
        yield f"\n-- window {name}\nSET search_path TO {SCRIPT_SCHEMA};"
    begun: set[str] = set()
    for event in execution.events:
        for one in (event, *event.then):
            yield from _window(one, begun, isolation)
    yield "\n-- any window\nSELECT id, balance FROM accounts ORDER BY id;"


def _window(event: Event, begun: set[str], isolation: str) -> Iterator[str]:
    if event.kind == "begin":
        return
    yield f"\n-- window {event.who}" + (f" (waits for {event.waited_for})" if event.waited_for else "")
    if event.kind == "statement":
        if event.who not in begun:
            begun.add(event.who)
            yield f"BEGIN ISOLATION LEVEL {isolation};"
        yield statement(event.text, event.parameters) + ";"
        yield f"-- {event.result}"
    elif event.kind in ("commit", "rollback"):
        begun.discard(event.who)
        yield event.kind.upper() + ";"
    else:
        yield f"-- {event.text}"


def _unqualified(ddl: str) -> str:
    return ddl.replace(f"{models.SCHEMA}.", "")
