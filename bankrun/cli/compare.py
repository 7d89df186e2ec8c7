"""``bankrun compare``: several strategies on several topologies under the same load, audited and judged."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bank import outside
from bank.errors import CannotStart
from bank.postgres import versions
from bank.postgres.schema import check_connection_budget
from bank.settings import read_settings
from bankrun.cli.app import CONTRADICTED, FAILED, open_console, reserve_stdout, told_if_cut
from bankrun.cli.options import (
    ExportJson,
    Strategies,
    choose_strategies,
    find_files,
    leave_out_unusable,
    takes_workload,
)
from bankrun.render import tables
from bankrun.render.story import explain
from bankrun.render.terminal import Terminal, counted
from bankrun.results import store
from bankrun.results.distance import NEAR, Distance
from bankrun.results.models.comparison import Comparison, Run
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import CELL_SECONDS_MAX, SECONDS_FAR, WARMUP, Plan, judge_all
from bankrun.runs.progress import BarProgress, LineProgress
from bankrun.runs.provenance import begin_comparison
from bankrun.runs.session import Servers, open_lab, open_servers

HEADLINE_STRATEGIES = ["none", "thread-lock", "row-lock"]
HEADLINE_TOPOLOGIES = ["1x8", "3x8"]


@takes_workload()
def compare(
    *,
    strategy: Strategies = HEADLINE_STRATEGIES,
    topology: Annotated[
        list[str], typer.Option(help="Instances x threads, as in 3x8 or 3x8@30ms. Repeatable.")
    ] = HEADLINE_TOPOLOGIES,
    workload: Workload,
    distance_ms: Annotated[
        list[str], typer.Option(help="Round-trip time to Postgres: 5, or w1=0,w2=40. Repeatable.", show_default="0")
    ] = [],  # noqa: B006 - typer's
    seed: Annotated[
        int | None, typer.Option(help="The same seed sends the same transfers; without it, a fresh one.")
    ] = None,
    repeat: Annotated[int, typer.Option(help="Runs of each cell; one broken run makes it broken.")] = 1,
    warmup: Annotated[int, typer.Option(help="Transfers before each cell that are not counted.")] = WARMUP,
    cell_timeout: Annotated[float, typer.Option(help="Seconds after which a cell is unfinished.")] = CELL_SECONDS_MAX,
    seconds: Annotated[
        float | None,
        typer.Option(help=f"Seconds for each cell; the rest is withdrawn. {SECONDS_FAR:g} with a distance."),
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Show every column.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 for an inconclusive cell too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the connections it needs.")] = False,
    export_json: ExportJson = None,
    export_csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write a line for each run.")] = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table.")] = None,
    export_svg: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table as a picture.")] = None,
    report: Annotated[str | None, typer.Option(metavar="FILE", help="Write a report, as HTML.")] = None,
    junitxml: Annotated[str | None, typer.Option(metavar="FILE", help="Write a test case for each cell.")] = None,
) -> None:
    """Send the same transfers through several strategies on several topologies, and audit what is left.

    Without options: no lock, the talk's thread lock and its row lock, in one instance and in three.
    """
    exports = (export_json, export_csv, export_markdown, export_svg, report, junitxml)
    reserve_stdout(*exports)
    settings = read_settings()
    strategies = leave_out_unusable(choose_strategies(strategy), strategy, settings)
    console = open_console(*exports, inputs=find_files(strategies))
    plan = Plan(
        strategies=strategies,
        topologies=_spread(topology, distance_ms),
        workload=workload,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        repeat=repeat,
        warmup=warmup,
        cell_seconds_max=cell_timeout,
        seconds=seconds,
    ).within_reason()
    workload.check_idle_timeout(settings.idle_timeout_ms)
    notes = Terminal(stderr=True)
    for topology_idle in _find_idle_threads(plan):
        notes.print(f"warning: {topology_idle}", style="yellow", soft_wrap=True)
    written: list[tuple[str | None, Callable[[Comparison], str]]] = [
        (export_csv, tables.comparison_csv),
        (export_markdown, tables.comparison_markdown),
        (junitxml, tables.comparison_junit),
        (export_svg, tables.comparison_svg),
        (report, _report),
    ]
    runs: list[Run] = []
    with open_servers(settings) as servers:
        plan, left_out = _leave_out_too_new(plan, servers)
        for sentence in left_out:
            notes.print(sentence, style="yellow", soft_wrap=True)
        if dry_run:
            _show_plan(console, plan)
            for name in filter(None, exports):
                console.print(f"would write {name}", markup=False, soft_wrap=True)
            console.print(check_connection_budget(servers.database, instances=plan.instances, threads=plan.threads))
            return
        with open_lab(servers, instances=plan.instances, threads=plan.threads, far=plan.is_far) as lab:
            comparison = begin_comparison(servers, lab, plan)

            def tell() -> None:
                comparison.cells = judge_all(runs)
                _tell(console, comparison, wide=wide, export_json=export_json, written=written)

            with (
                told_if_cut(comparison, tell),
                BarProgress(notes) if notes.is_terminal else LineProgress(notes) as progress,
            ):
                lab.compare(plan, progress, runs)
    tell()
    if comparison.contradictions or (strict and (comparison.inconclusive or left_out)):
        raise typer.Exit(CONTRADICTED)
    if any(run.faults for run in runs):
        raise typer.Exit(FAILED)


def _leave_out_too_new(plan: Plan, servers: Servers) -> tuple[Plan, list[str]]:
    """Return the plan without the strategies that need a newer Postgres, and a sentence for each of them."""
    with servers.database.engine.connect() as connection:
        strategies, sentences = outside.leave_out_too_new(plan.strategies, versions.version_of(connection))
    return replace(plan, strategies=strategies), sentences


def _spread(topologies: Sequence[str], distances: Sequence[str]) -> tuple[Topology, ...]:
    """Return every topology at every distance, the nearest first as they were asked for."""
    sizes = [Topology.parse(text) for text in topologies]
    places = [Distance.parse(text) for text in distances]
    if distances and any(size.distance != NEAR for size in sizes):
        raise CannotStart("a distance is given twice: in --topology, as in 2x4@30ms, or by --distance-ms")
    if not distances:
        return tuple(dict.fromkeys(sizes))
    return tuple(dict.fromkeys(replace(size, distance=place) for place in places for size in sizes))


def _report(comparison: Comparison) -> str:
    from bankrun.render.report import report  # Plotly takes its time

    return report(comparison)


def _tell(
    console: Console,
    comparison: Comparison,
    *,
    wide: bool,
    export_json: str | None,
    written: Sequence[tuple[str | None, Callable[[Comparison], str]]],
) -> None:
    """Show what was found, and export it: all of it, or what there is of one that was cut short."""
    if comparison.cells:
        _show_comparison(console, comparison, wide=wide)
    if comparison.provenance.cut_short:
        console.print(
            f"cut short after {counted(sum(len(cell.runs) for cell in comparison.cells), 'run')}", style="yellow"
        )
    if not comparison.cells:
        return
    if export_json is not None:
        store.save(export_json, comparison)
    for destination, make in written:
        if destination is not None:
            store.write(destination, make(comparison))


def _find_idle_threads(plan: Plan) -> Iterator[str]:
    """Say where there are fewer messages than threads: what is measured there is a smaller topology."""
    messages = math.ceil(plan.workload.transfers / plan.workload.chunk)
    for topology in plan.topologies:
        threads = topology.instances * topology.threads
        if messages < threads:
            yield f"{messages} messages for the {threads} threads of {topology}: send more transfers, or fewer in each"


def _show_plan(console: Console, plan: Plan) -> None:
    table = Table(
        title=f"{plan.workload.transfers:,} transfers over {plan.workload.accounts} accounts, seed {plan.seed}"
    )
    table.add_column("strategy")
    table.add_column("topology")
    table.add_column("runs", justify="right")
    for strategy, topology in plan.cells():
        table.add_row(strategy, str(topology), str(plan.repeat))
    console.print(table)


def _show_comparison(console: Console, comparison: Comparison, *, wide: bool) -> None:
    load = comparison.workload
    console.print(
        f"{load.transfers:,} transfers over {load.accounts} accounts with {load.opening:,} each, "
        f"up to {load.amount_max:,} at a time; seed {comparison.provenance.seed}",
        style="bold",
    )
    console.print(tables.comparison_table(comparison, wide=wide), width=None if not wide else max(console.width, 200))
    withdrawn = [cell.shown for cell in comparison.cells if cell.shown.withdrawn]
    if withdrawn:
        most = max(run.withdrawn for run in withdrawn)
        console.print(
            f"the time of {len(withdrawn)} of {len(comparison.cells)} cells was over before their transfers: up to "
            f"{most:,} were withdrawn, and rates are of the others",
            soft_wrap=True,
        )
    for cell in comparison.cells:
        if cell.verdict == "broken":
            for line in explain(cell):
                console.print(line, markup=False, soft_wrap=True)
            console.print()
    for cell in comparison.inconclusive:
        console.print(
            f"warning: {cell.shown.strategy} on {cell.shown.topology} is inconclusive: {cell.reason}", style="yellow"
        )
    for cell in comparison.contradictions:
        console.print(
            f"{cell.shown.strategy} claims to hold on {cell.shown.topology}, and does not: {cell.reason}",
            style="bold red",
        )
