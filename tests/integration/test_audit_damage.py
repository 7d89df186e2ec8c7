"""Whatever is done to the bank by hand, the audit does not fail, and passes only what the page says it cannot find.

Damage is done within a transaction that is then rolled back, and audited within it. Constraints are dropped first:
what Postgres keeps out by itself, a dropped constraint lets in.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rich.console import Console
from sqlalchemy.dialects import postgresql

from bank.audit import INVARIANTS, Audit, audit, audit_within, tell
from bank.ledger import FAIL
from bank.orders import Order
from bank.postgres import models
from bank.postgres.columns import READ, ask_unreadable, read_relations
from bank.postgres.database import Database, Transaction
from bank.postgres.schema import open_bank
from bankrun.cli.audit import _show_audit
from bankrun.results.timeline import SAMPLES, TOTALS, read_history, read_scene, read_seconds
from tests.integration.conftest import BranchMaker, order
from workers.submission import Submission, accept

EXAMPLES = 500 if "SOUNDNESS" in os.environ else 60
PAGE = Path(__file__).parents[2] / "docs" / "audit.md"

APPLIED = [order(1, 1, 2, 10), order(2, 2, 3, 20), order(3, 3, 1, 30), order(4, 1, 3, 7), order(5, 3, 2, 4)]
REFUSED = [order(6, 1, 2, 10_000), order(7, 1, 9, 5)]
LEFT, FAILED = order(8, 2, 1, 3), order(9, 3, 2, 6)

UNCONSTRAINED = """
    DO $$ DECLARE it record; BEGIN
        ALTER TABLE bankrun.runs ALTER id DROP IDENTITY;
        FOR it IN SELECT conrelid::regclass AS relation, conname FROM pg_constraint
                  WHERE connamespace = 'bankrun'::regnamespace AND conrelid <> 0 ORDER BY contype = 'n' LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', it.relation, it.conname);
        END LOOP;
        -- Before 18, what must not be NULL has no constraint by name.
        FOR it IN SELECT attrelid::regclass AS relation, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
                  WHERE relnamespace = 'bankrun'::regnamespace AND relkind = 'r' AND attnum > 0 AND attnotnull LOOP
            EXECUTE format('ALTER TABLE %s ALTER %I DROP NOT NULL', it.relation, it.attname);
        END LOOP;
    END $$
"""
ESSENCE = [
    """
    SELECT id, opening, balance, last_entry FROM accounts
    WHERE last_entry IS NOT NULL OR id IN (SELECT account_id FROM entries) ORDER BY id
    """,
    """
    SELECT id, transfer_id::text, account_id, row_number() OVER (PARTITION BY account_id ORDER BY seq),
           previous_entry, delta, before, after FROM entries ORDER BY id
    """,
    """
    SELECT id::text, debit, credit, amount, status FROM transfers
    WHERE status = 'applied' OR id IN (SELECT transfer_id FROM entries) ORDER BY id
    """,
    "SELECT id::text FROM transfers GROUP BY id HAVING count(*) > 1",
    """
    SELECT id::text FROM transfers
    WHERE (amount > 0 AND debit <> credit AND status IN ('pending', 'applied', 'refused', 'failed')
           AND (status = 'applied' OR (status = 'pending') = (decided_at IS NULL))) IS NOT TRUE
    """,
    """
    SELECT id FROM entries
    WHERE (read_at BETWEEN '0002-01-01 UTC' AND '9999-01-01 UTC') IS NOT TRUE OR NOT isfinite(written_at)
    """,
]
"""What is left of a bank without all that the page says the audit cannot find."""


@pytest.fixture
def mixed_bank(branch: BranchMaker, database: Database) -> Database:
    """A bank with transfers of every outcome, in which no two are alike, and an account that none of them is of."""
    open_bank(database, accounts=4, opening=100)
    one = branch("row-lock", threads=1)
    orders: list[Order] = [*APPLIED, *REFUSED, LEFT, FAILED]
    accept(database, orders, Submission("mixed", "row-lock", "mixed"), forgettable=True)
    for each in [*APPLIED, *REFUSED]:
        one.apply(each)
    with database.transaction() as transaction:
        parameters = {"id": FAILED.id, "reason": "tired", "instance": "b1", "thread": "t", "strategy": None}
        transaction.execute(FAIL, parameters)
    return database


class _UndoneError(Exception):
    """Rolls a damage back."""


@contextmanager
def damaged(database: Database, *statements: str) -> Iterator[Transaction]:
    """Yield a transaction in which the bank has no constraints and was changed; it is rolled back."""
    with suppress(_UndoneError), database.transaction() as transaction:
        for statement in (UNCONSTRAINED, *statements):
            transaction.execute(statement)
        yield transaction
        raise _UndoneError


def essence(transaction: Transaction) -> list[list[tuple[object, ...]]]:
    return [transaction.execute(query).fetchall() for query in ESSENCE]


def examine(transaction: Transaction) -> Audit:
    """Audit, and check that every finding can be told and saved."""
    found = audit_within(transaction)
    for finding in found.findings:
        assert finding.invariant in INVARIANTS
        assert finding.count > 0
        assert finding.examples
        assert all(example.isprintable() for example in finding.examples), finding.examples
    saved = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert TypeAdapter(Audit).validate_python(saved).findings == found.findings
    _show_audit(Console(file=io.StringIO()), found)
    return found


# --- Any damage ------------------------------------------------------------------------------------------------------

VALUES = {
    "int": [
        "-9223372036854775808",
        "9223372036854775807",
        "-2147483648",
        "2147483647",
        "-1",
        "0",
        "1",
        "2",
        "3",
        "7",
        "100",
        "110",
    ],
    "uuid": ["00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000002"],
    "timestamp": ["infinity", "-infinity", "0044-03-15 BC", "294276-12-31", "9999-12-31 23:59:59", "0001-01-01", "now"],
    "float": ["NaN", "Infinity", "-1", "0"],
    "bool": ["true", "false"],
    "char": ["", "applied", "pending", "refused", "failed", "APPLIED", "\x1b[31m", "x" * 5_000, "10.5", "NaN", "1e400"],
}
TYPES = ["numeric", "numeric(30,2)", "text", "double precision", "bigint", "integer", "boolean", "timestamp", "bytea"]
ROW = "(SELECT ctid FROM bankrun.{table} ORDER BY ctid OFFSET {number} LIMIT 1)"


def kind_of(column: str, table: str) -> str:
    """Return which of VALUES a column takes."""
    compiled = models.metadata.tables[f"bankrun.{table}"].columns[column].type.compile(postgresql.dialect()).lower()
    return next(kind for kind in VALUES if kind in compiled)


def make_damage(seed: int) -> tuple[str, str | None]:
    """Return a statement that changes the bank, and the value that it binds, if it binds one: each as likely."""
    chance = Random(seed)
    table = chance.choice(["accounts", "entries", "entries", "transfers", "transfers", "runs", "fences"])
    columns = [column.name for column in models.metadata.tables[f"bankrun.{table}"].columns]
    column = chance.choice([*columns, *READ.get(table, ())])
    one, other = (ROW.format(table=table, number=chance.randint(0, 9)) for _ in range(2))
    at = f"bankrun.{table}"
    changed = [column] if chance.random() < 0.5 else [name for name in columns if name != column]
    exchange = ", ".join(f'"{name}" = y."{name}"' for name in changed)
    value = chance.choice([None, *VALUES[kind_of(column, table)]])
    statement = chance.choice(
        [
            *[f'UPDATE {at} SET "{column}" = %s WHERE ctid = {one}'] * 20,
            f"UPDATE {at} x SET {exchange} FROM {at} y WHERE x.ctid = {one} AND y.ctid = {other}",
            (
                f"UPDATE {at} x SET {exchange} FROM {at} y"
                f" WHERE x.ctid = {one} AND y.ctid = {other} OR x.ctid = {other} AND y.ctid = {one}"
            ),
            f"DELETE FROM {at} WHERE ctid = {one}",
            f"INSERT INTO {at} SELECT * FROM {at} WHERE ctid = {one}",
            *[
                f'ALTER TABLE {at} ALTER "{column}" DROP DEFAULT, ALTER "{column}" TYPE {kind}'
                f' USING "{column}"::text::{kind}'
                for kind in [chance.choice(TYPES)]
            ],
            f'ALTER TABLE {at} DROP COLUMN "{column}"',
            f'ALTER TABLE {at} RENAME "{column}" TO was',
            f"DROP TABLE {at}",
            f"TRUNCATE {at}",
            f"SELECT setval('bankrun.entry_seq', {chance.randint(1, 20)})",
        ]
    )
    return statement, value


damages = st.integers(0, 2**62).map(make_damage)


def do(transaction: Transaction, statement: str, value: str | None) -> None:
    """Change the bank, unless Postgres does not take that."""
    with suppress(psycopg.Error), transaction.raw.transaction():
        transaction.execute(statement, (value,) if "%s" in statement else None)


@given(st.lists(damages, min_size=1, max_size=1) | st.lists(damages, min_size=1, max_size=3))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate] if EXAMPLES < 100 else [Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_damage_is_too_much_and_none_passes_but_what_the_page_lists(
    mixed_bank: Database, damage: list[tuple[str, str | None]]
) -> None:
    with damaged(mixed_bank) as transaction:
        before = essence(transaction)
        for statement, value in damage:
            do(transaction, statement, value)
        if examine(transaction).passed:
            assert essence(transaction) == before


# --- What it finds ---------------------------------------------------------------------------------------------------


def is_transfer(wanted: Order) -> str:
    return f"id = '{wanted.id}'"


FIRST, FOURTH, UNPAID = is_transfer(APPLIED[0]), is_transfer(APPLIED[3]), is_transfer(REFUSED[0])

FOUND: list[tuple[str, str, str]] = [
    # The statement, the invariant with the kind of the finding, and what its example says.
    ("UPDATE entries SET delta = NULL WHERE id = 3", "lineage, no value", "id 3, .*account_id 2, .*: delta is NULL"),
    ("UPDATE entries SET before = NULL WHERE id = 3", "lineage, no value", "id 3, .*: before is NULL"),
    ("UPDATE entries SET seq = NULL WHERE id = 3", "lineage, no value", "id 3, .*: seq is NULL"),
    ("UPDATE entries SET id = NULL WHERE id = 3", "lineage, no value", "id NULL, .*account_id 2, .*: id is NULL"),
    ("UPDATE entries SET transfer_id = NULL WHERE id = 3", "once, no transfer", r"entries 3 \(-20 on account 2\) "),
    ("UPDATE entries SET delta = NULL WHERE id = 3", "lineage, unreadable entry", "entry 10 points to entry 3, which"),
    ("UPDATE accounts SET balance = NULL WHERE id = 1", "accounts, no value", "id 1, opening 100, .*: balance is NULL"),
    ("UPDATE accounts SET opening = NULL WHERE id = 4", "accounts, no value", "id 4, .*: opening is NULL"),
    (
        "UPDATE accounts SET id = NULL WHERE id = 1",
        "accounts, no account",
        "entries 7, 6, 1 belong to account 1, which",
    ),
    ("UPDATE accounts SET last_entry = NULL WHERE id = 1", "lineage, unlinked", "account 1: the last write is entry 7"),
    (f"UPDATE transfers SET status = NULL WHERE {FIRST}", "once, no value", "id 0.*01, debit 1, .*: status is NULL"),
    (f"UPDATE transfers SET amount = NULL WHERE {UNPAID}", "once, no value", "id 0.*06, .*: amount is NULL"),
    (f"UPDATE transfers SET id = NULL WHERE {UNPAID}", "once, no value", "amount 10000, status refused: id is NULL"),
    (f"UPDATE transfers SET status = 'lo\x1bst' WHERE {UNPAID}", "once, unknown status", r"0006 is 'lo\\x1bst', which"),
    (f"UPDATE transfers SET status = 'pending' WHERE {UNPAID}", "once, outcome undone", "0006 is pending, but has the"),
    ("UPDATE transfers SET status = 'refused' WHERE amount = 3", "once, never decided", "0008 is refused, but has no"),
    (f"UPDATE transfers SET status = 'refused' WHERE {FIRST}", "once, not applied", r"0001 is refused, .* 1 \(-10 on"),
    (f"UPDATE transfers SET status = 'applied' WHERE {UNPAID}", "once, missing entry", "0006 is applied, but has 0 of"),
    (f"UPDATE transfers SET amount = -amount WHERE {UNPAID}", "once, amount", "0006 orders -10000, which is not above"),
    (
        f"UPDATE transfers SET amount = -9223372036854775808 WHERE {FIRST}",
        "once, wrong legs",
        r"2 \(\+10 on account 2\)",
    ),
    (f"UPDATE transfers SET credit = 1 WHERE {UNPAID}", "once, same account", "0006 goes from account 1 to itself"),
    (f"INSERT INTO transfers SELECT * FROM transfers WHERE {FIRST}", "once, transfer twice", "0001 is there 2 times"),
    (f"INSERT INTO transfers SELECT * FROM transfers WHERE {UNPAID}", "once, transfer twice", "0006 is there 2 times"),
    (f"DELETE FROM transfers WHERE {FIRST}", "once, no transfer", r"entries 1 .*, 2 .*belong to no .*\(0.*0001\)"),
    ("UPDATE transfers SET run = NULL", "once, no run", "of no run, transfers 0.*0008$"),
    ("UPDATE transfers SET run = 77", "once, no run", "of run 77, which is not there, transfers 0.*0008$"),
    (
        "INSERT INTO entries SELECT * FROM entries WHERE id = 3",
        "lineage, entry twice",
        "account 2: entry 3 is there twice",
    ),
    ("INSERT INTO entries SELECT * FROM entries WHERE id = 3", "once, applied twice", r"0002 .* 3 \(-20 .*, 3 \(-20"),
    ("INSERT INTO accounts SELECT * FROM accounts WHERE id = 4", "accounts, account twice", "account 4 is there twice"),
    ("INSERT INTO accounts SELECT * FROM accounts WHERE id = 1", "total, drift", "500 at opening"),
    (
        "UPDATE accounts SET last_entry = 4 WHERE id = 2",
        "lineage, foreign entry",
        "its row points to entry 4, which bel",
    ),
    (
        "UPDATE entries SET previous_entry = 4 WHERE id = 3",
        "lineage, foreign entry",
        "2: entry 3 points to entry 4, which",
    ),
    (
        "UPDATE entries SET seq = (SELECT seq FROM entries WHERE id = 7) WHERE id = 6",
        "lineage, seq",
        "account 1: entries 6 and 7 have the same seq",
    ),
    (
        "UPDATE entries SET seq = 1000 WHERE id = 7",
        "lineage, seq",
        "entry 7 has seq 1000, but the sequence entry_seq stand",
    ),
    (
        "UPDATE entries SET seq = 0 WHERE id = 7",
        "lineage, seq",
        "entry 7 was made of entry 6, but its seq 0 is below 5",
    ),
    ("SELECT setval('entry_seq', 1, false)", "lineage, seq", "entry_seq stands at 0: seq restarted"),
    (
        "UPDATE entries SET read_at = 'infinity' WHERE id = 3",
        "lineage, time",
        "entry 3 was read at infinity, and written",
    ),
    ("UPDATE entries SET read_at = '-infinity' WHERE id = 3", "lineage, time", "entry 3 was read at -infinity, and"),
    ("UPDATE entries SET read_at = '10000-01-01' WHERE id = 3", "lineage, time", "entry 3 was read at 10000-01-01"),
    ("UPDATE entries SET written_at = '0044-03-15 BC' WHERE id = 3", "lineage, time", "and written at 0044-03-15 .*BC"),
    (
        "ALTER TABLE accounts ALTER balance TYPE numeric",
        "accounts, schema",
        "accounts.balance is numeric, and was bigint",
    ),
    ("ALTER TABLE entries ALTER delta TYPE text", "lineage, schema", "entries.delta is text, and was bigint"),
    ("ALTER TABLE accounts DROP balance", "accounts, schema", "accounts.balance is missing"),
    ("ALTER TABLE entries DROP read_at", "lineage, schema", "entries.read_at is missing"),
    ("ALTER TABLE transfers DROP status", "once, schema", "transfers.status is missing"),
    ("DROP TABLE entries", "lineage, schema", "entries is missing"),
    ("DROP TABLE transfers", "once, schema", "transfers is missing"),
    ("DROP TABLE accounts", "accounts, schema", "accounts is missing"),
    ("DROP TABLE runs", "once, schema", "runs is missing"),
]


@pytest.mark.parametrize("invariant", INVARIANTS[:4])
def test_a_damage_is_named_with_its_row(mixed_bank: Database, invariant: str) -> None:
    cases = [case for case in FOUND if case[1].startswith(invariant)]
    for statement, finding, says in cases:
        with damaged(mixed_bank, statement) as transaction:
            found = examine(transaction)
        examples = [
            one for each in found.findings if f"{each.invariant}, {each.kind}" == finding for one in each.examples
        ]
        assert any(re.search(says, one) for one in examples), (statement, found.findings)
        assert found.lost_postings == 0, statement
    assert cases


def test_amounts_of_another_type_are_read_where_they_are_amounts(mixed_bank: Database) -> None:
    for kind in ("numeric", "numeric(20,2)", "double precision", "text"):
        retyped = f"ALTER TABLE accounts ALTER balance TYPE {kind}", f"ALTER TABLE entries ALTER delta TYPE {kind}"
        with damaged(mixed_bank, *retyped) as transaction:
            assert {finding.kind for finding in examine(transaction).findings} == {"schema"}
            transaction.execute("UPDATE accounts SET balance = '10.5' WHERE id = 1")
            transaction.execute("UPDATE entries SET delta = 'NaN' WHERE id = 4")
            told = examine(transaction).findings
        lacking = [one for finding in told if finding.kind == "no value" for one in finding.examples]
        assert any("id 1, " in one and re.search("balance is 10.50?, which is no bigint$", one) for one in lacking), (
            kind
        )
        assert any("id 4, " in one and one.endswith("delta is NaN, which is no bigint") for one in lacking), kind


def test_transfers_after_a_sequence_was_set_back_are_told_as_that(mixed_bank: Database, branch: BranchMaker) -> None:
    with mixed_bank.transaction() as transaction:
        transaction.execute("SELECT setval('entry_seq', 1, false)")
    later = [order(number, 1, 2, 5) for number in range(20, 24)]
    accept(mixed_bank, later, Submission("later", "row-lock", "later"), forgettable=True)
    one = branch("row-lock", threads=1)
    for each in later:
        one.apply(each)
    found = audit(mixed_bank)
    assert {(finding.invariant, finding.kind) for finding in found.findings} == {("lineage", "seq")}
    assert (found.lost_postings, found.unexplained, found.entries) == (0, 0, 18)
    assert any(
        "was made of entry 7, but its seq 1 is below 7: seq restarted" in one for one in found.findings[0].examples
    )


def test_a_sound_bank_is_not_read_for_what_its_constraints_keep_out(bank: Database) -> None:
    with bank.transaction() as transaction:
        if transaction.raw.info.server_version < 170_000:
            pytest.skip("Postgres 17 is the first that leaves out a question about NULL that a constraint has answered")
        transaction.execute("SET LOCAL enable_seqscan = off")
        question = ask_unreadable(read_relations(transaction))
        plan = "\n".join(row[0] for row in transaction.execute(f"EXPLAIN {question}").fetchall())
    assert "Scan" not in plan
    assert plan.count("One-Time Filter: false") == 4


# --- What it does not find -------------------------------------------------------------------------------------------

HARMLESS = {
    "An account that no transfer was of": [
        "DELETE FROM accounts WHERE id = 4",
        "UPDATE accounts SET id = 44 WHERE id = 4",
        "UPDATE accounts SET opening = 7, balance = 7 WHERE id = 4",
        "INSERT INTO accounts (id, opening, balance, version) VALUES (5, 7, 7, 0)",
    ],
    "A transfer without entries": [
        f"DELETE FROM transfers WHERE {UNPAID}",
        f"UPDATE transfers SET amount = 1 WHERE {UNPAID}",
        f"UPDATE transfers SET debit = 3 WHERE {UNPAID}",
        f"UPDATE transfers SET id = gen_random_uuid() WHERE {UNPAID}",
        f"UPDATE transfers SET status = 'failed' WHERE {UNPAID}",
        (
            "INSERT INTO transfers (id, debit, credit, amount, strategy, run, status, attempts, redeliveries)"
            " SELECT gen_random_uuid(), 1, 2, 1, 'none', run, 'pending', 0, 0 FROM transfers LIMIT 1"
        ),
    ],
    "Who did it, how and when": [
        "UPDATE transfers SET strategy = 'none', instance = 'w9', thread = NULL, attempts = 7, redeliveries = 7",
        "UPDATE transfers SET reason = 'none', accepted_at = 'infinity'",
        "UPDATE transfers SET decided_at = 'infinity' WHERE status = 'applied'",
        "UPDATE entries SET read_at = '2001-01-01', written_at = NULL",
        "UPDATE accounts SET version = 7",
    ],
    "A `seq` that keeps the order": ["UPDATE entries SET seq = seq - 1 WHERE id IN (1, 6)"],
    "A history that fits": [
        (
            f"UPDATE transfers SET id = '{order(99, 1, 2, 3).id}' WHERE {FIRST};"
            f"UPDATE entries SET transfer_id = '{order(99, 1, 2, 3).id}' WHERE id IN (1, 2)"
        ),
    ],
    "What lies beside the money": [
        "TRUNCATE runs",
        "UPDATE runs SET queue = 'elsewhere', chunk = -1, think_ms = 'NaN'",
        "DROP TABLE fences",
        "DROP INDEX entries_by_account",
    ],
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_the_page_lists_is_not_found(mixed_bank: Database, kind: str) -> None:
    for statement in HARMLESS[kind]:
        with damaged(mixed_bank, statement) as transaction:
            assert examine(transaction).findings == [], statement


def test_the_page_lists_what_is_not_found() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("## What it cannot find")
    listed = re.findall(r"^- \*\*(.+?)\.\*\*", rest.partition("\n## ")[0], re.MULTILINE)
    assert listed == list(HARMLESS)


# --- What is told of a lost posting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["infinity", "-infinity", "10000-01-01", "0001-01-01"])
def test_a_lost_posting_without_a_time_is_found_and_not_told(bank: Database, branch: BranchMaker, at: str) -> None:
    one = branch("none")
    accept(bank, [order(1, 1, 2, 10), order(2, 1, 2, 5)], Submission("two", "none", "two"), forgettable=True)
    one.apply(order(1, 1, 2, 10))
    with bank.transaction() as transaction:
        transaction.execute("UPDATE accounts SET balance = 100, last_entry = NULL WHERE id IN (1, 2)")
    one.apply(order(2, 1, 2, 5))
    with bank.transaction() as transaction:
        transaction.execute("UPDATE entries SET read_at = %(at)s, written_at = %(at)s WHERE id IN (1, 2)", {"at": at})
        transaction.execute("UPDATE transfers SET decided_at = %(at)s", {"at": at})
    found = audit(bank)
    assert found.lost_postings == 2
    assert found.example is None
    assert {finding.kind for finding in found.findings} == {"balance", "lost posting", "time"}
    assert read_scene(bank, found) == []
    assert read_history(bank).clobbers[-1] == 2
    assert math.isfinite(read_seconds(bank))
    with bank.transaction() as transaction:  # as on a server that keeps no commit times
        by_writes = transaction.execute(TOTALS.replace("{at}", "e.written_at"), {"samples": SAMPLES}).fetchall()
    assert by_writes[-1][3] == 2
    with bank.transaction() as transaction:
        assert [told.entry for told in tell(transaction, [1, 2, 3, 4])] == [3, 4]


def test_a_lost_posting_of_another_age_is_told_among_its_neighbours(bank: Database, branch: BranchMaker) -> None:
    one = branch("none")
    accept(bank, [order(1, 1, 2, 10), order(2, 1, 2, 5)], Submission("two", "none", "two"), forgettable=True)
    one.apply(order(1, 1, 2, 10))
    with bank.transaction() as transaction:
        transaction.execute("UPDATE accounts SET balance = 100, last_entry = NULL WHERE id IN (1, 2)")
    one.apply(order(2, 1, 2, 5))
    with bank.transaction() as transaction:
        transaction.execute("UPDATE entries SET read_at = '0002-01-02' WHERE id IN (1, 2)")
        transaction.execute("UPDATE entries SET written_at = '9998-12-30' WHERE id IN (3, 4)")
    found = audit(bank)
    assert found.example is not None
    assert [told.entry for told in read_scene(bank, found)] == [told.entry for told in found.example]


def test_numbers_at_the_edge_are_drawn_as_they_are(mixed_bank: Database) -> None:
    most = 9223372036854775807
    with mixed_bank.transaction() as transaction:
        transaction.execute(f"UPDATE entries SET before = -{most}, after = {most} WHERE id = 10")
        transaction.execute(f"UPDATE accounts SET balance = -{most} WHERE id = 2")
    found = audit(mixed_bank)
    assert found.drift < -most // 2
    assert read_history(mixed_bank).drift[-1] > most // 2
