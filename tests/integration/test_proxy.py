"""A network that fails on demand, in front of a real Postgres."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from bank.postgres.database import Database, psql_url
from bankrun.results.distance import Distance
from bankrun.runs.far import Network, find_off
from bankrun.servers.network import Proxy

NAME = ".s.PGSQL.5432"


@pytest.fixture
def network(database: Database) -> Iterator[tuple[Proxy, str]]:
    """A proxy, and the address of Postgres behind it."""
    directory = Path(tempfile.mkdtemp(prefix="bankrun-"))
    url = make_url(database.url)
    with Proxy(directory / NAME, Path(str(url.query["host"])) / NAME) as proxy:
        yield proxy, psql_url(url.update_query_dict({"host": str(directory)}).render_as_string(hide_password=False))
    shutil.rmtree(directory)


@pytest.fixture
def table(database: Database) -> Iterator[str]:
    """A table outside the bank, gone after the test."""
    with psycopg.connect(psql_url(database.url), autocommit=True) as connection:
        connection.execute("CREATE TABLE bankrun.noted (n integer)")
        yield "bankrun.noted"
        connection.execute("DROP TABLE bankrun.noted")


def noted(database: Database) -> int:
    """Return how many rows the table has."""
    with psycopg.connect(psql_url(database.url)) as connection:
        row = connection.execute("SELECT count(*) FROM bankrun.noted").fetchone()
    assert row is not None
    return int(row[0])


def test_a_network_that_works_carries_everything(network: tuple[Proxy, str]) -> None:
    with psycopg.connect(network[1]) as connection:
        assert connection.execute("SELECT repeat('x', 300000)").fetchone() == ("x" * 300_000,)
        assert connection.execute("SELECT length(%s)", ("y" * 300_000,)).fetchone() == (300_000,)


def test_a_round_trip_takes_as_long_as_was_asked_for_and_bytes_keep_their_order(database: Database) -> None:
    with Network(database.url, ["w1", "w2"], threads=2) as network:
        for distance in (Distance(), Distance(20.0), Distance(own=(("w2", 7.0),))):
            network.place(distance)
            measured = network.measure(["w1", "w2"])
            # Other tests run beside this one: what is too slow is no fault of the network's.
            assert all(distance.of(name) <= ms < distance.of(name) + 15 for name, ms in measured.items()), measured
            faults = find_off(distance, {"w1": distance.of("w1") + 0.9, "w2": distance.of("w2") + 1.1})
            assert faults == [
                f"a round trip of w2 took {distance.of('w2') + 1.1:.1f} ms where {distance.of('w2'):g} were asked for"
            ]
        with psycopg.connect(psql_url(network.url("w2"))) as connection:
            assert connection.execute("SELECT length(%s), repeat('x', 300000)", ("y" * 300_000,)).fetchone() == (
                300_000,
                "x" * 300_000,
            )


def test_a_cut_ends_every_connection_and_the_next_one_is_served(network: tuple[Proxy, str]) -> None:
    proxy, url = network
    with psycopg.connect(url) as connection:
        assert proxy.cut() == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1")


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_commit_whose_answer_is_lost_has_taken_effect(
    network: tuple[Proxy, str], database: Database, table: str, autocommit: bool
) -> None:
    proxy, url = network
    came: list[bool] = []
    waiter = threading.Thread(target=lambda: came.append(proxy.swallow_commit(5)))
    waiter.start()
    time.sleep(0.05)

    def note() -> None:
        with psycopg.connect(url, autocommit=autocommit) as connection:
            connection.execute("SELECT 1")  # its answer says nothing of a COMMIT
            connection.execute("INSERT INTO bankrun.noted VALUES (1)")

    with pytest.raises(psycopg.OperationalError):
        note()
    waiter.join()
    assert came == [True]
    assert noted(database) == 1
    note()  # only one is lost
    assert noted(database) == 2


@pytest.mark.parametrize("fault", [Proxy.half_open, Proxy.silence])
def test_a_connection_that_is_dead_to_one_end_only_says_nothing_to_its_client(
    network: tuple[Proxy, str], fault: Any
) -> None:
    proxy, url = network
    connection = psycopg.connect(url)
    assert fault(proxy) == 1
    answered: list[object] = []

    def ask() -> None:
        try:
            answered.append(connection.execute("SELECT 1").fetchone())
        except psycopg.Error as error:
            answered.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(0.3)
    assert asking.is_alive()
    assert answered == []
    proxy.cut()
    asking.join(5)
    assert isinstance(answered[0], psycopg.OperationalError)
    connection.close()


def test_in_a_silent_network_a_new_connection_waits_until_it_speaks_again(network: tuple[Proxy, str]) -> None:
    proxy, url = network
    proxy.silence()
    connected: list[object] = []

    def connect() -> None:
        with psycopg.connect(url) as connection:
            connected.append(connection.execute("SELECT 1").fetchone())

    connecting = threading.Thread(target=connect)
    connecting.start()
    connecting.join(0.3)
    assert connected == []
    proxy.speak()
    connecting.join(5)
    assert connected == [(1,)]


def test_a_server_that_is_down_is_refused_as_without_a_proxy() -> None:
    directory = Path(tempfile.mkdtemp(prefix="bankrun-"))
    with Proxy(directory / NAME, directory / "nobody"), pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"host={directory} port=5432 user=x dbname=x")
    shutil.rmtree(directory)
