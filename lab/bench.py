"""How fast, and compared with what: the same transfers through pgbench, through Celery, and through no work at all."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import make_url

from bank.database import Database, psql_url
from bank.errors import BankError, CannotStart
from bank.orders import Order
from bank.schema import open_bank
from bank.strategies import Claim
from lab.experiment import Lab, Plan
from lab.progress import Silence
from lab.results import Run
from lab.servers import find_binaries
from lab.topology import Topology
from lab.workload import Workload
from workers.app import NOOP_TASK
from workers.submission import Submission, accept, publish

PGBENCH, NOOP = "pgbench", "celery-noop"
WARMUP = 200
SECONDS_MAX = 600
NOISE_WIDE = 0.25
"""A spread (max - min) / median above this is called noisy."""

# The row lock's transaction, statement by statement, on transfers that were accepted before.
SCRIPT = r"""
\set n :n + 1
BEGIN;
UPDATE transfers SET status = 'applied', instance = 'pgbench', thread = :client_id::text, attempts = 1,
       decided_at = clock_timestamp()
WHERE id = lpad(to_hex((:n::bigint - 1) * :clients::bigint + :client_id::bigint + 1), 32, '0')::uuid
  AND status = 'pending'
RETURNING id AS transfer, debit, credit, amount,
          nextval('entry_ids') AS debit_entry, nextval('entry_ids') AS credit_entry \gset
WITH locked AS (
    SELECT id, balance, last_entry, version, clock_timestamp() AS read_at FROM accounts
    WHERE id IN (:debit::int, :credit::int) ORDER BY id FOR UPDATE
)
SELECT max(balance) FILTER (WHERE id = :debit::int) AS debit_before,
       max(balance) FILTER (WHERE id = :credit::int) AS credit_before,
       coalesce(max(last_entry) FILTER (WHERE id = :debit::int), 0) AS debit_previous,
       coalesce(max(last_entry) FILTER (WHERE id = :credit::int), 0) AS credit_previous
FROM locked \gset
\set debit_after :debit_before - :amount
\set credit_after :credit_before + :amount
UPDATE accounts SET balance = :debit_after::bigint, last_entry = :debit_entry::bigint WHERE id = :debit::int;
UPDATE accounts SET balance = :credit_after::bigint, last_entry = :credit_entry::bigint WHERE id = :credit::int;
INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
VALUES (:debit_entry::bigint, :transfer::uuid, :debit::int,
        -:amount::bigint, :debit_before::bigint, :debit_after::bigint,
        nullif(:debit_previous::bigint, 0), clock_timestamp()),
       (:credit_entry::bigint, :transfer::uuid, :credit::int,
        :amount::bigint, :credit_before::bigint, :credit_after::bigint,
        nullif(:credit_previous::bigint, 0), clock_timestamp());
COMMIT;
"""


@dataclass(slots=True)
class Row:
    """One contestant's rates over all rounds, in transfers (or messages) a second."""

    name: str
    topology: str
    chunk: int
    accounts: int
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Return the median rate."""
        return statistics.median(self.rates)

    @property
    def is_noisy(self) -> bool:
        """Whether the rounds differ so much that a small difference means nothing."""
        return (max(self.rates) - min(self.rates)) / self.median > NOISE_WIDE


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All contestants of one run."""

    rows: list[Row]

    def row(self, name: str) -> Row:
        """Return a contestant by name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def bound(self) -> float:
        """Return 1/(1/n + 1/p): what is left if a message costs what a no-op costs, and then the database its share."""
        return 1 / (1 / self.row(NOOP).median + 1 / self.row(PGBENCH).median)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the rows of the contract."""
        pgbench = self.row(PGBENCH).median
        return [
            {
                "name": row.name,
                "topology": row.topology,
                "chunk": row.chunk,
                "accounts": row.accounts,
                "transfers_per_s": {
                    "median": round(row.median, 1),
                    "min": round(min(row.rates), 1),
                    "max": round(max(row.rates), 1),
                },
                "ratio_to_pgbench": round(row.median / pgbench, 3),
                "ratio_to_bound": round(row.median / self.bound, 3),
            }
            for row in self.rows
        ]


def benchmark(
    lab: Lab, strategies: Sequence[str], topology: Topology, workload: Workload, *, seed: int, rounds: int
) -> Benchmark:
    """Run every contestant once a round, in turn: a slow minute of the machine then hits all of them alike."""
    pgbench = find_pgbench()
    names = (PGBENCH, NOOP, *strategies)
    rows = [Row(name, str(topology), workload.chunk, workload.accounts) for name in names]
    for number in range(rounds):
        for row in rows:
            match row.name:
                case "pgbench":
                    row.rates.append(_pgbench_rate(pgbench, lab.database, workload, topology, seed + number))
                case "celery-noop":
                    row.rates.append(_noop_rate(lab, workload, topology, seed + number))
                case name:
                    plan = Plan((name,), (topology,), workload, seed + number, warmup=min(WARMUP, workload.transfers))
                    run = lab.run(name, topology, plan, Silence())
                    _check(run)
                    row.rates.append(run.transfers_per_s)
    return Benchmark(rows)


def _check(run: Run) -> None:
    """Raise BankError if a run has no rate: one that does not keep what it claims to keep is no contestant.

    What claims nothing here is one: its rate is what a lock costs the others.
    """
    if run.pending:
        raise BankError(f"{run.strategy} did not finish: {run.pending:,} transfers are still pending")
    claims = Claim(run.claim).covers(instances=run.instances, threads=run.threads, hosts=run.hosts)
    if claims and not run.held:
        raise BankError(f"{run.strategy} did not keep the money: a rate of wrong transfers is no rate")


def find_pgbench() -> str:
    """Return the path of pgbench: the embedded server's, or else the one on the PATH."""
    try:
        return str(find_binaries().postgres / "bin" / "pgbench")
    except CannotStart:
        found = shutil.which("pgbench")
        if found is None:
            raise CannotStart("there is no pgbench here: install Postgres' client programs") from None
        return found


def _numbered(orders: Iterator[Order]) -> Iterator[Order]:
    """Yield the orders under ids that pgbench's arithmetic can name."""
    for number, order in enumerate(orders, start=1):
        yield Order(UUID(int=number), order.debit, order.credit, order.amount)


def _pgbench_rate(pgbench: str, database: Database, workload: Workload, topology: Topology, seed: int) -> float:
    clients = topology.instances * topology.threads
    each = workload.transfers // clients
    open_bank(database, accounts=workload.accounts, opening=workload.opening)
    orders = _numbered(workload.orders(seed))
    accept(database, orders, Submission("pgbench", "row-lock"), forgettable=True)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(SCRIPT)
        script.flush()
        command = [
            pgbench,
            "--no-vacuum",
            "--protocol=prepared",
            f"--client={clients}",
            "--jobs=2",
            f"--transactions={each}",
        ]
        address = make_url(psql_url(database.url))
        # Not on the command line: everybody on this machine can read that.
        secret = {} if address.password is None else {"PGPASSWORD": address.password}
        public = address._replace(password=None).render_as_string()
        command += ["--define=n=0", f"--define=clients={clients}", f"--file={script.name}", public]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS_MAX,
            env={**os.environ, **secret, "PGOPTIONS": "-c search_path=bankrun", "LC_ALL": "C"},
        )
    if done.returncode:
        raise BankError(f"pgbench failed: {next(iter(done.stderr.strip().splitlines()), done.returncode)}")
    for line in done.stdout.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise BankError(f"pgbench printed no rate: {done.stdout[-200:]}")


def _noop_rate(lab: Lab, workload: Workload, topology: Topology, seed: int) -> float:
    chosen = lab.instances[: topology.instances]
    orders = list(workload.orders(seed))
    name = lab.next_name()
    publish(
        lab.app,
        orders,
        Submission(name, "none", name, workload.chunk, threads=topology.threads),
        task=NOOP_TASK,
    )
    try:
        lab.fleet.join(name, chosen)
        deadline = time.monotonic() + SECONDS_MAX
        while lab.fleet.queue_length(name):
            lab.check_processes()
            if time.monotonic() > deadline:
                raise BankError(f"after {SECONDS_MAX} s there are still messages that nobody has taken")
            time.sleep(0.1)
    finally:
        lab.fleet.leave(name, chosen)
    seconds = lab.fleet.read_meters(name, chosen).seconds()
    if not seconds:
        raise BankError(f"{len(orders)} messages were too few to be timed")
    return len(orders) / seconds
