"""``bankrun new``: a strategy to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bank.outside import write_starter
from bankrun.cli.app import open_console


def new(name: Annotated[str, typer.Argument(help="The module's name, as in my_lock.")]) -> None:
    """Write a strategy of your own into the current folder, and a test beside it. Nothing is ever overwritten."""
    strategy, test, called = write_starter(name, Path.cwd())
    console = open_console()
    console.print(f"{strategy.name} and {test.name} are written: edit two lines of {strategy.name}, then", markup=False)
    console.print(f"  bankrun prove --strategy {called}", markup=False, soft_wrap=True)
