"""How a program is told which database to use."""

from __future__ import annotations

import pytest

from bankrun.errors import CannotStart
from bankrun.servers.places import read_place
from bankrun.trials.running.addresses import Address, read_templates

SOCKET = Address("/run/x y", 5432, "ann", "shop")
PORT = Address("127.0.0.1", 6000, "ann", "shop", "s/e:c@ret")


def test_a_socket_and_a_port_are_urls_that_drivers_read() -> None:
    assert SOCKET.url == "postgresql://ann@/shop?host=/run/x%20y&port=5432"
    assert PORT.url == "postgresql://ann:s%2Fe%3Ac%40ret@127.0.0.1:6000/shop"


def test_a_template_is_filled_in_and_its_scheme_replaces_that_of_the_url() -> None:
    templates = read_templates(["DB=postgresql+psycopg://{url}", "DB_HOST={host}", "DB_PORT={port}", "ALL={url}"])
    variables = PORT.environment(templates)
    assert variables["DB"] == PORT.url.replace("postgresql:", "postgresql+psycopg:")
    assert (variables["DB_HOST"], variables["DB_PORT"], variables["ALL"]) == ("127.0.0.1", "6000", PORT.url)
    assert (variables["PGHOST"], variables["PGDATABASE"], variables["PGPASSWORD"]) == ("127.0.0.1", "shop", "s/e:c@ret")


@pytest.mark.parametrize("given", ["X", "=x", "a b={url}", "X={nothing}", "X={", "X={0}"])
def test_a_template_that_cannot_be_filled_in_is_said(given: str) -> None:
    with pytest.raises(CannotStart, match="--env"):
        read_templates([given])


def test_a_given_server_is_read_from_its_url_and_tls_is_refused() -> None:
    place = read_place("postgresql+psycopg://ann:secret@db:6543/app")
    assert (place.host, place.port, place.user, place.password, place.database) == ("db", 6543, "ann", "secret", "app")
    for url, sentence in [
        ("mysql://x", "--database-url is"),
        ("postgresql://x/y?sslmode=verify-full", "asks for TLS"),
        ("postgresql://x:abc/y", "the port 'abc'"),
        ("postgresql://x:1,z:2/y", "the port '1,2'"),
    ]:
        with pytest.raises(CannotStart, match=sentence):
            read_place(url)
