"""``bankrun replay``: one interleaving, told step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bankrun.cli.app import open_console
from bankrun.results import store

if TYPE_CHECKING:
    from bankrun.proof.prover import Judged


def replay(
    interleaving: Annotated[str, typer.Argument(help="An id that `prove` printed, or the file of a trial.")],
    schedule: Annotated[str | None, typer.Argument(help="Of a trial: a schedule of it, such as two/AABB.")] = None,
    export_sql: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it for psql windows; `-` is stdout.")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Of a proof: use scratch databases on this server.")
    ] = None,
) -> None:
    """Run exactly one interleaving again, and tell it step by step."""
    if schedule is not None:
        from bankrun.cli.try_ import replay_trial

        replay_trial(Path(interleaving), schedule, export_sql)
    else:
        _replay_proof(interleaving, export_sql, database_url)


def _replay_proof(interleaving: str, export_sql: str | None, database_url: str | None) -> None:
    from bank.outside import user_strategy
    from bank.settings import read_settings
    from bankrun.cli.options import find_files
    from bankrun.proof.prover import Prover
    from bankrun.proof.replay import parse_id, write_psql_script

    name, where, case, steps = parse_id(interleaving)
    strategy = user_strategy(name)
    console = open_console(export_sql, inputs=find_files([name]))
    with Prover(read_settings(), transfers=len(case.legs), database_url=database_url) as prover:
        judged = prover.replay(strategy, where, case, steps)
    if export_sql is not None:
        store.write(export_sql, "\n".join(write_psql_script(judged.execution, case, title=interleaving)) + "\n")
    show_replay(console, interleaving, judged)


def show_replay(console: Console, name: str, judged: Judged) -> None:
    """Tell it step by step, and what became of the money."""
    from bankrun.proof.replay import draw_steps, parse_id, tell_money

    strategy, where, case, _ = parse_id(name)
    console.print(
        f"{strategy}, {'in one instance' if where == 'same' else 'in two instances'}: {case.summary}", style="bold"
    )
    console.print(draw_steps(judged.execution, list(case.messages())))
    for line in tell_money(judged.audit, judged.torn):
        console.print(line, markup=False, soft_wrap=True, style="red" if judged.is_broken else "green")
    console.print()
