"""``bankrun audit``: the invariants of what is in the bank now."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from bank.audit import Audit
from bank.audit import audit as audit_bank
from bank.errors import CannotStart
from bank.postgres.roles import check_readable
from bank.postgres.schema import bank_id
from bank.settings import read_settings
from bankrun.cli.app import CONTRADICTED, open_console
from bankrun.results import store
from bankrun.runs.session import open_servers


def audit(
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the findings; `-` is stdout.")] = None,
) -> None:
    """Check the five invariants of what is in the bank now. Exits with 3 if one fails."""
    console = open_console(export_json)
    with open_servers(read_settings()) as servers:
        if bank_id(servers.database) is None:
            raise CannotStart("there is no bank yet: run `bankrun compare` first")
        check_readable(servers.database)
        found = audit_bank(servers.database)
    if export_json is not None:
        store.write(export_json, json.dumps(found.as_json(), indent=1) + "\n")
    _show_audit(console, found)
    if not found.passed:
        raise typer.Exit(CONTRADICTED)


def _show_audit(console: Console, found: Audit) -> None:
    counts = ", ".join(f"{count:,} {status}" for status, count in found.transfers.items() if count)
    console.print(f"{found.accounts:,} accounts, {found.entries:,} entries; transfers: {counts or 'none'}")
    console.print(f"opened with {found.opening_total:,}, holds {found.closing_total:,}: drift {found.drift:+,}")
    for finding in found.findings:
        console.print(f"{finding.invariant}, {finding.kind}: {finding.count:,}", style="red")
        for example in finding.examples:
            console.print(f"  {example}", markup=False, soft_wrap=True)
    if found.passed:
        console.print("all five invariants hold", style="green")
