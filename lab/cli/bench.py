"""``bankrun bench``: how fast, beside pgbench and no-op messages."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from bank.errors import CannotStart
from bank.settings import read_settings
from lab import files, tables
from lab.bench import benchmark
from lab.cli.app import open_console
from lab.cli.options import Strategies, chosen_strategies
from lab.environment import bankrun_version, environment
from lab.session import open_lab, open_servers
from lab.topology import Topology
from lab.workload import Workload

STRATEGIES_MEASURED = ["row-lock", "row-lock-orm", "atomic-update"]
ROUNDS_MAX = 1_000


def bench(
    strategy: Strategies = STRATEGIES_MEASURED,
    topology: Annotated[str, typer.Option(help="Instances x threads; pgbench gets as many clients.")] = "2x4",
    transfers: Annotated[int, typer.Option(help="Transfers for each contestant in each round.")] = 3_000,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank: many, so that few wait for each other.")] = 1_000,
    chunk: Annotated[int, typer.Option(help="Transfers in one message.")] = Workload().chunk,
    rounds: Annotated[int, typer.Option(help="Rounds; all contestants run in each.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed sends the same transfers.")] = 1,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the rates; `-` is stdout.")] = None,
) -> None:
    """Measure transfers a second beside pgbench and beside messages that do nothing, in one run on one machine."""
    console = open_console(export_json)
    if not 1 <= rounds <= ROUNDS_MAX:
        raise CannotStart(f"rounds={rounds}: it must be between 1 and {ROUNDS_MAX}")
    wanted, shape = chosen_strategies(strategy), Topology.parse(topology)
    workload = Workload(accounts=accounts, transfers=transfers, chunk=chunk)
    if transfers < shape.instances * shape.threads:
        raise CannotStart(f"transfers={transfers}: each of the {shape.instances * shape.threads} clients needs one")
    with (
        open_servers(read_settings()) as servers,
        open_lab(servers, instances=shape.instances, threads=shape.threads) as lab,
    ):
        depends = environment(servers.database, servers.app, lab.instances, embedded=servers.endpoints.embedded)
        with Console(stderr=True).status("measuring"):
            measured = benchmark(lab, wanted, shape, workload, seed=seed, rounds=rounds)
    if export_json is not None:
        result = {
            "schema": 1,
            "bankrun": bankrun_version(),
            "seed": seed,
            "environment": depends,
            "rows": measured.as_json(),
        }
        files.write(export_json, json.dumps(result, indent=1) + "\n")
    console.print(tables.benchmark_table(measured))
    console.print(f"a no-op message and pgbench together bound a transfer to {measured.bound:,.0f}/s: 1/(1/n + 1/p)")
    for row in measured.rows:
        if row.is_noisy:
            console.print(
                f"warning: {row.name} is noisy: {min(row.rates):,.0f} to {max(row.rates):,.0f}/s", style="yellow"
            )
