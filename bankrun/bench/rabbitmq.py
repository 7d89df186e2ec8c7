"""What a RabbitMQ costs beside the embedded Valkey: instances of its own, on the same bank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pydantic import SecretStr

from bankrun.results.topology import Topology
from bankrun.runs.comparison import Lab
from bankrun.runs.session import Servers, cores_of, forget_connections, worker_environment
from workers.app import create_app
from workers.fleet import Fleet, start_instances

STOP_SECONDS = 5.0


@contextmanager
def lab_on_rabbitmq(servers: Servers, lab: Lab, url: str, topology: Topology) -> Iterator[Lab]:
    """Start instances that take their messages from a RabbitMQ, for the block; those of the other lab do nothing.

    Raises CannotStart or BankError if it cannot be used.
    """
    assert servers.keeper is not None
    settings = servers.settings.model_copy(update={"broker_url": SecretStr(url)})
    app = create_app(settings)
    fleet = Fleet(app, url)
    names = [f"r{number}" for number in range(1, topology.instances + 1)]
    try:
        fleet.check_broker()
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
    finally:
        forget_connections(app)
