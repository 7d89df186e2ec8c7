"""Whatever a database presets, and whatever a pooler drops: our sessions have what they depend on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import make_url

from bank.audit import audit
from bank.errors import CannotStart, OutcomeUnknown, Unavailable
from bank.orders import Order
from bank.postgres import presets
from bank.postgres.connection import LeanConnection
from bank.postgres.database import Database, psql_url
from bank.postgres.presets import PINNED, UNPINNED, find_presets
from bank.postgres.roles import set_up_server
from bank.postgres.schema import create_schema, drop_schema, open_bank, open_for_lab, renew_schema, reset_bank
from bank.settings import Settings
from bank.strategies import STRATEGIES
from bank.teller import Teller
from bankrun.bench import peers
from bankrun.runs.doctor import examine
from bankrun.runs.session import open_servers
from bankrun.schedule import Server
from bankrun.servers import embedded
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from bankrun.servers.places import read_place
from tests.hostile import drawn
from workers.submission import Submission, accept

EXAMPLES = 300 if os.environ.get("SOUNDNESS") else 6
TABLES = ("accounts", "transfers", "entries", "runs", "fences")

ODD: dict[str, list[str]] = {
    "DateStyle": ["'SQL, DMY'", "German", "'Postgres, MDY'", "'ISO, YMD'"],
    "IntervalStyle": ["iso_8601", "sql_standard", "postgres_verbose"],
    "TimeZone": ["'Asia/Kathmandu'", "'America/St_Johns'", "'-12'"],
    "search_path": ["public", "public, pg_catalog", "nowhere", "''"],
    "default_transaction_isolation": ["serializable", "'repeatable read'"],
    "default_transaction_read_only": ["on"],
    "default_transaction_deferrable": ["on"],
    "statement_timeout": ["'9s'"],
    "lock_timeout": ["1"],
    "idle_in_transaction_session_timeout": ["1"],
    "idle_session_timeout": ["'9s'"],
    "transaction_timeout": ["'9s'"],
    "client_encoding": ["LATIN1", "SQL_ASCII", "WIN1252"],
    "bytea_output": ["escape"],
    "extra_float_digits": ["-15", "3"],
    "standard_conforming_strings": ["off"],
    "array_nulls": ["off"],
    "transform_null_equals": ["on"],
    "row_security": ["off"],
    "synchronous_commit": ["off", "local"],
    "session_replication_role": ["replica"],
    # What bankrun does not depend on.
    "plan_cache_mode": ["force_generic_plan"],
    "enable_indexscan": ["off"],
    "work_mem": ["64"],
    "quote_all_identifiers": ["on"],
    "client_min_messages": ["error", "debug1"],
    "backslash_quote": ["off"],
}
several = st.lists(st.sampled_from(sorted(ODD)), min_size=1, max_size=6, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(ODD[name]) for name in names})
)
Superuser = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def superuser(database: Database) -> Iterator[Superuser]:
    """A superuser's session, which makes the database ``preset`` for the test."""
    with psycopg.connect(psql_url(database.url), autocommit=True) as connection:
        connection.execute("CREATE DATABASE preset")
        try:
            yield connection
        finally:
            connection.execute("DROP DATABASE preset WITH (FORCE)")


@pytest.fixture
def url(database: Database, superuser: Superuser) -> str:
    """The address of that database."""
    return make_url(database.url).set(database="preset").render_as_string(hide_password=False)


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the way to Postgres drop the start-up packet's options, as pgbouncer does if it is told to ignore them."""
    monkeypatch.setattr(presets, "as_options", lambda wanted=PINNED: "")


def preset(superuser: Superuser, given: dict[str, str]) -> None:
    """Preset settings of the database, and no others."""
    superuser.execute("ALTER DATABASE preset RESET ALL")
    for name, value in given.items():
        superuser.execute(f"ALTER DATABASE preset SET {name} TO {value}".encode())


def transfer(url: str, settings: Settings) -> None:
    """Open a bank as the lab does, apply a transfer as a worker does, and audit it."""
    lab = open_for_lab(url)
    worker = Database.for_instance(url, instance="w1", threads=1, settings=settings)
    try:
        create_schema(lab)
        open_bank(lab, accounts=2, opening=100)
        order = Order(UUID(int=1), 1, 2, 10)
        accept(lab, [order], Submission("test", "row-lock", "test"), forgettable=True)
        teller = Teller(worker, instance="w1", guard_timeout_seconds=1, patience_seconds=1)
        assert teller.apply(order, STRATEGIES["row-lock"].open(settings)).outcome == "applied"
        found = audit(lab)
        assert found.passed, found
        check_pinned(lab)
    finally:
        worker.close()
        lab.close()


def check_pinned(database: Database) -> None:
    with database.transaction() as transaction:
        now = "SELECT name, current_setting(name) FROM unnest(%(names)s::text[]) name"
        found = dict(transaction.execute(now, {"names": list(PINNED)}).fetchall())
        # "transaction_isolation": what a transaction that says nothing has got.
        assert transaction.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
    assert found == PINNED


@pytest.mark.timeout(900 if os.environ.get("SOUNDNESS") else 120)
@pytest.mark.parametrize("drops", [False, True], ids=["direct", "pooled"])
def test_with_any_presets_a_transfer_is_accepted_applied_and_audited(
    superuser: Superuser, url: str, settings: Settings, drops: bool, request: pytest.FixtureRequest
) -> None:
    if drops:
        request.getfixturevalue("pooled")
    everything = {name: values[0] for name, values in ODD.items()}
    for given in (everything, *drawn(several, EXAMPLES)):
        preset(superuser, given)
        try:
            transfer(url, settings)
            database = open_for_lab(url)
            with database.engine.connect() as connection:
                named = {one.name for one in find_presets(connection) if one.whose == "the database preset"}
            database.close()
        except Exception as error:
            error.add_note(f"with {given}")
            raise
        assert named == given.keys() & {*PINNED, *UNPINNED}


def test_the_doctor_names_what_is_preset_and_what_was_dropped(
    superuser: Superuser, url: str, settings: Settings, pooled: None, tmp_path: Path
) -> None:
    preset(superuser, {name: ODD[name][0] for name in ("DateStyle", "default_transaction_read_only")})
    superuser.execute("ALTER DATABASE preset SET session_replication_role TO replica")
    superuser.execute("ALTER ROLE bankrun_worker IN DATABASE preset SET synchronous_commit TO off")
    wanted = settings.model_copy(update={"database_url": SecretStr(url), "state_dir": tmp_path})
    with open_servers(wanted) as servers:
        create_schema(servers.database)
        checks = {check.name: check for check in examine(servers)}
    assert "not taken on the way" in checks["start-up options"].found
    assert checks["session presets"].found == (
        "not for bankrun: DateStyle=SQL, DMY of the database preset, "
        "default_transaction_read_only=on of the database preset"
    )
    assert not checks["session_replication_role"].ok
    assert (checks["synchronous_commit"].ok, checks["synchronous_commit"].found) == (
        False,
        "off of the role bankrun_worker in the database preset",
    )


def test_without_presets_the_doctor_finds_none(settings: Settings, database: Database, tmp_path: Path) -> None:
    with open_servers(settings.model_copy(update={"state_dir": tmp_path})) as servers:
        checks = {check.name: check.found for check in examine(servers)}
    assert (checks["start-up options"], checks["session presets"]) == ("taken", "none that matter")


def test_a_new_session_costs_one_round_trip_and_a_transaction_none(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with (tmp_path / "trace").open("w+") as trace:

        def connect(*arguments: Any, **options: Any) -> LeanConnection:
            connection = LeanConnection.connect(*arguments, **options)
            connection.pgconn.trace(trace.fileno())
            return connection

        def asked() -> int:
            trace.seek(0)
            sent = [line.split("\t") for line in trace.read().splitlines()]
            return sum("F" in line and line[-2 if len(line) > 4 else -1] in ("Sync", "Query") for line in sent)

        worker = Database.for_instance(database.url, instance="w1", threads=1, settings=settings, connect=connect)
        worker._open_session().close()
        opened = asked()
        with worker.transaction() as transaction:
            transaction.execute("SELECT 1")
        before = asked()
        with worker.transaction() as transaction:
            transaction.execute("SELECT 1")
        after = asked()
        worker.close()
    assert (opened, after - before) == (1, 3)  # BEGIN, the statement, COMMIT


def test_a_setting_that_a_server_refuses_is_named(worker_url: str, pooled: None) -> None:
    greedy = Database(worker_url, connections_max=1, application_name="test", options={"log_min_messages": "debug1"})
    with pytest.raises(CannotStart, match='permission denied to set parameter "log_min_messages"'):
        greedy.engine.connect()
    with pytest.raises(Unavailable, match="log_min_messages"), greedy.transaction():
        pass  # a worker tries again
    greedy.close()


def test_the_addresss_own_options_stay(database: Database) -> None:
    url = make_url(database.url).update_query_dict({"options": "-c work_mem=1234kB -c lock_timeout=7"})
    own = Database(url.render_as_string(hide_password=False), connections_max=1, application_name="test", options={})
    with own.transaction() as transaction:
        assert transaction.execute("SHOW work_mem").fetchone() == ("1234kB",)
        assert transaction.execute("SHOW lock_timeout").fetchone() == ("0",)
    own.close()


def test_sessions_of_ours_that_know_no_bank_are_pinned_too(
    superuser: Superuser, url: str, database: Database, stack: tuple[Keeper, Endpoints]
) -> None:
    names = ("DateStyle", "default_transaction_read_only", "extra_float_digits", "statement_timeout", "client_encoding")
    preset(superuser, {name: ODD[name][0] for name in names})
    address = make_url(url)
    host, port = str(address.query["host"]), int(str(address.query["port"]))
    server = Server(host, port, str(address.username), None, "preset")
    place = read_place(psql_url(url))
    for connection in (server.connect(), place.connect()):
        with connection:
            found = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in names]
            assert found == [("ISO, MDY",), ("off",), ("1",), ("0",), ("UTF8",)]
    # The embedded server is set up, at every start, in a database that its owner may have given presets.
    superuser.execute("ALTER DATABASE bankrun SET default_transaction_read_only TO on")
    try:
        embedded._create_database(Path(host), set_up_server)
    finally:
        superuser.execute("ALTER DATABASE bankrun RESET ALL")


def hear_startup(client: socket.socket) -> None:
    """Take one client's start-up packet, without TLS."""
    while len(client.recv(4_096)) == 8:  # it asks for TLS, or for GSSAPI
        client.sendall(b"N")


def fall_silent(server: socket.socket) -> None:
    """Let one client log in, and say nothing any more until it leaves."""
    client, _ = server.accept()
    with client:
        hear_startup(client)
        client.sendall(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")
        while client.recv(4_096):
            pass


def test_a_network_that_says_nothing_after_the_login_keeps_no_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        silent = pool.submit(fall_silent, server)
        worker = Database(
            f"postgresql+psycopg://me@127.0.0.1:{server.getsockname()[1]}/bank",
            connections_max=1,
            application_name="test",
            options={},
            transaction_seconds_max=0.2,
        )
        with pytest.raises(OutcomeUnknown, match="no connection"), worker.transaction():
            pass
        worker.close()
        silent.result(timeout=5)


def refuse_options(server: socket.socket) -> None:
    """Answer two clients as pgbouncer does that was not told to ignore start-up options."""
    for _ in range(2):
        client, _ = server.accept()
        with client:
            hear_startup(client)
            fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            client.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)


def test_a_pooler_that_refuses_an_addresss_own_options_is_told_what_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        answered = pool.submit(refuse_options, server)
        with pytest.raises(CannotStart, match="pgbouncer: ignore_startup_parameters = options"):
            open_for_lab(f"postgresql+psycopg://me@127.0.0.1:{server.getsockname()[1]}/bank?options=-c%20jit%3Doff")
        answered.result()


# --- Nothing is emptied that is not ours


def rows_of(superuser_url: str, schema: str) -> list[int]:
    with psycopg.connect(superuser_url, options="-c search_path=pg_catalog") as connection:
        counted = [connection.execute(f"SELECT count(*) FROM {schema}.{name}".encode()).fetchone() for name in TABLES]
    return [row[0] for row in counted if row is not None]


def test_tables_of_the_same_names_in_another_schema_keep_their_rows(
    superuser: Superuser, url: str, settings: Settings, pooled: None
) -> None:
    lab = open_for_lab(url)
    create_schema(lab)
    address = psql_url(url)
    with psycopg.connect(address) as owner:
        for name in TABLES:
            owner.execute(f"CREATE TABLE public.{name} (LIKE bankrun.{name})".encode())
        owner.execute("INSERT INTO public.accounts SELECT n, 5, 5, NULL, 0 FROM generate_series(1, 3) n")
        owner.execute("INSERT INTO public.fences VALUES ('theirs', 7)")
    superuser.execute("ALTER DATABASE preset SET search_path TO public")
    before = rows_of(address, "public")
    transfer(url, settings)
    renew_schema(lab)
    open_bank(lab, accounts=5, opening=1)
    assert rows_of(address, "bankrun")[0] == 5
    drop_schema(lab)
    assert rows_of(address, "public") == before == [3, 0, 0, 0, 1]
    with psycopg.connect(address) as owner:
        assert owner.execute("SELECT sum(balance) FROM public.accounts").fetchone() == (15,)
    lab.close()


def test_a_table_that_inherits_from_ours_keeps_its_rows(superuser: Superuser, url: str) -> None:
    lab = open_for_lab(url)
    create_schema(lab)
    with lab.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.heir () INHERITS (bankrun.accounts)")
        connection.exec_driver_sql("INSERT INTO public.heir (id, opening, balance) VALUES (77, 1, 1)")
    open_bank(lab, accounts=2, opening=1)
    for drop in (renew_schema, drop_schema):
        with pytest.raises(CannotStart, match=r"public\.heir inherits from a table of bankrun"):
            drop(lab)
    with lab.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM public.heir").scalars().all() == [77]
    lab.close()


def test_the_marker_is_looked_at_in_the_transaction_that_empties(superuser: Superuser, url: str) -> None:
    lab = open_for_lab(url)
    create_schema(lab)
    open_bank(lab, accounts=2, opening=1)
    with psycopg.connect(psql_url(url)) as owner:
        owner.execute("COMMENT ON SCHEMA bankrun IS 'mine now'")
        with pytest.raises(CannotStart, match="was not made by bankrun: it was left untouched"):
            reset_bank(owner, [1], 1)
        assert owner.execute("SELECT count(*) FROM bankrun.accounts").fetchone() == (2,)
    lab.close()


def test_the_schema_of_another_queue_is_dropped_only_if_the_benchmark_made_it(superuser: Superuser, url: str) -> None:
    with psycopg.connect(psql_url(url), autocommit=True) as owner:
        owner.execute("CREATE SCHEMA bankrun_procrastinate")
        owner.execute("CREATE TABLE bankrun_procrastinate.jobs AS SELECT 1 AS id")
        peers.drop_schema(owner)
        assert owner.execute("SELECT id FROM bankrun_procrastinate.jobs").fetchone() == (1,)
        owner.execute(f"COMMENT ON SCHEMA bankrun_procrastinate IS '{peers.MARKER}'".encode())
        peers.drop_schema(owner)
        assert owner.execute("SELECT to_regnamespace('bankrun_procrastinate')").fetchone() == (None,)
