"""The provenance of what is run with servers: their versions and settings, besides the machine and the command."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from bank.postgres.database import Database
from bank.settings import WAITS, Settings
from bank.strategies import STRATEGIES
from bankrun.results.models.comparison import Comparison
from bankrun.results.provenance import Provenance, write_command
from bankrun.runs.comparison import Lab, Plan
from bankrun.runs.environment import environment
from bankrun.runs.session import Servers
from workers.fleet import InstanceInfo

SETTINGS_SAVED = (*WAITS, "patience_ms", "reconcile_ms", "redeliveries_max")


def begin(
    command: str,
    database: Database,
    app: Celery,
    settings: Settings,
    instances: Sequence[InstanceInfo] = (),
    *,
    embedded: bool,
    seed: int | None = None,
) -> Provenance:
    """Return the provenance of what begins now, on these servers and instances, under these settings."""
    return Provenance.begin(
        command,
        seed=seed,
        environment=environment(database, app, instances, embedded=embedded),
        settings={name: getattr(settings, name) for name in SETTINGS_SAVED},
    )


def begin_with(
    servers: Servers, command: str, instances: Sequence[InstanceInfo] = (), *, seed: int | None = None
) -> Provenance:
    """Return the same for servers that are reached."""
    embedded = servers.endpoints.embedded
    return begin(command, servers.database, servers.app, servers.settings, instances, embedded=embedded, seed=seed)


def begin_comparison(servers: Servers, lab: Lab, plan: Plan) -> Comparison:
    """Return a comparison that begins now, without any cells yet."""
    return Comparison(
        begin_with(servers, comparison_command(plan), lab.instances, seed=plan.seed), plan.workload, cells=[]
    )


def comparison_command(plan: Plan) -> str:
    """Return the command that repeats a comparison."""
    return write_command(
        "compare",
        strategy=["all"] if plan.strategies == tuple(STRATEGIES) else plan.strategies,
        topology=[str(topology) for topology in plan.topologies],
        **plan.workload.options(),
        repeat=plan.repeat,
        warmup=plan.warmup,
        seed=plan.seed,
        cell_timeout=plan.cell_seconds_max,
        **({} if plan.seconds is None else {"seconds": plan.seconds}),
    )
