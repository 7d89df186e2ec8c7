"""What a run's meters say of all instances together."""

from __future__ import annotations

import pytest

from bank.receipts import Receipt
from workers.process.meter import Meter, Readings


def readings(*receipts: Receipt) -> Readings:
    """Book each receipt in an instance of its own."""
    together = Readings()
    for number, receipt in enumerate(receipts):
        meter = Meter(1)
        meter.book(receipt)
        together.add(f"w{number}", meter.reading(0))
    return together


def test_what_a_transfer_costs_is_split_without_a_remainder() -> None:
    one = Receipt(
        outcome="applied",
        first=True,
        attempts=1,
        seconds=0.010,
        guard_seconds=0.004,
        move_seconds=0.003,
        commit_seconds=0.001,
    )
    two = Receipt(outcome="applied", first=True, attempts=2, seconds=0.020, move_seconds=0.003, backoff_seconds=0.010)
    cost = readings(one, two).cost_ms()
    assert cost == pytest.approx({"guard": 2.0, "move": 3.0, "commit": 0.5, "backoff": 5.0, "rest": 4.5})


def test_the_distribution_has_every_transfer_in_the_bucket_that_its_latency_is_in() -> None:
    counts = readings(
        *(Receipt(outcome="applied", first=True, attempts=1, seconds=ms / 1000) for ms in (1, 1, 2, 64))
    ).latency_counts()
    assert sum(count for _, count in counts) == 4
    bounds = [bound for bound, _ in counts]
    assert bounds == sorted(bounds)
    assert counts[0][1] == 2
    assert counts[0][0] == pytest.approx(1, rel=0.2)
    assert counts[-1][0] == pytest.approx(64, rel=0.2)


def test_a_second_delivery_costs_nothing_and_is_counted() -> None:
    together = readings(Receipt(outcome="applied", first=False, attempts=1, seconds=0.5))
    assert (together.cost_ms(), together.latency_counts()) == ({}, [])
    assert together.counts["repeated"] == 1
