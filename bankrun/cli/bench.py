"""``bankrun bench``: how fast, beside pgbench, no-op messages and other queues."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bank.errors import CannotStart
from bank.outside import strategy_named
from bank.settings import Settings, is_rabbitmq, read_settings
from bank.strategies.single_statement import SingleStatement
from bankrun.bench.benchmark import BenchPlan, run_benchmark
from bankrun.bench.pgbench import find_pgbench
from bankrun.bench.scale import first_cell_seconds
from bankrun.cli.app import FAILED, open_console, reserve_stdout
from bankrun.cli.options import Strategies, choose_strategies, find_files
from bankrun.proof.round_trips import count_round_trips
from bankrun.render import benchmarks as page
from bankrun.render import distances, tables
from bankrun.render.terminal import Terminal
from bankrun.results import store
from bankrun.results.distance import Distance
from bankrun.results.models.bench import Bench
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.session import open_servers

STRATEGIES_MEASURED = ["row-lock", SingleStatement.name, "row-lock-orm", "atomic-update"]
DATABASE_STRATEGIES = [
    *(*STRATEGIES_MEASURED, "row-lock-nowait", "no-key-lock", "version-check"),
    *("repeatable-read", "serializable", "advisory-lock", "table-lock"),
]
QUICK_TRANSFERS = 600


def bench(
    strategy: Strategies = STRATEGIES_MEASURED,
    topology: Annotated[str, typer.Option(help="Instances x threads; pgbench gets as many clients.")] = "2x4",
    transfers: Annotated[int, typer.Option(help="Transfers for each contestant in each round.")] = 3_000,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank: many, so that few wait for each other.")] = 1_000,
    chunk: Annotated[int, typer.Option(help="Transfers in one message.")] = Workload().chunk,
    distance_ms: Annotated[
        list[str],
        typer.Option(help="Measure only this: at such a round trip to Postgres. Repeatable.", show_default="0"),
    ] = [],  # noqa: B006 - typer's
    rounds: Annotated[int, typer.Option(help="Rounds; all contestants run in each.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed sends the same transfers.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="One round of a few contestants, in under a minute.")] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also: instances, threads, contention, a million, the cost map; half an hour."),
    ] = False,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the rates; `-` is stdout.")] = None,
    export_markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page, with its pictures beside it.")
    ] = None,
) -> None:
    """Measure transfers a second beside pgbench, messages that do nothing, and other queues, in one run.

    With a RabbitMQ in BANKRUN_BROKER_URL, and no BANKRUN_DATABASE_URL, also what it costs beside the embedded Valkey.
    """
    reserve_stdout(export_json)
    strategies = _choose_measured(strategy, quick=quick, full=full or bool(distance_ms))
    pictures = _name_pictures(export_markdown)
    settings, rabbitmq_url = _split_off_rabbitmq(read_settings())
    console = open_console(export_json, export_markdown, *pictures.values(), inputs=find_files(strategies))
    plan = BenchPlan(
        strategies,
        Topology.parse(topology),
        min(transfers, QUICK_TRANSFERS) if quick else transfers,
        accounts,
        chunk,
        1 if quick else rounds,
        seed,
        quick,
        full,
        tuple(dict.fromkeys(Distance.parse(text) for text in distance_ms)),
        "" if distance_ms else rabbitmq_url,
    )
    if not plan.distances:
        find_pgbench()
    notes = Terminal(stderr=True)
    load = os.getloadavg()[0]
    first_cell = first_cell_seconds(notes.print) if full else None
    with open_servers(settings) as servers:
        result = run_benchmark(servers, plan, notes.print, first_cell=first_cell, load_before=load)
    if plan.distances:
        notes.print("counting round trips")
        result.round_trips = count_round_trips(map(strategy_named, plan.strategies), settings)
    if export_json is not None:
        store.save(export_json, result)
    if export_markdown is not None:
        _write_page(export_markdown, pictures, result)
    _show(console, result)
    if result.faults:
        raise typer.Exit(FAILED)


def _split_off_rabbitmq(settings: Settings) -> tuple[Settings, str]:
    """Return settings for the embedded servers, and the RabbitMQ that is given for a row of its own, if one is."""
    url = "" if settings.broker_url is None else settings.broker_url.get_secret_value()
    if settings.database_url is not None or not is_rabbitmq(url):
        return settings, ""
    return settings.model_copy(update={"broker_url": None}), url


def _choose_measured(names: list[str], *, quick: bool, full: bool) -> tuple[str, ...]:
    """Return what is measured besides ``batch``, which is there always; without a choice, as much as there is time."""
    if names == STRATEGIES_MEASURED:
        names = DATABASE_STRATEGIES if full else STRATEGIES_MEASURED[: 1 if quick else None]
    return tuple(name for name in choose_strategies(names) if name != "batch")


def _name_pictures(export_markdown: str | None) -> dict[str, str]:
    """Return where the page's pictures go: beside it. Raises CannotStart for a page without a file."""
    if export_markdown is None:
        return {}
    if export_markdown == store.STDOUT:
        raise CannotStart("--export-markdown needs a file: its pictures are written beside it")
    stem = export_markdown.removesuffix(Path(export_markdown).suffix)
    return {name: f"{stem}-{name}.svg" for name in ("rates", "map", "few", "many")}


def _write_page(destination: str, pictures: dict[str, str], result: Bench) -> None:
    links = {name: Path(path).name for name, path in pictures.items()}
    if result.round_trips is not None:
        for name, accounts in zip(("few", "many"), distances.find_accounts(result), strict=False):
            store.write(pictures[name], distances.draw(result, accounts))
        store.write(destination, distances.markdown(result, pictures=links))
        return
    store.write(pictures["rates"], page.rates_svg(result))
    if result.cost_map is not None:
        store.write(pictures["map"], page.map_svg(result))
    store.write(destination, page.markdown(result, pictures=links))


def _show(console: Console, result: Bench) -> None:
    console.print(tables.benchmark_table(result.rows) if result.round_trips is None else tables.distance_table(result))
    for script, bound in result.bounds.items():
        console.print(f"a no-op message and {script} together bound a transfer to {bound:,.0f}/s: 1/(1/n + 1/p)")
    for reason in (*result.missing.values(), *result.faults):
        console.print(reason)
    for row in result.rows:
        if row.noisy:
            rates = row.transfers_per_s
            console.print(
                f"warning: {row.name} on {row.topology} is noisy: {rates.min:,.0f} to {rates.max:,.0f}/s",
                style="yellow",
            )
