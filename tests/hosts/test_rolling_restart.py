"""All workers are restarted, one after the other, while transfers flow: what a Deployment does with a new image."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.hosts.conftest import REDELIVERIES, THREE, Hosts

pytestmark = pytest.mark.timeout(540)

TRANSFERS = 20_000
MORE = 5_000


def test_a_rolling_restart_loses_nothing(
    hosts: Hosts, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    with hosts.workers(THREE) as running:
        trigger = hosts.trigger("--transfers", str(TRANSFERS), "--accounts", "64", "--reset")
        hosts.wait_for_the_middle(TRANSFERS)
        seconds, total = [], TRANSFERS
        for worker in running.values():
            if hosts.postgres.pending < MORE // 2:  # where starting takes long, there would be nothing left to do
                hosts.end_of(trigger)
                trigger = hosts.trigger("--transfers", str(MORE))
                hosts.wait_for_the_middle(MORE)
                total += MORE
            seconds.append(worker.stop())
            worker.start()
            worker.wait_until_ready()
        said = hosts.end_of(trigger)
    assert f"{total:,} applied" in said
    assert "all five invariants hold" in said
    assert all(f"  {name}: " in said for name in running)
    again = hosts.postgres.ask(REDELIVERIES)
    assert again == 0, "a worker that was asked to end has left something undone that it held"
    record_property("delivered_again", again)
    with capsys.disabled():
        took = f"a worker took up to {max(seconds):.1f} s to end"
        sys.stdout.write(f"\n{again} of {total:,} were delivered again; {took} ")
