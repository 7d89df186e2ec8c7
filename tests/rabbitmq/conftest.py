"""One RabbitMQ for all tests here: one of our own, where it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.places import make_place
from tests.rabbitmq.server import Server, running_server, why_not


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Server]:
    """A server that can be restarted, and that has never been used."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"RabbitMQ is not tested: {reason}")
    place = make_place("rabbitmq")
    try:
        with running_server(place) as server:
            yield server
    finally:
        shutil.rmtree(place, ignore_errors=True)
