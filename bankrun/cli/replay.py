"""``bankrun replay``: one interleaving, told step by step."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from bank.outside import user_strategy
from bank.settings import read_settings
from bankrun.cli.app import open_console
from bankrun.proof.prover import Judged, Prover
from bankrun.proof.replay import draw_steps, parse_id, tell_money, write_psql_script
from bankrun.results import store


def replay(
    interleaving: Annotated[str, typer.Argument(help="An id that `prove` printed.")],
    export_sql: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it for psql windows; `-` is stdout.")
    ] = None,
) -> None:
    """Run exactly one interleaving again, and tell it step by step."""
    name, where, case, schedule = parse_id(interleaving)
    console = open_console(export_sql)
    strategy = user_strategy(name)
    with Prover(read_settings(), transfers=len(case.legs)) as prover:
        judged = prover.replay(strategy, where, case, schedule)
    if export_sql is not None:
        store.write(export_sql, "\n".join(write_psql_script(judged.execution, case, title=interleaving)) + "\n")
    show_replay(console, interleaving, judged)


def show_replay(console: Console, name: str, judged: Judged) -> None:
    """Tell it step by step, and what became of the money."""
    strategy, where, case, _ = parse_id(name)
    console.print(
        f"{strategy}, {'in one instance' if where == 'same' else 'in two instances'}: {case.summary}", style="bold"
    )
    console.print(draw_steps(judged.execution, list(case.messages())))
    for line in tell_money(judged.audit, judged.torn):
        console.print(line, markup=False, soft_wrap=True, style="red" if judged.is_broken else "green")
    console.print()
