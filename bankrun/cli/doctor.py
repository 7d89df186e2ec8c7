"""``bankrun doctor``: what would break a promise here."""

from __future__ import annotations

import typer

from bank.settings import read_settings
from bankrun.cli.app import FAILED, open_console
from bankrun.runs.doctor import examine
from bankrun.runs.session import open_servers


def doctor() -> None:
    """Examine the servers, their versions, and the settings that would break a promise. Exits with 1 if one would."""
    console = open_console()
    with open_servers(read_settings()) as servers:
        checks = examine(servers)
    for check in checks:
        colour, word = ("green", "ok") if check.ok else ("red", "no")
        console.print(word, style=colour, end="  ")
        console.print(
            f"{check.name}: {check.found}" + ("" if check.ok else f" ({check.why})"), markup=False, soft_wrap=True
        )
    if not all(check.ok for check in checks):
        raise typer.Exit(FAILED)
