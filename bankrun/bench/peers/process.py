"""One process of a peer: `python -m bankrun.bench.peers.process PLACE NAME STRATEGY NUMBER INSTANCES THREADS`.

The first one sends the messages. All say that they are ready with a file, and begin when there is a file `go`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from bank.orders import Order
from bank.outside import strategy_named
from bank.postgres.database import Database
from bank.settings import Settings, read_settings
from bank.strategies.redis_lock import redis_url
from bank.teller import Teller
from bankrun.bench.peers import MARKER, SCHEMA, drop_schema
from workers.process.affinity import stay_on

Legs = tuple[str, int, int, int]
Apply = Callable[[str, int, int, int], None]


class Gate:
    """Where the processes of one run wait for each other."""

    def __init__(self, place: Path, number: int) -> None:
        self._place = place
        self.number = number

    def wait(self) -> None:
        """Say that this process is ready, and wait until all may begin."""
        (self._place / f"ready-{self.number}").touch()
        while not (self._place / "go").exists():
            time.sleep(0.002)


def dramatiq(gate: Gate, apply: Apply, legs: Sequence[Legs], threads: int, broker_url: str, namespace: str) -> None:
    """Run dramatiq's worker, with the middleware that it has by default."""
    import dramatiq as package
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=broker_url, namespace=namespace)  # type: ignore[no-untyped-call, unused-ignore]
    package.set_broker(broker)
    actor = package.actor(broker=broker, actor_name="apply", max_retries=3)(apply)
    for leg in legs:
        actor.send(*leg)
    worker = package.Worker(broker, worker_threads=threads)
    gate.wait()
    worker.start()
    signal.pause()


def huey(gate: Gate, apply: Apply, legs: Sequence[Legs], threads: int, broker_url: str, namespace: str) -> None:
    """Run huey's consumer with threads, without a result store and without its scheduler's work."""
    from huey import RedisHuey

    queue = RedisHuey(namespace, url=broker_url, results=False)
    task = queue.task(name="apply")(apply)
    for leg in legs:
        task(*leg)
    consumer = queue.create_consumer(workers=threads, worker_type="thread", periodic=False, initial_delay=0.01)
    gate.wait()
    consumer.start()
    signal.pause()


def procrastinate(gate: Gate, apply: Apply, legs: Sequence[Legs], threads: int, database_url: str) -> None:
    """Run procrastinate's worker; its tables are in a schema of their own, which the first process makes."""
    import asyncio

    import psycopg
    from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

    options = f"-c search_path={SCHEMA}"
    if gate.number == 0:
        with psycopg.connect(database_url, autocommit=True) as connection:
            drop_schema(connection)
            connection.execute(f"CREATE SCHEMA {SCHEMA}".encode())
            connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{MARKER}'".encode())
        sender = App(connector=SyncPsycopgConnector(conninfo=database_url, kwargs={"options": options}))
        with sender.open():
            sender.schema_manager.apply_schema()
            deferred = sender.task(name="apply")(apply)
            jobs: list[Any] = [dict(zip(("transfer", "debit", "credit", "amount"), leg, strict=True)) for leg in legs]
            deferred.batch_defer(*jobs)

    async def work() -> None:
        app = App(
            connector=PsycopgConnector(
                conninfo=database_url, kwargs={"options": options}, min_size=threads, max_size=threads + 2
            )
        )
        app.task(name="apply")(apply)
        async with app.open_async():
            gate.wait()
            await app.run_worker_async(concurrency=threads, install_signal_handlers=False, listen_notify=False)

    asyncio.run(work())


def pool_of_threads(gate: Gate, apply: Apply, legs: Sequence[Legs], threads: int) -> None:
    """Run the talk's own way: a pool of threads, which is handed the transfers directly."""
    with ThreadPoolExecutor(threads) as pool:
        gate.wait()
        for future in [pool.submit(apply, *leg) for leg in legs]:
            future.result()
        signal.pause()


def main(place: str, name: str, strategy: str, number: str, instances: str, threads: str) -> None:
    """Be one process of a peer, until a signal ends it."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    settings = read_settings()
    assert settings.database_url is not None
    assert settings.broker_url is not None
    assert settings.instance is not None
    if settings.core is not None:
        stay_on(settings.core)
    url = settings.database_url.get_secret_value()
    database = Database.for_instance(url, instance=settings.instance, threads=int(threads), settings=settings)
    apply = _apply(database, strategy, settings)
    gate = Gate(Path(place), int(number))
    # A pool of threads has no queue that processes could share: each gets its part of the transfers.
    shared = name != "threads"
    legs = _pending(database, 0 if shared else int(number), 1 if shared else int(instances))
    if shared and gate.number:
        legs = []
    namespace = f"bankrun-bench-{Path(place).name}"
    broker = redis_url(settings.broker_url.get_secret_value())
    plain = url.replace("postgresql+psycopg://", "postgresql://")
    match name:
        case "dramatiq":
            dramatiq(gate, apply, legs, int(threads), broker, namespace)
        case "huey":
            huey(gate, apply, legs, int(threads), broker, namespace)
        case "procrastinate":
            procrastinate(gate, apply, legs, int(threads), plain)
        case _:
            pool_of_threads(gate, apply, legs, int(threads))


def _apply(database: Database, strategy_name: str, settings: Settings) -> Apply:
    teller = Teller(
        database,
        instance=str(settings.instance),
        guard_timeout_seconds=settings.lock_timeout_ms / 1000,
        patience_seconds=settings.patience_ms / 1000,
    )
    strategy = strategy_named(strategy_name).open(settings)

    def apply(transfer: str, debit: int, credit: int, amount: int) -> None:
        teller.apply(Order(UUID(transfer), debit, credit, amount), strategy)

    return apply


def _pending(database: Database, number: int, of: int) -> list[Legs]:
    with database.transaction() as transaction:
        rows = transaction.execute("SELECT id::text, debit, credit, amount FROM transfers ORDER BY id").fetchall()
    return [(row[0], row[1], row[2], row[3]) for row in rows[number::of]]


if __name__ == "__main__":
    main(*sys.argv[1:])
