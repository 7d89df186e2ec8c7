"""Faults in containers: while transfers flow, something is killed, paused, cut off, restarted or emptied.

Nothing is lost, nothing is applied twice, and everything goes on by itself. Each test prints how long that took, from
the end of the fault until no transfer was pending.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import LiteralString

import pytest
from celery import Celery
from docker.models.containers import Container
from pydantic import SecretStr

from bank.audit import audit
from bank.errors import BankError, NotReady
from bank.postgres.database import Database
from bank.postgres.schema import create_schema, open_bank, open_for_lab
from bank.settings import Settings
from bankrun.results.workload import Workload
from tests.compose.conftest import Compose
from tests.waiting import wait_until
from workers.app import QUEUE, create_app
from workers.submission import Submission, accept, publish

pytestmark = pytest.mark.timeout(300)

STRATEGIES = ("row-lock", "atomic-update")
WORKLOAD = Workload(accounts=16, transfers=400)
THINK_MS = 10.0
RECOVERY_SECONDS_MAX = 90
KILL_ALL = ["sh", "-c", "kill -9 -1"]  # every process but the engine's init, which then ends, and is started again
PAUSE_SECONDS = 7  # longer than a lease and than Postgres' lock timeout, shorter than its idle timeout
CUT_SECONDS = 5

PENDING: LiteralString = "SELECT count(*) FROM transfers WHERE status = 'pending'"
DECIDERS: LiteralString = "SELECT DISTINCT instance FROM transfers WHERE run = (SELECT max(id) FROM runs)"


@dataclass
class Bank:
    """The stack's bank and broker as the lab has them, by way of the loopback ports."""

    database: Database
    app: Celery
    seeds: Iterator[int]

    def send(self, strategy: str, transfers: int) -> None:
        """Accept transfers, and publish them to whichever worker takes them."""
        seed = next(self.seeds)
        orders = list(replace(WORKLOAD, transfers=transfers).orders(seed))
        submission = Submission(f"fault-{seed}", strategy, QUEUE, think_ms=THINK_MS)
        accept(self.database, orders, submission)
        publish(self.app, orders, submission)

    def ask(self, statement: LiteralString) -> list[object]:
        """Return the first column; a Postgres that is away is waited for."""
        deadline = time.monotonic() + RECOVERY_SECONDS_MAX
        while True:
            try:
                with self.database.transaction() as transaction:
                    return [row[0] for row in transaction.execute(statement)]
            except BankError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    @property
    def pending(self) -> int:
        """How many transfers are undecided."""
        return int(str(self.ask(PENDING)[0]))


@pytest.fixture(scope="module")
def bank(stack: Compose) -> Iterator[Bank]:
    """The bank and the broker of the stack."""
    assert stack("--profile", "ports", "up", "--detach", "ports").returncode == 0
    printed = stack("exec", "--no-TTY", "ports", "cat", "/run/secrets/outside.sh").stdout
    shown = 'echo "$BANKRUN_DATABASE_URL"; echo "$BANKRUN_BROKER_URL"'
    both = subprocess.check_output(["sh", "-c", f"{printed}\n{shown}"], env=stack.environment, text=True).split()
    settings = Settings(database_url=SecretStr(both[0]), broker_url=SecretStr(both[1]))
    assert settings.database_url is not None
    with ExitStack() as opened:
        database = opened_when_ready(settings.database_url.get_secret_value())
        opened.callback(database.close)
        create_schema(database)
        app = create_app(settings)
        opened.callback(app.close)
        yield Bank(database, app, itertools.count(1))


def opened_when_ready(url: str) -> Database:
    """Open the bank, once the forwarder listens behind the port that the engine has opened already."""
    deadline = time.monotonic() + 15
    while True:
        try:
            return open_for_lab(url)
        except NotReady:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def worker_of(stack: Compose) -> Container:
    return stack.containers("worker")[0]


def killed_inside(container: Container) -> None:
    """Kill its processes, and wait until the restart policy has started it again."""
    container.reload()
    before = container.attrs["RestartCount"]
    container.exec_run(KILL_ALL)
    assert wait_until(lambda: container.reload() or container.attrs["RestartCount"] > before, 30)


def a_worker_is_killed(stack: Compose, bank: Bank) -> None:
    killed_inside(worker_of(stack))


def a_worker_is_paused_while_it_holds_locks(stack: Compose, bank: Bank) -> None:
    worker = worker_of(stack)
    holds = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND backend_xid IS NOT NULL"
        f" AND application_name = 'bankrun {worker.short_id}'"
    )
    for _ in range(20):
        worker.pause()
        if int(stack.sql(holds)):
            break
        worker.unpause()
        time.sleep(0.05)
    else:
        pytest.fail("no pause met a transaction that had written something")
    time.sleep(PAUSE_SECONDS)
    worker.unpause()


def a_worker_is_cut_off(stack: Compose, bank: Bank) -> None:
    worker, network = worker_of(stack), stack.client.networks.get(f"{stack.project}_servers")
    network.disconnect(worker)
    time.sleep(CUT_SECONDS)
    network.connect(worker, aliases=["worker"])


def postgres_is_restarted(stack: Compose, bank: Bank) -> None:
    (postgres,) = stack.containers("postgres")
    postgres.restart(timeout=60)


def postgres_is_killed(stack: Compose, bank: Bank) -> None:
    killed_inside(stack.containers("postgres")[0])


def redis_is_restarted(stack: Compose, bank: Bank) -> None:
    (redis,) = stack.containers("redis")
    redis.restart(timeout=30)


def redis_is_killed_and_emptied(stack: Compose, bank: Bank) -> None:
    (redis,) = stack.containers("redis")
    redis.kill()  # unlike a death from within, the engine does not undo this
    stack.client.containers.run(
        redis.image.id,
        ["-c", "rm -r /data/*"],
        entrypoint="sh",
        user="redis",
        remove=True,
        network_mode="none",
        volumes={f"{stack.project}_redis": {"bind": "/data"}},
    )
    redis.start()


FAULTS = (
    a_worker_is_killed,
    a_worker_is_paused_while_it_holds_locks,
    a_worker_is_cut_off,
    postgres_is_restarted,
    postgres_is_killed,
    redis_is_restarted,
    redis_is_killed_and_emptied,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_transfer_takes_effect_once_though(
    fault: Callable[[Compose, Bank], None],
    stack: Compose,
    bank: Bank,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    open_bank(bank.database, accounts=WORKLOAD.accounts, opening=WORKLOAD.opening)
    for strategy in STRATEGIES:
        bank.send(strategy, WORKLOAD.transfers)
    total = len(STRATEGIES) * WORKLOAD.transfers
    assert wait_until(lambda: bank.pending < total - 50, 30)
    assert bank.pending > total // 4, "the fault comes too late to meet anything"
    fault(stack, bank)
    over = time.monotonic()
    left = bank.pending
    assert wait_until(lambda: not bank.pending, RECOVERY_SECONDS_MAX), f"{bank.pending} are pending"
    seconds = time.monotonic() - over
    found = audit(bank.database)
    assert found.passed, found.findings
    assert (found.transfers["applied"], found.duplicates, found.entries) == (total, 0, 2 * total)
    record_property("recovery_s", round(seconds, 1))
    with capsys.disabled():
        sys.stdout.write(f"\n{left} of {total} were pending when it was over, none {seconds:.1f} s later ")

    # Everybody is back at work, the victim too.
    everybody = {worker.short_id for worker in stack.containers("worker")}

    def all_take_part() -> bool:
        bank.send("row-lock", 120)
        assert wait_until(lambda: not bank.pending, RECOVERY_SECONDS_MAX)
        return set(map(str, bank.ask(DECIDERS))) == everybody

    assert wait_until(all_take_part, 45)
    assert len(everybody) == 3
    assert audit(bank.database).passed
