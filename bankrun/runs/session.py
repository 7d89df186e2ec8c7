"""From settings to a lab that is ready: servers, schema, fleet. And back: nothing is left running."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from celery import Celery
from kombu import pools
from pydantic import SecretStr

from bank import outside
from bank.errors import BankError, CannotStart, NotReady
from bank.postgres.database import Database
from bank.postgres.roles import WORKER_ROLE, check_worker_roles, set_up_server
from bank.postgres.schema import bank_id, check_connection_budget, create_schema, only_lab, open_for_lab
from bank.settings import Settings, is_rabbitmq
from bankrun.quoting import printable
from bankrun.runs.comparison import InstanceEnded, Lab
from bankrun.runs.far import Network
from bankrun.servers.embedded import Endpoints, embedded_stack, keeper_only
from bankrun.servers.keeper_client import Keeper
from bankrun.servers.state_dir import default_state_dir
from workers.app import create_app
from workers.fleet import Fleet, InstanceInfo, start_instances
from workers.process.affinity import cores_for

RETRY_SECONDS = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers, reached and checked."""

    settings: Settings
    endpoints: Endpoints
    keeper: Keeper | None
    state_dir: Path
    database: Database
    app: Celery
    fleet: Fleet


@contextmanager
def open_servers(settings: Settings, *, max_connections: int = 200) -> Iterator[Servers]:
    """Start the embedded servers, or reach the given ones, for the block. ``max_connections`` is the embedded one's.

    A RabbitMQ may be given alone: the bank is then in the embedded Postgres.

    Given servers that are still starting are waited for, as long as the settings say. Raises CannotStart, with nothing
    left running, if one of them will not do.
    """
    broker_url = None if settings.broker_url is None else settings.broker_url.get_secret_value()
    state_dir = settings.state_dir or default_state_dir()
    with ExitStack() as stack:
        keeper: Keeper | None = None
        if settings.database_url is None and (broker_url is None or is_rabbitmq(broker_url)):
            keeper, endpoints = stack.enter_context(
                embedded_stack(
                    state_dir, max_connections=max_connections, worker_user=WORKER_ROLE, set_up=set_up_server
                )
            )
            endpoints = replace(endpoints, broker_url=broker_url or endpoints.broker_url)
        elif settings.database_url is None or broker_url is None:
            missing = "BANKRUN_DATABASE_URL" if settings.database_url is None else "BANKRUN_BROKER_URL"
            raise CannotStart(f"{missing} is not set: give both addresses, or neither for the embedded servers")
        else:
            url = settings.database_url.get_secret_value()
            endpoints = Endpoints(url, url, broker_url, embedded=False)
        reached = settings.model_copy(
            update={"database_url": SecretStr(endpoints.database_url), "broker_url": SecretStr(endpoints.broker_url)}
        )
        deadline = time.monotonic() + (settings.startup_wait_ms or 0) / 1000
        database = _once_ready(lambda: open_for_lab(endpoints.database_url), deadline)
        stack.callback(database.close)
        app = create_app(reached)
        stack.callback(forget_connections, app)
        fleet = Fleet(app, endpoints.broker_url)
        _once_ready(fleet.check_broker, deadline)
        if endpoints.embedded and broker_url is not None:
            _check_nobody_is_on(fleet)
        yield Servers(reached, endpoints, keeper, state_dir, database, app, fleet)


def _check_nobody_is_on(fleet: Fleet) -> None:
    """Raise CannotStart if instances work on this broker already: they would take what is meant for our own."""
    found = fleet.discover()
    if found:
        names = ", ".join(info.instance for info in found)
        raise CannotStart(
            f"{names}: these instances work on this RabbitMQ already, for another bank; "
            "give BANKRUN_DATABASE_URL too, or use a virtual host of its own"
        )


def _once_ready(reach: Callable[[], T], deadline: float) -> T:
    """Return what ``reach`` returns once it no longer raises NotReady. Raises that itself when the time is over."""
    said = ""
    while True:
        try:
            return reach()
        except NotReady as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if str(error) != said:
                said = str(error)
                tell(f"{said}; waiting up to {left:.0f} s for it")
            time.sleep(min(RETRY_SECONDS, left))


def forget_connections(app: Celery) -> None:
    """Close an application and its connections to the broker.

    Kombu keeps them for the whole process, by address: another lab in this process, with servers of its own in the same
    place, would be handed sockets that no server listens to any more.
    """
    key = app.connection_for_write()
    for group in (pools.producers, pools.connections):
        group[key].force_close_all()
        del group[key]
    app.close()


def tell(sentence: str) -> None:
    """Say why nothing happens for the moment."""
    print(f"bankrun: {printable(sentence)}", file=sys.stderr, flush=True)


@contextmanager
def hold_bank(servers: Servers) -> Iterator[None]:
    """Make the schema if it is missing, and keep other labs away for the block.

    Raises CannotStart if one is at it.
    """
    with only_lab(servers.database):
        create_schema(servers.database)
        yield


@contextmanager
def open_lab(
    servers: Servers,
    *,
    instances: int,
    threads: int,
    any_running: bool = False,
    revive: bool = False,
    far: bool = False,
) -> Iterator[Lab]:
    """Open the bank and gather the instances for the block: those that run already, or else some of our own.

    On given servers all that run are in ``Lab.instances``; a cell takes as many as its topology says. ``any_running``
    is content with those that run: ``instances`` and ``threads`` are then what to start where nothing does. ``revive``
    starts those of our own again that end, where a comparison otherwise would end with them. With ``far``, each has a
    way of its own to Postgres, which the lab can make longer.

    Raises CannotStart if another lab is at it, if there are too few instances or threads, or if there are not enough
    connections for them.
    """
    with ExitStack() as stack:
        stack.enter_context(hold_bank(servers))
        if far and not servers.endpoints.embedded:
            raise CannotStart(
                "distances are made on the embedded servers: unset BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL; "
                "with servers of your own, put the workers where they are to be"
            )
        least = (1, 1) if any_running else (instances, threads)
        found = [] if servers.endpoints.embedded else _gather(servers, instances=least[0], threads=least[1])
        if not found:
            check_connection_budget(servers.database, instances=instances, threads=threads)
            keeper = servers.keeper or stack.enter_context(keeper_only(servers.state_dir))
            names = [f"w{number}" for number in range(1, instances + 1)]
            url = servers.endpoints.worker_database_url
            network = stack.enter_context(Network(url, names, threads=threads)) if far else None
            cores = cores_of(servers, names)

            def start(names: Sequence[str]) -> None:
                for name in names:
                    seen = servers if network is None else _seen_from(servers, network.url(name))
                    env, place = worker_environment(seen), servers.state_dir
                    start_instances(keeper, [name], threads=threads, env=env, state_dir=place, cores=cores)

            start(names)
            stack.callback(keeper.stop, names, grace_seconds=5)
            ours = ("postgres", "valkey") if servers.endpoints.embedded else ()
            check_servers = partial(_check_processes, keeper, ours, servers.state_dir)

            def check_all() -> None:
                check_servers()
                _check_processes(keeper, names, servers.state_dir, InstanceEnded)

            ready = partial(servers.fleet.wait_until_ready, names, keeper, servers.state_dir, check_all)

            def revive_instances() -> None:
                for name in names:
                    if keeper.returncode(name) is not None:
                        start([name])

            def restart() -> list[InstanceInfo]:
                keeper.stop(names, grace_seconds=1)  # they hang, or have ended: there is nothing to wait for
                start(names)
                return ready()

            found = ready()
            yield Lab(
                *(servers.database, servers.app, servers.fleet, found, check_servers if revive else check_all),
                settings=servers.settings,
                restart=restart,
                revive_instances=revive_instances if revive else lambda: None,
                come_back=revive,
                network=network,
            )
        else:
            yield Lab(servers.database, servers.app, servers.fleet, found, settings=servers.settings, come_back=revive)


def _seen_from(servers: Servers, url: str) -> Servers:
    """Return the servers as an instance sees them that reaches Postgres at another address."""
    return replace(servers, endpoints=replace(servers.endpoints, worker_database_url=url))


def _check_processes(keeper: Keeper, names: Sequence[str], state_dir: Path, error: type[BankError] = BankError) -> None:
    """Raise BankError, or one of its kinds, if one of the processes that were started here has ended."""
    for name in names:
        code = keeper.returncode(name)
        if code is not None:
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            raise error(f"{name} was ended {how}; see {state_dir / 'logs'}")


def _gather(servers: Servers, *, instances: int, threads: int) -> list[InstanceInfo]:
    """Return the running instances that serve this bank, once they are enough; none if we are to start our own.

    Raises CannotStart if after a while they are still too few, if one is too small, or if together they want more
    connections than there are.
    """
    bank = bank_id(servers.database)
    wait_seconds = (servers.settings.startup_wait_ms or 0) / 1000
    deadline = time.monotonic() + wait_seconds
    has_told = False
    while True:
        running = servers.fleet.discover()
        if not running and servers.settings.start_workers:
            return []
        ours = [info for info in running if info.bank == bank]
        if len(ours) >= instances or time.monotonic() > deadline:
            break
        if not has_told:
            tell(f"{len(ours)} of {instances} instances answer; waiting up to {wait_seconds:.0f} s for the others")
            has_told = True
    if len(ours) < instances:
        elsewhere = len(running) - len(ours)
        raise CannotStart(
            f"the topology asks for {instances} instances, but {len(ours)} are running"
            + (f" (and {elsewhere} that work for another bank)" if elsewhere else "")
            + f": start more, as with docker compose up --detach --scale worker={instances} worker"
        )
    smallest = min(info.threads for info in ours[:instances])
    if smallest < threads:
        raise CannotStart(
            f"the topology asks for {threads} threads, but an instance has {smallest}: set BANKRUN_THREADS={threads}"
        )
    check_worker_roles(servers.database)
    check_connection_budget(servers.database, instances=len(ours), threads=max(info.threads for info in ours))
    return ours


def cores_of(servers: Servers, names: Sequence[str]) -> dict[str, int]:
    """Return the core of each instance that is started here, if it is to have one of its own."""
    return cores_for(names) if servers.settings.pin_workers else {}


def worker_environment(servers: Servers) -> dict[str, str]:
    """Return the environment that gives a worker process the same settings, wherever it is started from.

    All but one: in Postgres it has the workers' role.
    """
    settings = servers.settings.model_copy(update={"database_url": SecretStr(servers.endpoints.worker_database_url)})
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("BANKRUN_")}
    # The heartbeat is that of a worker in a container of its own; ours share a machine, and are watched by the keeper.
    # Each has a core of its own, or none.
    for name in Settings.model_fields.keys() - {"heartbeat_file", "core"}:
        value = getattr(settings, name)
        if value is not None:
            secret = value.get_secret_value() if isinstance(value, SecretStr) else value
            environment["BANKRUN_" + name.upper()] = str(secret)
    # A worker loads what this lab has loaded, whatever else a message asks for.
    announced = outside.announce()
    for name, separator in (("BANKRUN_STRATEGIES", ","), ("BANKRUN_STRATEGIES_PATH", os.pathsep)):
        both = [given for given in (environment.get(name), announced.get(name)) if given]
        if both:
            environment[name] = separator.join(both)
    return environment
