"""The same transfers by pgbench: what one transaction after another can cost at least."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from uuid import UUID

from sqlalchemy import make_url

from bank.audit import audit
from bank.errors import BankError, CannotStart
from bank.orders import Order
from bank.postgres import versions
from bank.postgres.database import Database, psql_url
from bank.postgres.presets import as_options
from bank.postgres.schema import open_bank
from bank.strategies.single_statement import SingleStatement
from bankrun.results.models.bench import PGBENCH, PGBENCH_ACCEPTED, PGBENCH_SINGLE
from bankrun.results.workload import Workload
from bankrun.servers.binaries import find_binaries
from workers.submission import Submission, accept

SECONDS_MAX = 600

ACCEPT = r"""
\set debit random(1, :accounts)
\set credit 1 + (:debit - 1 + random(1, :accounts - 1)) % :accounts
\set amount random(1, :amount_max)
BEGIN;
INSERT INTO transfers (id, debit, credit, amount, strategy, run)
VALUES ({new_id}, :debit::int, :credit::int, :amount::bigint, 'row-lock', :run::bigint)
RETURNING id AS wanted \gset
"""
"""Accepts the transfer first, in the same transaction: one COMMIT less than a caller needs that waits for it."""

NEXT = r"""
\set n :n + 1
\set number (:n - 1) * :clients + :client_id + 1
"""
WANTED, NUMBERED = ":wanted::uuid", "lpad(to_hex(:number::bigint), 32, '0')::uuid"

# What a worker has from its message, pgbench has to work out: `_draw` does the same.
DRAW = r"""
\set debit 1 + :number * 7919 % :accounts
\set credit 1 + (:debit + :number * 104729 % (:accounts - 1)) % :accounts
\set amount 1 + :number * 31 % :amount_max
"""
BOUND = {
    "id": NUMBERED,
    "debit": ":debit::int",
    "credit": ":credit::int",
    "amount": ":amount::bigint",
    "strategy": "'row-lock'",
    "instance": "'pgbench'",
    "thread": ":client_id::text",
    "attempts": "1",
}

# The row lock's transaction, statement by statement.
MOVE = r"""
UPDATE transfers SET status = 'applied', reason = NULL, instance = 'pgbench', thread = :client_id::text, attempts = 1,
       decided_at = clock_timestamp()
WHERE id = :wanted::uuid AND status = 'pending'
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


SCRIPTS = {
    PGBENCH: ACCEPT + MOVE,
    PGBENCH_ACCEPTED: f"{NEXT}BEGIN;{MOVE.replace(WANTED, NUMBERED)}",
    PGBENCH_SINGLE: NEXT + DRAW + re.sub(r"%\((\w+)\)s", lambda match: BOUND[match[1]], SingleStatement.AT_ONCE) + ";",
}


def find_pgbench() -> str:
    """Return the path of pgbench: the embedded server's, or else the one on the PATH."""
    try:
        return str(find_binaries().postgres / "bin" / "pgbench")
    except CannotStart:
        found = shutil.which("pgbench")
        if found is None:
            raise CannotStart("there is no pgbench here: install Postgres' client programs") from None
        return found


def pgbench_rate(database: Database, name: str, workload: Workload, *, clients: int, seed: int) -> float:
    """Return the transfers a second of one script and so many clients. Each but ``pgbench`` finds them accepted.

    Raises BankError if pgbench fails, or leaves a transfer out, or if what it leaves behind does not pass the audit.
    """
    if database.is_pooled:
        raise BankError("pgbench asks for its settings when it logs in, and the pooler in between takes none")
    open_bank(database, accounts=workload.accounts, opening=workload.opening)
    orders = {PGBENCH_ACCEPTED: _number(workload.orders(seed)), PGBENCH_SINGLE: _draw(workload)}.get(name, ())
    each = workload.transfers // clients
    accept(database, orders, Submission("pgbench", "row-lock"), forgettable=True)
    with database.transaction() as transaction:
        new_id = versions.choose_new_id(transaction.raw)
        row = transaction.execute("SELECT id FROM runs WHERE name = 'pgbench'").fetchone()
    assert row is not None
    defined = {
        "n": 0,
        "clients": clients,
        "accounts": workload.accounts,
        "amount_max": workload.amount_max,
        "run": row[0],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(SCRIPTS[name].replace("{new_id}", new_id))
        script.flush()
        command = [find_pgbench(), "--no-vacuum", "--protocol=prepared", f"--client={clients}"]
        command += [f"--jobs={min(2, clients)}", f"--transactions={each}"]
        command += [f"--random-seed={seed}", *(f"--define={name}={value}" for name, value in defined.items())]
        address = make_url(psql_url(database.url))
        # Not on the command line: every user of this machine can read that.
        secret = {} if address.password is None else {"PGPASSWORD": address.password}
        command += [f"--file={script.name}", address._replace(password=None).render_as_string()]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS_MAX,
            env={**os.environ, **secret, "PGOPTIONS": as_options(), "LC_ALL": "C"},
        )
    if done.returncode:
        raise BankError(f"pgbench failed: {next(iter(done.stderr.strip().splitlines()), done.returncode)}")
    found = audit(database)
    if not found.passed:
        raise BankError(f"pgbench did not keep the money: {found.findings[0].examples[0]}")
    if found.transfers["applied"] != each * clients:
        raise BankError(f"{name} applied {found.transfers['applied']:,} transfers instead of {each * clients:,}")
    for line in done.stdout.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise BankError(f"pgbench printed no rate: {done.stdout[-200:]}")


def _number(orders: Iterator[Order]) -> Iterator[Order]:
    """Yield the orders under ids that pgbench's arithmetic can name."""
    for number, order in enumerate(orders, start=1):
        yield Order(UUID(int=number), order.debit, order.credit, order.amount)


def _draw(workload: Workload) -> Iterator[Order]:
    """Yield orders under such ids that consist of nothing but their number: 7,919 and 104,729 are primes."""
    accounts = workload.accounts
    for number in range(1, workload.transfers + 1):
        debit = 1 + number * 7_919 % accounts
        credit = 1 + (debit + number * 104_729 % (accounts - 1)) % accounts
        yield Order(UUID(int=number), debit, credit, 1 + number * 31 % workload.amount_max)
