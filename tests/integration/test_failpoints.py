"""Failpoints are where they say they are, in every strategy, and nobody reaches them uninvited."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from pydantic import SecretStr

from bank.errors import Rejected
from bank.orders import Order
from bank.postgres.database import Database
from bank.settings import Settings
from bank.strategies import STRATEGIES
from workers.broker.messages import Job, message
from workers.control.failpoints import Failpoint, Failpoints
from workers.process.instance import Instance
from workers.submission import Submission, accept

KEY = "a key"


@pytest.fixture
def instance(bank: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """An instance with failpoints, which notes what it reaches."""
    opened = Instance(settings.model_copy(update={"failpoint_key": SecretStr(KEY), "threads": 2}))
    yield opened
    opened.close()


def reached(instance: Instance, bank: Database, strategy: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Apply one transfer and return the points that it came to, with how many accounts were written by then."""
    found: list[str] = []
    assert instance.failpoints is not None

    def note(point: str, transfer: str | None = None) -> None:
        if transfer in (None, str(order.id)):
            found.append(point)

    monkeypatch.setattr(instance.failpoints, "reach", note)
    instance.failpoints.arm(KEY, Failpoint("claim", "kill"))
    order = Order(uuid4(), 1, 2, 10)
    accept(bank, [order], Submission(f"test-{strategy}", strategy, "test"), forgettable=True)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(instance.apply, Job.parse(message([order], run="test", strategy=strategy))).result()
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_transfer_comes_to_every_point_once_and_in_their_order(
    instance: Instance, bank: Database, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = reached(instance, bank, strategy, monkeypatch)
    points = ["claim", "after-read", "between-writes", "before-commit", "after-commit"]
    # What makes this one wrong is that it looks before the transaction begins.
    assert found == (["after-read", *points] if strategy == "check-then-debit" else points)


def test_who_has_no_key_arms_nothing() -> None:
    failpoints = Failpoints(SecretStr(KEY))
    with pytest.raises(Rejected, match="needs the key"):
        failpoints.arm("another", Failpoint("claim", "kill"))
    failpoints.reach("claim")  # and goes on


def test_a_place_or_an_action_that_does_not_exist_is_refused() -> None:
    failpoints = Failpoints(SecretStr(KEY))
    for failpoint in (Failpoint("everywhere", "kill"), Failpoint("claim", "explode")):  # type: ignore[arg-type]
        with pytest.raises(Rejected, match="there is no failpoint"):
            failpoints.arm(KEY, failpoint)


def test_an_instance_that_was_started_without_a_key_has_no_failpoints(settings: Settings) -> None:
    instance = Instance(settings)
    assert instance.failpoints is None
    instance.close()
