"""Through a real pgbouncer: by session everything works, by transaction nothing begins, and each is said."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bank.errors import CannotStart
from bank.postgres import poolers
from bank.postgres.database import Database, psql_url
from bank.postgres.presets import PINNED
from bank.postgres.schema import open_for_lab
from bank.settings import Settings
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from tests.acceptance.conftest import SECONDS_MAX, Bankrun, environment
from tests.pgbouncer import PROGRAM, leave_behind, pgbouncer

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="there is no pgbouncer here: apt-get install pgbouncer"),
    pytest.mark.xdist_group("pooler"),
]
POOLS = {
    "sessions": "dbname=pooled pool_mode=session",
    "small": "dbname=pooled pool_mode=session pool_size=1",
    "transactions": "dbname=pooled pool_mode=transaction",
    "statements": "dbname=pooled pool_mode=statement",
}
# Debian's way: nothing is said of start-up options, so they are refused. And the way that drops them without a word,
# and hands on sessions as others left them.
WAYS: dict[str, dict[str, str]] = {
    "refused": {},
    "dropped": {"ignore_startup_parameters": "options", "server_reset_query": ""},
}
as_debian_has_it = pytest.mark.parametrize("pooler", ["refused"], indirect=True)
SHARED = "the pooler in between gives each transaction whichever session is free"


@pytest.fixture(scope="module")
def pooled_database(stack: tuple[Keeper, Endpoints]) -> Iterator[None]:
    """The database ``pooled``, in which sessions do not find what ours depend on unless they set it."""
    _, endpoints = stack
    with psycopg.connect(psql_url(endpoints.database_url), autocommit=True) as superuser:
        superuser.execute("CREATE DATABASE pooled")
        superuser.execute("ALTER DATABASE pooled SET search_path TO nowhere")
        superuser.execute("ALTER DATABASE pooled SET default_transaction_isolation TO serializable")
        yield
        superuser.execute("DROP DATABASE pooled WITH (FORCE)")


@pytest.fixture(scope="module", params=WAYS)
def pooler(request: pytest.FixtureRequest, stack: tuple[Keeper, Endpoints], pooled_database: None) -> Iterator[str]:
    """The address of a pgbouncer, in which ``{pool}`` is to be replaced."""
    keeper, endpoints = stack
    with pgbouncer(keeper, endpoints, POOLS, WAYS[request.param]) as url:
        yield url


def servers(pooler: str, stack: tuple[Keeper, Endpoints], pool: str = "sessions") -> dict[str, str]:
    """Return the variables that name both servers, Postgres by a pool."""
    return {"BANKRUN_DATABASE_URL": pooler.format(pool=pool), "BANKRUN_BROKER_URL": stack[1].broker_url}


@as_debian_has_it
def test_a_comparison_an_audit_and_the_doctor_work_by_session(
    bankrun: Bankrun, typed: Bankrun, pooler: str, stack: tuple[Keeper, Endpoints]
) -> None:
    given = servers(pooler, stack)
    words = ["--topology", "1x4", "--topology", "2x4", "--transfers", "400", "--accounts", "4", "--seed", "7"]
    done = bankrun("compare", *words, "--export-json", "-", **given)
    assert done.returncode == 0, done.stderr
    verdicts = {(cell["strategy"], cell["topology"]): cell["verdict"] for cell in json.loads(done.stdout)["cells"]}
    assert verdicts == {
        **{("none", topology): "broken" for topology in ("1x4", "2x4")},
        **{("row-lock", topology): "safe" for topology in ("1x4", "2x4")},
        ("thread-lock", "1x4"): "safe",
        ("thread-lock", "2x4"): "broken",
    }
    audited = typed("audit", **given)
    assert audited.returncode == 0, audited.stderr
    examined = typed("doctor", **given)
    assert "reached: through a pooler that keeps sessions" in examined.stdout
    assert "start-up options: not taken on the way" in examined.stdout


@pytest.mark.long
@as_debian_has_it
def test_the_script_sends_transfers_and_audits_by_session(
    cli_state: Path, tmp_path: Path, pooler: str, stack: tuple[Keeper, Endpoints]
) -> None:
    script = [sys.executable, "-P", str(ROOT / "scripts" / "trigger.py"), "--reset", "--transfers", "300"]
    done = subprocess.run(
        script,
        cwd=tmp_path,
        env=environment(cli_state, PYTHONPATH=str(ROOT), **servers(pooler, stack)),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "audit: all five invariants hold" in done.stdout


@as_debian_has_it
@pytest.mark.parametrize("pool", ["transactions", "statements"])
def test_by_transaction_nothing_begins(typed: Bankrun, pooler: str, stack: tuple[Keeper, Endpoints], pool: str) -> None:
    for command in (["doctor"], ["audit"], ["compare"]):
        done = typed(*command, **servers(pooler, stack, pool))
        assert done.returncode == 2, done.stderr
        assert SHARED in done.stderr
        assert "pool_mode = session" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_by_transaction_nothing_begins_while_others_are_at_work_either(pooler: str) -> None:
    url = pooler.format(pool="transactions")
    over = threading.Event()

    def work() -> None:
        with psycopg.connect(url, prepare_threshold=None) as connection:
            while not over.wait(0.002):
                with connection.transaction():
                    connection.execute("SELECT pg_sleep(0.002)")

    busy = [threading.Thread(target=work) for _ in range(6)]
    for thread in busy:
        thread.start()
    try:
        for _ in range(20):
            with pytest.raises(CannotStart, match=SHARED):
                open_for_lab(url)
    finally:
        over.set()
        for thread in busy:
            thread.join()


def test_a_session_has_what_it_depends_on_and_nothing_of_another_client(pooler: str, settings: Settings) -> None:
    url = pooler.format(pool="sessions")
    leave_behind(
        url,
        ["PREPARE lean_0 AS SELECT 1", "SELECT pg_advisory_lock(7)", "SET enable_hashjoin = off", "LISTEN something"],
    )
    worker = Database.for_instance(url, instance="w1", threads=2, settings=settings)
    try:
        with worker.transaction() as transaction:
            for _ in range(3):  # the second time it is prepared
                row = transaction.execute("SELECT %(n)s::int", {"n": 1}).fetchone()
            assert row == (1,)
            now = "SELECT name, current_setting(name) FROM unnest(%(names)s::text[]) name"
            found: dict[str, Any] = dict(transaction.execute(now, {"names": [*PINNED, "lock_timeout"]}).fetchall())
            assert found == {
                **PINNED,
                "lock_timeout": "5s",
                "statement_timeout": "10s",
                "idle_in_transaction_session_timeout": "15s",
            }
            left = (
                "SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), current_setting('enable_hashjoin')"
            )
            assert transaction.execute(left).fetchone() == (0, "on")
            name = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            assert transaction.execute(name).fetchone() == ("bankrun w1",)
    finally:
        worker.close()


def test_a_pooler_with_too_few_sessions_is_told_by_name(pooler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poolers, "ANSWER_SECONDS_MAX", 0.5)
    with pytest.raises(CannotStart, match=r"no second session within 0\.5 s.*pgbouncer: default_pool_size"):
        open_for_lab(pooler.format(pool="small"))


@as_debian_has_it  # the other way it goes without a word, and nobody can tell
def test_what_an_address_asks_for_is_not_dropped_without_a_word(pooler: str) -> None:
    url = pooler.format(pool="sessions") + "?options=-c%20work_mem%3D1234kB"
    with pytest.raises(CannotStart, match="take the options out of the address, or let the pooler in between ignore"):
        open_for_lab(url)


@as_debian_has_it
def test_interleavings_need_the_server_itself(typed: Bankrun, pooler: str, tmp_path: Path) -> None:
    url = pooler.format(pool="sessions")
    (tmp_path / "one.sql").write_text("SELECT 1;\n")
    for command in (["prove", "--strategy", "row-lock"], ["try", "one.sql"]):
        done = typed(*command, "--database-url", url)
        assert done.returncode == 2, done.stderr
        assert "is a pooler: who waits for whom is told by the backend" in done.stderr
        assert "give the address of Postgres itself" in done.stderr


def test_a_server_itself_is_reached_directly(stack: tuple[Keeper, Endpoints]) -> None:
    lab = open_for_lab(stack[1].database_url)
    try:
        assert not lab.is_pooled
    finally:
        lab.close()


def test_two_clients_that_share_a_session_are_found_out_however_it_is_handed_round(pooler: str) -> None:
    url = pooler.format(pool="transactions")
    with psycopg.connect(url) as first, psycopg.connect(url) as holder:
        holder.execute("SELECT 1")  # keeps a session to itself, so the pool has more than one to give
        with pytest.raises(CannotStart, match=SHARED):
            poolers.check_keeps_sessions(first, lambda: psycopg.connect(url))
