"""``bankrun diff``: what changed between two saved results, and whether it is more than noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from bankrun.cli.app import open_console
from bankrun.results.diff import CHANGED, EXACT, P_MAX, SAME, TOO_FEW, changes, circumstances, missing, repeats_needed
from bankrun.results.store import read

STYLES = {CHANGED: "bold", EXACT: "bold", TOO_FEW: "yellow"}


def diff(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="What `--export-json` wrote.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another result of the same command.")],
    every: Annotated[bool, typer.Option("--all", help="Show what is the same, too.")] = False,
) -> None:
    """Say what changed between two results of `compare`, `prove` or `chaos`, and whether it is more than noise."""
    one, two = read(before), read(after)
    found = changes(one, two)
    console = open_console()
    for line in circumstances(one, two):
        console.print(f"different: {line}", markup=False, soft_wrap=True, style="yellow")
    for line in missing(one, two):
        console.print(line, markup=False, soft_wrap=True)
    shown = [change for change in found if every or change.finding != SAME]
    if shown:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
        for name in ("cell", "figure", "A", "B", "finding"):
            table.add_column(name)
        for change in shown:
            row = (change.cell, change.figure, change.before, change.after, change.finding)
            table.add_row(*row, style=STYLES.get(change.finding))
        console.print(table)
    if not found:
        console.print("They have no cell in common: there is nothing to compare", style="bold")
        return
    real = sum(change.is_real for change in found)
    console.print(f"{real} of {len(found)} figures changed by more than noise", style="bold")
    if any(change.finding == CHANGED for change in found):
        console.print(f"Of figures that did not change, about one in {1 / P_MAX:.0f} looks as if it had.")
    if any(change.finding == TOO_FEW for change in found):
        console.print(f"Too few runs to tell: compare with --repeat {repeats_needed()} or more, both times.")
