"""``bankrun replay``: one interleaving, told step by step."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from bank.audit import Audit
from bank.outside import user_strategy
from bank.settings import read_settings
from bankrun.cli.app import open_console
from bankrun.proof.interleavings import Prover
from bankrun.proof.replay import money, parse_id, psql_script, steps_table
from bankrun.proof.scheduler import Execution
from bankrun.proof.verdicts import replayed
from bankrun.results import store
from bankrun.runs.session import hold_bank, open_servers


def replay(
    interleaving: Annotated[str, typer.Argument(help="An id that `prove` printed.")],
    export_sql: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it for psql windows; `-` is stdout.")
    ] = None,
) -> None:
    """Run exactly one interleaving again, and tell it step by step."""
    parse_id(interleaving)
    console = open_console(export_sql)
    name, _, case, _ = parse_id(interleaving)
    strategy = user_strategy(name)
    with (
        open_servers(read_settings()) as servers,
        hold_bank(servers),
        Prover(servers.database, servers.settings, transfers=len(case.legs)) as prover,
    ):
        execution, found = replayed(prover, interleaving)
    if export_sql is not None:
        script = psql_script(execution, case, list(case.orders()), title=interleaving, isolation=strategy.isolation)
        store.write(export_sql, "\n".join(script) + "\n")
    show_replay(console, interleaving, execution, found)


def show_replay(console: Console, name: str, execution: Execution, found: Audit) -> None:
    """Tell it step by step, and what became of the money."""
    strategy, where, case, _ = parse_id(name)
    console.print(
        f"{strategy}, {'in one instance' if where == 'same' else 'in two instances'}: {case.summary}", style="bold"
    )
    console.print(steps_table(execution, list(case.orders())))
    for line in money(found):
        console.print(line, markup=False, soft_wrap=True, style="green" if found.passed else "red")
    console.print()
