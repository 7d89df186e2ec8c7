"""``bankrun soak``: many faults under one long run."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from bank.outside import user_strategy
from bank.settings import WAITS, read_settings
from bankrun.chaos.soak import Soak, SoakPlan, run_soak
from bankrun.chaos.targets import open_stage
from bankrun.cli.app import CONTRADICTED, open_console
from bankrun.render import fault_matrix as tables
from bankrun.results import files
from bankrun.results.topology import Topology
from bankrun.runs.environment import bankrun_version, environment
from bankrun.runs.progress import Amount
from bankrun.runs.rehearsal import rehearse

DEFAULT = SoakPlan()


def soak(
    strategy: Annotated[str, typer.Option(help="A strategy, or your own as module:Class.")] = DEFAULT.strategy,
    topology: Annotated[str, typer.Option(help="Instances x threads.")] = "3x4",
    transfers: Annotated[int, typer.Option(help="Transfers in all.")] = DEFAULT.transfers,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank.")] = DEFAULT.accounts,
    kills: Annotated[int, typer.Option(help="How often an instance is killed.")] = DEFAULT.kills,
    pauses: Annotated[int, typer.Option(help="How often one is paused.")] = DEFAULT.pauses,
    postgres_restarts: Annotated[
        int, typer.Option(help="How often Postgres is restarted, every other time without a goodbye.")
    ] = DEFAULT.postgres_restarts,
    redis_restarts: Annotated[
        int, typer.Option(help="How often Redis is killed; one time it has forgotten everything.")
    ] = DEFAULT.redis_restarts,
    seed: Annotated[int, typer.Option(help="Decides the transfers, and what is struck when.")] = DEFAULT.seed,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything; `-` is stdout.")] = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the figures.")] = None,
) -> None:
    """Send many transfers while instances are killed and paused and servers restarted, and audit what is left.

    On servers of its own. Exits with 3 if anything was lost, applied twice, or left.
    """
    console = open_console(export_json, export_markdown)
    shape = Topology.parse(topology)
    plan = SoakPlan(
        strategy=user_strategy(strategy).name,
        transfers=transfers,
        accounts=accounts,
        kills=kills,
        pauses=pauses,
        postgres_restarts=postgres_restarts,
        redis_restarts=redis_restarts,
        seed=seed,
    )
    logging.getLogger("bankrun").addHandler(logging.NullHandler())
    with open_stage(read_settings(), instances=shape.instances, threads=shape.threads, with_network=False) as stage:
        rehearse(stage.database, stage.servers.settings, [plan.strategy])
        result = Soak(
            bankrun=bankrun_version(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            command=(
                f"bankrun soak --strategy {plan.strategy} --topology {shape} --transfers {plan.transfers}"
                f" --accounts {plan.accounts} --kills {plan.kills} --pauses {plan.pauses}"
                f" --postgres-restarts {plan.postgres_restarts} --redis-restarts {plan.redis_restarts}"
                f" --seed {plan.seed}"
            ),
            environment=environment(stage.database, stage.app, list(stage.infos.values()), embedded=True),
            settings={name: getattr(stage.settings, name) for name in (*WAITS, "patience_ms", "reconcile_ms")},
            plan=plan,
            topology=str(shape),
        )
        with Amount(Console(stderr=True, highlight=False), plan.transfers) as amount:
            run_soak(stage, plan, result, amount.tell)
    console.print(tables.soak_table(result))
    if export_json is not None:
        files.write(export_json, json.dumps(result.as_json(), indent=1) + "\n")
    if export_markdown is not None:
        files.write(export_markdown, tables.soak_markdown(result))
    if not result.held:
        kinds = ", ".join(finding["kind"] for finding in result.audit["findings"]) or "transfers failed or are pending"
        console.print(f"{plan.strategy} was to hold, and did not: {kinds}", style="bold red")
        raise typer.Exit(CONTRADICTED)
    console.print("nothing was lost, nothing was applied twice, nothing is left", style="green")
