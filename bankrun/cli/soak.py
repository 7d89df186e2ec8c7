"""``bankrun soak``: many faults under one long run."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from bank.errors import CannotStart
from bank.outside import user_strategy
from bank.settings import is_rabbitmq, read_settings
from bankrun.chaos.soak import SoakPlan, begin_soak, run_soak
from bankrun.chaos.targets import open_targets
from bankrun.cli.app import CONTRADICTED, open_console, reserve_stdout, told_if_cut
from bankrun.cli.options import ExportJson, find_files
from bankrun.render import fault_tables as tables
from bankrun.render.terminal import Terminal
from bankrun.results import store
from bankrun.results.models.soak import Soak
from bankrun.results.topology import Topology
from bankrun.runs.progress import Amount
from bankrun.runs.rehearsal import rehearse

DEFAULT = SoakPlan()


def soak(
    strategy: Annotated[str, typer.Option(help="A strategy, or your own as module:Class.")] = DEFAULT.strategy,
    topology: Annotated[str, typer.Option(help="Instances x threads.")] = "3x4",
    transfers: Annotated[int, typer.Option(help="Transfers in all.")] = DEFAULT.transfers,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank.")] = DEFAULT.accounts,
    think_ms: Annotated[
        float, typer.Option(help="Milliseconds between a transfer's read and its write.")
    ] = DEFAULT.think_ms,
    kills: Annotated[int, typer.Option(help="How often an instance is killed.")] = DEFAULT.kills,
    pauses: Annotated[int, typer.Option(help="How often one is paused.")] = DEFAULT.pauses,
    postgres_restarts: Annotated[
        int, typer.Option(help="How often Postgres is restarted, every other time without a goodbye.")
    ] = DEFAULT.postgres_restarts,
    redis_restarts: Annotated[
        int, typer.Option(help="How often Redis is killed; one time it has forgotten everything.")
    ] = DEFAULT.redis_restarts,
    seed: Annotated[int, typer.Option(help="Decides the transfers, and what is struck when.")] = DEFAULT.seed,
    export_json: ExportJson = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the figures.")] = None,
) -> None:
    """Send many transfers while instances are killed and paused and servers restarted, and audit what is left.

    On servers of its own. Exits with 3 if anything was lost, applied twice, or left.
    """
    reserve_stdout(export_json, export_markdown)
    name = user_strategy(strategy).name
    console = open_console(export_json, export_markdown, inputs=find_files([name]))
    shape = Topology.parse(topology)
    plan = SoakPlan(
        strategy=name,
        transfers=transfers,
        accounts=accounts,
        think_ms=think_ms,
        kills=kills,
        pauses=pauses,
        postgres_restarts=postgres_restarts,
        redis_restarts=redis_restarts,
        seed=seed,
    )
    plan.check_strategy()
    logging.getLogger("bankrun").addHandler(logging.NullHandler())
    settings = read_settings()
    if settings.broker_url is not None and is_rabbitmq(settings.broker_url.get_secret_value()):
        raise CannotStart("soak kills and empties a Redis of its own: unset BANKRUN_BROKER_URL")
    with open_targets(settings, instances=shape.instances, threads=shape.threads, with_network=False) as targets:
        rehearse(targets.database, targets.servers.settings, [plan.strategy])
        result = begin_soak(targets, plan, shape)

        def tell() -> None:
            tell_soak(console, result, export_json, export_markdown)

        with told_if_cut(result, tell), Amount(Terminal(stderr=True), plan.transfers) as amount:
            run_soak(targets, plan, result, amount.tell)
    tell()
    if not result.held:
        kinds = ", ".join(finding.kind for finding in result.audit.findings) or "transfers failed or are pending"
        console.print(f"{plan.strategy} was to hold, and did not: {kinds}", style="bold red")
        raise typer.Exit(CONTRADICTED)
    console.print("nothing was lost, nothing was applied twice, nothing is left", style="green")


def tell_soak(console: Terminal, result: Soak, export_json: str | None, export_markdown: str | None) -> None:
    """Show what was found, and export it: all of it, or what there is of one that was cut short."""
    if result.provenance.cut_short:
        after = f"cut short after {len(result.struck)} of {result.plan.faults} faults"
        if not result.transfers:
            console.print(f"{after}, and the bank could not be audited: nothing is exported", style="yellow")
            return
        kinds = ", ".join(finding.kind for finding in result.audit.findings)
        console.print(f"{after}; the audit found {kinds or 'nothing wrong'}", style="red" if kinds else "yellow")
    console.print(tables.soak_table(result))
    if export_json is not None:
        store.save(export_json, result)
    if export_markdown is not None:
        store.write(export_markdown, tables.soak_markdown(result))
