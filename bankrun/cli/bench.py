"""``bankrun bench``: how fast, beside pgbench, no-op messages and other queues."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bank.errors import CannotStart
from bank.settings import read_settings
from bank.strategies.single_statement import SingleStatement
from bankrun.bench import costmap, peers, scale
from bankrun.bench.pgbench import PGBENCH, PGBENCH_ACCEPTED, PGBENCH_SINGLE, find_pgbench
from bankrun.bench.rates import NOOP, Contestant, Rates, measure
from bankrun.cli.app import FAILED, open_console
from bankrun.cli.options import Strategies, chosen_strategies
from bankrun.render import benchmarks as page
from bankrun.render import tables
from bankrun.results import files
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.environment import bankrun_version, environment
from bankrun.runs.session import Servers, open_lab, open_servers

STRATEGIES_MEASURED = ["row-lock", SingleStatement.name, "row-lock-orm", "atomic-update"]
DATABASE_STRATEGIES = [
    *(*STRATEGIES_MEASURED, "row-lock-nowait", "no-key-lock", "version-check"),
    *("repeatable-read", "serializable", "advisory-lock", "table-lock"),
]
ROUNDS_MAX = 1_000
QUICK_TRANSFERS = 600
MAP_TRANSFERS = 300


def bench(
    strategy: Strategies = STRATEGIES_MEASURED,
    topology: Annotated[str, typer.Option(help="Instances x threads; pgbench gets as many clients.")] = "2x4",
    transfers: Annotated[int, typer.Option(help="Transfers for each contestant in each round.")] = 3_000,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank: many, so that few wait for each other.")] = 1_000,
    chunk: Annotated[int, typer.Option(help="Transfers in one message.")] = Workload().chunk,
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
    """Measure transfers a second beside pgbench, messages that do nothing, and other queues, in one run."""
    console = open_console(export_json)
    pictures = _pictures(export_markdown)
    if quick:
        transfers, rounds = min(transfers, QUICK_TRANSFERS), 1
    shape = Topology.parse(topology)
    _check(Workload(accounts=accounts, transfers=transfers, chunk=chunk), shape, rounds, both=quick and full)
    names = strategy
    if strategy == STRATEGIES_MEASURED:
        names = DATABASE_STRATEGIES if full else STRATEGIES_MEASURED[: 1 if quick else None]
    wanted = [name for name in chosen_strategies(names) if name != "batch"]
    find_pgbench()
    notes = Console(stderr=True, highlight=False)
    result: dict[str, Any] = {
        "schema": 1,
        "bankrun": bankrun_version(),
        "command": f"bankrun bench{' --quick' * quick}{' --full' * full} --rounds {rounds} --transfers {transfers}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "rounds": rounds,
        "topology": str(shape),
        "accounts": accounts,
    }
    load = os.getloadavg()[0]
    first_cell = scale.first_cell_seconds(notes.print) if full else None
    with open_servers(read_settings()) as servers:
        result["environment"] = _environment(servers, shape)
        result["missing"] = {} if quick else peers.missing(servers)
        contestants = headline(shape, accounts, chunk, wanted, quick=quick)
        if not quick:
            contestants += [
                Contestant(name, shape, 1, accounts) for name in peers.PEERS if name not in result["missing"]
            ]
        if full:
            measured_already = {one[:-1] for one in contestants}  # with another weight, perhaps
            contestants += [one for one in around(shape, accounts) if one[:-1] not in measured_already]
            contestants.sort(key=lambda one: (one.topology != shape, one.topology))
        measured = measure(servers, contestants, transfers=transfers, seed=seed, rounds=rounds, tell=notes.print)
        result["rows"] = measured.as_json()
        result["bounds"] = {
            script: round(bound, 1)
            for script in (PGBENCH_ACCEPTED, PGBENCH_SINGLE)
            if (bound := measured.bound(shape, accounts=accounts, script=script)) is not None
        }
        result["faults"] = measured.faults()
        if full:
            result["scale"] = scale.scale(servers, shape, scale.SIZES, seed=seed, tell=notes.print)
            result["cost_map"] = costmap.cost_map(servers, transfers=MAP_TRANSFERS, seed=seed, tell=notes.print)
            result["first_cell_seconds"] = first_cell
    result["load_average"] = [round(load, 1), round(os.getloadavg()[0], 1)]
    if export_json is not None:
        files.write(export_json, json.dumps(result, indent=1) + "\n")
    if export_markdown is not None:
        files.write(pictures["rates"], page.rates_svg(result))
        if full:
            files.write(pictures["map"], page.map_svg(result))
        links = {name: Path(path).name for name, path in pictures.items()}
        files.write(export_markdown, page.markdown(result, pictures=links))
    _show(console, result, measured, shape)
    if result["faults"]:
        raise typer.Exit(FAILED)


def _check(workload: Workload, shape: Topology, rounds: int, *, both: bool) -> None:
    if not 1 <= rounds <= ROUNDS_MAX:
        raise CannotStart(f"rounds={rounds}: it must be between 1 and {ROUNDS_MAX}")
    if both:
        raise CannotStart("--quick and --full are opposites: give one of them")
    clients = shape.instances * shape.threads
    if workload.transfers < clients:
        raise CannotStart(f"transfers={workload.transfers}: each of the {clients} clients needs one")


def headline(shape: Topology, accounts: int, chunk: int, strategies: list[str], *, quick: bool) -> list[Contestant]:
    """Return who is compared on one topology. The faster ones get more transfers, so that all take about as long."""
    return [
        Contestant(PGBENCH, shape, 1, accounts, 2),
        Contestant(PGBENCH_ACCEPTED, shape, 1, accounts, 2),
        Contestant(NOOP, shape, chunk, accounts),
        *([Contestant(PGBENCH_SINGLE, shape, 1, accounts, 2)] if SingleStatement.name in strategies else []),
        *(Contestant(name, shape, chunk, accounts) for name in strategies),
        *(Contestant("row-lock", shape, size, accounts, 2) for size in ((10,) if quick else (10, 50, 200))),
        *(Contestant("batch", shape, size, accounts, 60) for size in ((1_000,) if quick else (1_000, 5_000))),
    ]


def around(shape: Topology, accounts: int) -> list[Contestant]:
    """Return the same with more and fewer instances, threads and accounts: many rows, so each gets less to do.

    Only ``batch`` gets as much as in the headline: it is over so soon that what it begins with would count.
    """
    others = [Topology(instances, shape.threads) for instances in (1, 2, 4)]
    threads = [Topology(shape.instances, threads) for threads in (1, 2, 8, 16)]
    return [
        *(
            Contestant(name, one, size, accounts, weight)
            for one in (*others, *threads)
            for name, size, weight in (
                *((PGBENCH, 1, 1), (PGBENCH_ACCEPTED, 1, 1), (NOOP, 1, 0.5)),
                *(("row-lock", 1, 0.5), (SingleStatement.name, 1, 0.5), ("row-lock", 10, 1), ("batch", 1_000, 60)),
            )
        ),
        *(
            Contestant(name, shape, size, number, weight)
            for number in (2, 10, 100, 10_000)
            for name, size, weight in (
                *((PGBENCH, 1, 1), ("row-lock", 1, 0.5), (SingleStatement.name, 1, 0.5)),
                *(("atomic-update", 1, 0.5), ("version-check", 1, 0.25), ("batch", 1_000, 60)),
            )
        ),
    ]


def _environment(servers: Servers, shape: Topology) -> dict[str, Any]:
    with open_lab(servers, instances=shape.instances, threads=shape.threads) as lab:
        return environment(servers.database, servers.app, lab.instances, embedded=servers.endpoints.embedded)


def _pictures(export_markdown: str | None) -> dict[str, str]:
    """Return where the page's pictures go. Raises CannotStart if they, or the page, cannot be written."""
    if export_markdown is None:
        return {}
    if export_markdown == files.STDOUT:
        raise CannotStart("--export-markdown needs a file: its pictures are written beside it")
    path = Path(export_markdown)
    pictures = {name: str(path.with_name(f"{path.stem}-{name}.svg")) for name in ("rates", "map")}
    files.check_writable(export_markdown, *pictures.values())
    return pictures


def _show(console: Console, result: dict[str, Any], measured: Rates, shape: Topology) -> None:
    console.print(tables.benchmark_table(result["rows"]))
    for script, bound in result["bounds"].items():
        console.print(f"a no-op message and {script} together bound a transfer to {bound:,.0f}/s: 1/(1/n + 1/p)")
    for reason in (*result["missing"].values(), *result["faults"]):
        console.print(reason)
    for row in measured.rows:
        if row.rates and row.is_noisy:
            console.print(
                f"warning: {row.contestant.name} on {row.contestant.topology} is noisy: "
                f"{min(row.rates):,.0f} to {max(row.rates):,.0f}/s",
                style="yellow",
            )
