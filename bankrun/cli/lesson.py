"""``bankrun lesson``: the talk's examples, each told while it runs."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from bank.errors import BankError, CannotStart
from bank.settings import read_settings
from bankrun.cli.app import open_console
from bankrun.runs.lessons import LESSONS, Lesson, lesson_named, run


def lesson(
    name: Annotated[str | None, typer.Argument(help="Which one; without a name, the list.")] = None,
    run_all: Annotated[bool, typer.Option("--all", help="Run all of them, in the talk's order.")] = False,
    source: Annotated[bool, typer.Option("--source", help="Print its code instead of running it.")] = False,
    step: Annotated[bool, typer.Option("--step", help="Wait for a key between steps: for a projector.")] = False,
) -> None:
    """Tell one of the talk's examples while it runs: what goes wrong, and what does not.

    Exits with 1 if it did not show what it is about.
    """
    if name is not None and run_all:
        raise CannotStart(f"give {name} or --all, not both")
    if (source or step) and name is None and not (run_all and step and not source):
        raise CannotStart(
            f"{'--source' if source else '--step'} needs the name of a lesson: `bankrun lesson` lists them"
        )
    if source and step:
        raise CannotStart("--source prints the code and --step runs it: give one of them")
    if step and not sys.stdin.isatty():
        raise CannotStart("--step waits for keys, and there is no terminal to press them on")
    console = open_console()
    if run_all:
        _run_all(console, step=step)
    elif name is None:
        _list(console)
    elif source:
        _show_source(console, lesson_named(name))
    elif code := run(lesson_named(name), step=step):
        raise typer.Exit(code)


def _list(console: Console) -> None:
    table = Table("lesson", "what it shows", "with", box=None, pad_edge=False)
    for one in LESSONS.values():
        table.add_row(one.name, one.shows, "Postgres" if one.needs_postgres else "")
    console.print(table)
    console.print("\nbankrun lesson NAME, --all, NAME --source, NAME --step", markup=False)


def _show_source(console: Console, wanted: Lesson) -> None:
    code = wanted.path.read_text(encoding="utf-8")
    if console.is_terminal:
        console.print(Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        print(code, end="")


def _run_all(console: Console, *, step: bool) -> None:
    """Run one after the other, with one Postgres for all that need it."""
    from bankrun.runs.session import open_servers  # a lesson that needs no server starts at once

    started = time.perf_counter()
    failed = []
    with open_servers(read_settings()) as servers:
        where = {
            "BANKRUN_DATABASE_URL": servers.endpoints.database_url,
            "BANKRUN_BROKER_URL": servers.endpoints.broker_url,
        }
        for number, one in enumerate(LESSONS.values(), start=1):
            console.print(f"\n── {number} of {len(LESSONS)} ──", style="dim")
            sys.stdout.flush()
            if run(one, step=step, environment={**os.environ, **where}):
                failed.append(one.name)
    if failed:
        raise BankError(f"these lessons failed: {', '.join(failed)}")
    console.print(f"\n{len(LESSONS)} lessons in {time.perf_counter() - started:.0f} s")
