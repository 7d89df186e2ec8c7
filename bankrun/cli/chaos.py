"""``bankrun chaos``: faults on purpose, while transfers flow."""

from __future__ import annotations

import logging
import math
import secrets
import shlex
import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bank.errors import CannotStart
from bank.settings import read_settings
from bank.strategies import STRATEGIES
from bankrun.chaos.cells import CHAOS_LOAD, ChaosPlan, begin_chaos, run_chaos
from bankrun.chaos.faults import FAULTS, RABBITMQ, REDIS, faults_with
from bankrun.chaos.targets import open_targets
from bankrun.cli.app import CONTRADICTED, open_console, reserve_stdout, told_if_cut
from bankrun.cli.options import (
    ALL,
    ExportJson,
    Strategies,
    choose_strategies,
    find_files,
    leave_out_unusable,
    takes_workload,
)
from bankrun.render import fault_tables as tables
from bankrun.render.terminal import counted
from bankrun.results import store
from bankrun.results.models.chaos import Chaos
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.progress import Steps
from bankrun.runs.rehearsal import rehearse

QUICK_SECONDS = 45.0
"""So long after its begin `--quick` begins with no more faults, for each strategy: it is to end within a minute."""
STRATEGIES_SHOWN = [
    "none",
    "thread-lock",
    "row-lock",
    "atomic-update",
    "serializable",
    "redis-lock",
    "redis-lock-fenced",
]


@takes_workload("transfers", "accounts", defaults=CHAOS_LOAD)
def chaos(
    *,
    fault: Annotated[list[str], typer.Option(help="A fault, or `all`. Repeatable.")] = ALL,
    strategy: Strategies = STRATEGIES_SHOWN,
    topology: Annotated[str, typer.Option(help="Instances x threads.")] = "2x4",
    workload: Workload,
    rounds: Annotated[
        int,
        typer.Option(
            help="How often a fault strikes in a cell, each time among transfers of its own; some can only once."
        ),
    ] = 1,
    seed: Annotated[int | None, typer.Option(help="Decides what is struck, and when; without it, a fresh one.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only faults that need no long wait; at most a minute for a strategy.")
    ] = False,
    restart_broker: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Restarts the RabbitMQ that BANKRUN_BROKER_URL names: no shell reads it."),
    ] = None,
    list_faults: Annotated[bool, typer.Option("--list", help="Tell the faults, and run nothing.")] = False,
    export_json: ExportJson = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the matrix.")] = None,
) -> None:
    """Kill, stop, cut and restart everything while transfers flow; let it recover; audit what is left.

    On servers of its own, never on given ones; except on a RabbitMQ, which nothing here can start. Exits with 3 if a
    promise was not kept.
    """
    began = time.monotonic()
    reserve_stdout(export_json, export_markdown)
    settings = read_settings()
    broker_url = "" if settings.broker_url is None else settings.broker_url.get_secret_value()
    asked = [] if strategy == STRATEGIES_SHOWN else strategy
    strategies = leave_out_unusable(choose_survivors(strategy), asked, settings)
    console = open_console(export_json, export_markdown, inputs=find_files(strategies))
    if list_faults:
        _list_faults(console)
        return
    plan = ChaosPlan(
        faults=_choose_faults(fault, broker=RABBITMQ if broker_url else REDIS, quick=quick),
        strategies=strategies,
        topology=Topology.parse(topology),
        workload=workload,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        rounds=rounds,
        broker_url=broker_url,
        restart_broker=tuple(_split(restart_broker)),
    )
    plan.check_strategies()
    until = began + QUICK_SECONDS * len(plan.strategies) if quick else math.inf
    shape = plan.topology
    logging.getLogger("bankrun").addHandler(logging.NullHandler())  # what our own reconcilers say is in no table
    with open_targets(
        settings,
        instances=shape.instances,
        threads=shape.threads,
        with_network=plan.needs_network,
        restart_broker=plan.restart_broker,
    ) as targets:
        rehearse(targets.database, targets.servers.settings, plan.strategies)
        result = begin_chaos(targets, plan)

        def tell() -> None:
            _tell(console, result, export_json, export_markdown)

        with told_if_cut(result, tell), Steps(len(plan.cells())) as steps:
            run_chaos(targets, plan, steps, result, until=until)
    tell()
    if result.contradictions:
        raise typer.Exit(CONTRADICTED)


def _list_faults(console: Console) -> None:
    table = Table("fault", "quick", "what happens", box=None, pad_edge=False)
    for fault in FAULTS.values():
        table.add_row(fault.name, "yes" if fault.quick else "", fault.summary)
    console.print(table)


def _split(command: str | None) -> list[str]:
    try:
        words = shlex.split(command or "")
    except ValueError as error:
        raise CannotStart(f"--restart-broker: {error}") from None
    if command is not None and not words:
        raise CannotStart("--restart-broker is empty: give the command that restarts your RabbitMQ")
    return words


def _choose_faults(names: Sequence[str], *, broker: str, quick: bool) -> tuple[str, ...]:
    wanted = dict.fromkeys(name for given in names for name in (faults_with(broker) if given == "all" else [given]))
    chosen = tuple(name for name in wanted if not quick or name not in FAULTS or FAULTS[name].quick)
    if wanted and not chosen:
        raise CannotStart(f"{', '.join(wanted)}: no fault for --quick; `bankrun chaos --list` says which are")
    # Where the time is bounded, those come first that take the least of it.
    return tuple(sorted(chosen, key=lambda name: quick and name in FAULTS and FAULTS[name].starts_one))


def choose_survivors(names: Sequence[str]) -> tuple[str, ...]:
    """Return the strategies; `all` are those that another instance can go on with."""
    return tuple(
        name
        for name in choose_strategies(names)
        if name in names or name not in STRATEGIES or not STRATEGIES[name].routed_to_one
    )


def _tell(console: Console, result: Chaos, export_json: str | None, export_markdown: str | None) -> None:
    if result.cells:
        _show(console, result)  # first: it may be all that is left of a long run where a file cannot be written
    if result.provenance.cut_short:
        console.print(f"cut short after {counted(len(result.cells), 'cell')}", style="yellow")
    if export_json is not None and result.cells:
        store.save(export_json, result)
    if export_markdown is not None and result.cells:
        store.write(export_markdown, tables.chaos_markdown(result))


def _show(console: Console, result: Chaos) -> None:
    console.print(
        f"{result.workload.transfers:,} transfers over {result.workload.accounts} accounts in each cell, "
        f"{counted(result.rounds, 'fault')} in each; seed {result.provenance.seed}",
        style="bold",
    )
    console.print(*tables.chaos_tables(result.cells, console.width), sep="")
    console.print(tables.CHAOS_LEGEND, soft_wrap=True)
    for why in dict.fromkeys(result.not_run.values()):
        names = ", ".join(name for name, reason in result.not_run.items() if reason == why)
        console.print(f"not run: {names}: {why}", style="yellow", soft_wrap=True)
    for cell in result.cells:
        if cell.verdict == "inconclusive" and cell.expected == "safe":
            console.print(f"warning: {cell.fault}, {cell.strategy}: {cell.reason}", style="yellow", soft_wrap=True)
    for cell in result.contradictions:
        console.print(
            f"{cell.strategy} under {cell.fault} was to hold, and does not: {cell.reason}",
            style="bold red",
            soft_wrap=True,
        )
