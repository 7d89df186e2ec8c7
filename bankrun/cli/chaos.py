"""``bankrun chaos``: faults on purpose, while transfers flow."""

from __future__ import annotations

import json
import logging
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from bank.errors import CannotStart
from bank.settings import WAITS, read_settings
from bank.strategies import STRATEGIES
from bankrun.chaos.cells import CHAOS_LOAD, Chaos, ChaosCell, ChaosPlan, run_chaos
from bankrun.chaos.faults import FAULTS
from bankrun.chaos.targets import open_stage
from bankrun.cli.app import CONTRADICTED, open_console
from bankrun.cli.options import ALL, Strategies, chosen_strategies
from bankrun.render import fault_matrix as tables
from bankrun.results import files
from bankrun.results.topology import Topology
from bankrun.runs.environment import bankrun_version, environment
from bankrun.runs.progress import Steps
from bankrun.runs.rehearsal import rehearse

STRATEGIES_SHOWN = [
    "none",
    "thread-lock",
    "row-lock",
    "atomic-update",
    "serializable",
    "redis-lock",
    "redis-lock-fenced",
]


def chaos(
    fault: Annotated[list[str], typer.Option(help="A fault, or `all`. Repeatable.")] = ALL,
    strategy: Strategies = STRATEGIES_SHOWN,
    topology: Annotated[str, typer.Option(help="Instances x threads.")] = "2x4",
    transfers: Annotated[int, typer.Option(help="Transfers in each cell.")] = CHAOS_LOAD.transfers,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank.")] = CHAOS_LOAD.accounts,
    rounds: Annotated[
        int,
        typer.Option(
            help="How often a fault strikes in a cell, each time among transfers of its own; some can only once."
        ),
    ] = 1,
    seed: Annotated[int | None, typer.Option(help="Decides what is struck, and when; without it, a fresh one.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the faults that need no long wait.")] = False,
    list_faults: Annotated[bool, typer.Option("--list", help="Tell the faults, and run nothing.")] = False,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything; `-` is stdout.")] = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the matrix.")] = None,
) -> None:
    """Kill, stop, cut and restart everything while transfers flow; let it recover; audit what is left.

    On servers of its own, never on given ones. Exits with 3 if a promise was not kept.
    """
    console = open_console(export_json, export_markdown)
    if list_faults:
        console.print(tables.faults_table(list(FAULTS.values())))
        return
    plan = ChaosPlan(
        faults=_chosen_faults(fault, quick=quick),
        strategies=_chosen_strategies(strategy),
        topology=Topology.parse(topology),
        workload=replace(CHAOS_LOAD, transfers=transfers, accounts=accounts),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        rounds=rounds,
    )
    shape = plan.topology
    logging.getLogger("bankrun").addHandler(logging.NullHandler())  # what our own reconcilers say is in no table
    with open_stage(
        read_settings(), instances=shape.instances, threads=shape.threads, with_network=plan.needs_network
    ) as stage:
        rehearse(stage.database, stage.servers.settings, plan.strategies)
        result = Chaos(
            bankrun=bankrun_version(),
            seed=plan.seed,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            command=_command(plan, quick=quick),
            environment=environment(stage.database, stage.app, list(stage.infos.values()), embedded=True),
            settings={name: getattr(stage.settings, name) for name in (*WAITS, "patience_ms", "reconcile_ms")},
            workload=plan.workload,
            rounds=plan.rounds,
            not_run=plan.missing(),
        )
        with Steps(len(plan.cells())) as steps, _kept(result.cells, console):
            run_chaos(stage, plan, steps, result.cells)
    _show(console, result)  # first: it may be all that is left of a long run where a file cannot be written
    if export_json is not None:
        files.write(export_json, json.dumps(result.as_json(), indent=1) + "\n")
    if export_markdown is not None:
        files.write(export_markdown, tables.chaos_markdown(result))
    if result.contradictions:
        raise typer.Exit(CONTRADICTED)


def _chosen_faults(names: Sequence[str], *, quick: bool) -> tuple[str, ...]:
    wanted = dict.fromkeys(name for given in names for name in (FAULTS if given == "all" else [given]))
    chosen = tuple(name for name in wanted if not quick or name not in FAULTS or FAULTS[name].quick)
    if wanted and not chosen:
        raise CannotStart(f"{', '.join(wanted)}: no fault for --quick; `bankrun chaos --list` says which are")
    return chosen


def _chosen_strategies(names: Sequence[str]) -> tuple[str, ...]:
    """Return the strategies; `all` are those that another instance can go on with."""
    return tuple(
        name
        for name in chosen_strategies(names)
        if name in names or name not in STRATEGIES or not STRATEGIES[name].routed_to_one
    )


@contextmanager
def _kept(cells: list[ChaosCell], console: Console) -> Iterator[None]:
    """Show what was found so far if the block is cut short."""
    try:
        yield
    except BaseException:
        if cells:
            console.print(*tables.chaos_tables(cells, console.width), sep="")
            console.print(f"cut short after {len(cells)} cells; nothing was exported", style="yellow")
        raise


def _command(plan: ChaosPlan, *, quick: bool) -> str:
    """Return the command that repeats it."""
    words = ["bankrun", "chaos"]
    everything = tuple(name for name in FAULTS if not quick or FAULTS[name].quick)
    if plan.faults == everything:
        words += ["--quick"] if quick else []
    else:
        words += [word for name in plan.faults for word in ("--fault", name)]
    words += [word for name in plan.strategies for word in ("--strategy", name)]
    words += ["--topology", str(plan.topology), "--transfers", str(plan.workload.transfers)]
    words += ["--accounts", str(plan.workload.accounts), "--rounds", str(plan.rounds), "--seed", str(plan.seed)]
    return shlex.join(words)


def _show(console: Console, result: Chaos) -> None:
    console.print(
        f"{result.workload.transfers:,} transfers over {result.workload.accounts} accounts in each cell, "
        f"{result.rounds} fault{'s' if result.rounds > 1 else ''} in each; seed {result.seed}",
        style="bold",
    )
    console.print(*tables.chaos_tables(result.cells, console.width), sep="")
    console.print(tables.CHAOS_LEGEND, soft_wrap=True)
    for name, why in result.not_run.items():
        console.print(f"not run: {name}: {why}", style="yellow", soft_wrap=True)
    for cell in result.cells:
        if cell.verdict == "inconclusive" and cell.expected == "safe":
            console.print(f"warning: {cell.fault}, {cell.strategy}: {cell.reason}", style="yellow", soft_wrap=True)
    for cell in result.contradictions:
        console.print(
            f"{cell.strategy} under {cell.fault} was to hold, and does not: {cell.reason}",
            style="bold red",
            soft_wrap=True,
        )
