"""What a RabbitMQ costs beside the embedded Valkey: instances of its own, on the same bank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from celery import Celery
from pydantic import SecretStr

from bank.settings import Settings
from bankrun.results.topology import Topology
from bankrun.runs.comparison import Lab
from bankrun.runs.session import Servers, cores_of, forget_connections, worker_environment
from workers.app import broker_of, create_app
from workers.fleet import Fleet, start_instances

STOP_SECONDS = 5.0


def describe_rabbitmq(servers: Servers, url: str) -> dict[str, str]:
    """Return its name and version. Raises CannotStart or NotReady, in one sentence, if it cannot be used."""
    with _reach(servers, url) as (_, _, app):
        return broker_of(app).describe(app)


@contextmanager
def lab_on_rabbitmq(servers: Servers, lab: Lab, url: str, topology: Topology) -> Iterator[Lab]:
    """Start instances that take their messages from a RabbitMQ, for the block; those of the other lab do nothing.

    Raises CannotStart or BankError if it cannot be used.
    """
    assert servers.keeper is not None
    names = [f"r{number}" for number in range(1, topology.instances + 1)]
    with _reach(servers, url) as (settings, fleet, app):
        start_instances(
            servers.keeper,
            names,
            threads=topology.threads,
            env=worker_environment(replace(servers, settings=settings)),
            state_dir=servers.state_dir,
            cores=cores_of(servers, names),
        )
        try:
            found = fleet.wait_until_ready(names, servers.keeper, servers.state_dir, lab.look_after)
            yield Lab(servers.database, app, fleet, found, lab.look_after, settings=settings)
        finally:
            servers.keeper.stop(names, grace_seconds=STOP_SECONDS)


@contextmanager
def _reach(servers: Servers, url: str) -> Iterator[tuple[Settings, Fleet, Celery]]:
    settings = servers.settings.model_copy(update={"broker_url": SecretStr(url)})
    app = create_app(settings)
    fleet = Fleet(app, url)
    try:
        fleet.check_broker()
        yield settings, fleet, app
    finally:
        forget_connections(app)
