"""``bankrun strategies``: which there are, and what was found of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bank import outside
from bank.errors import CannotStart
from bank.outside import strategy_named
from bank.strategies import STRATEGIES
from bankrun import errors
from bankrun.cli.app import open_console
from bankrun.quoting import printable
from bankrun.render import tables
from bankrun.results.models.comparison import Comparison
from bankrun.results.models.proof import ProofResult
from bankrun.results.store import read_as


def strategies(
    proof: Annotated[Path | None, typer.Option(metavar="JSON", help="A result of `prove`.")] = None,
    comparison: Annotated[Path | None, typer.Option(metavar="JSON", help="A result of `compare`.")] = None,
) -> None:
    """List the strategies: name, claim, one line. Those of installed packages come last.

    With a proof and a comparison, as a Markdown table of what those found.
    """
    if (proof is None) != (comparison is None):
        raise CannotStart("give both a proof and a comparison, or neither")
    if proof is not None and comparison is not None:
        print(_read_gallery(proof, comparison), end="")
        return
    table = Table("name", "claims to hold", "how", box=None, pad_edge=False)
    for name, strategy in STRATEGIES.items():
        table.add_row(name, strategy.claim.value, strategy.summary)
    for name in outside.find_installed():
        try:
            strategy = strategy_named(name)
        except CannotStart as error:
            table.add_row(name, "", str(error))
        else:
            table.add_row(name, strategy.claim.value, strategy.summary)
    open_console().print(table)


def _read_gallery(proof: Path, comparison: Path) -> str:
    found, measured = read_as(ProofResult, proof), read_as(Comparison, comparison)
    for file, source in ((proof, found.provenance), (comparison, measured.provenance)):
        if source.cut_short:
            raise CannotStart(f"{file} was cut short: the table would count less than there is")
    try:
        return printable(tables.gallery_markdown(found, measured))
    except errors.CannotStart as error:
        raise errors.CannotStart(f"{comparison}: {error}") from error
