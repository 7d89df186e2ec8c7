"""A cable that is out for a while, and a host that is gone for good, while transfers flow.

What was lost, and what took effect twice, is for the audit to say, which scripts/trigger.py ends with.
"""

from __future__ import annotations

import time

import pytest

from tests.hosts import network
from tests.hosts.conftest import REDELIVERIES, Hosts
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(540)

TWO = (("worker-1", "worker-1"), ("worker-2", "worker-2"))
WAITS = {
    "BANKRUN_LEASE_TTL_MS": "500",
    "BANKRUN_LOCK_TIMEOUT_MS": "1500",
    "BANKRUN_IDLE_TIMEOUT_MS": "4000",
    "BANKRUN_ATTEMPT_TIMEOUT_MS": "5000",
    "BANKRUN_VISIBILITY_TIMEOUT_MS": "8000",
    "BANKRUN_PATIENCE_MS": "5000",
    "BANKRUN_RECONCILE_MS": "1000",
}
"""In the same order as by default, and shorter, since a fault has to outlast them."""
CUT_SECONDS = 7
TRANSFERS = 4_000
FLOW = ("--transfers", str(TRANSFERS), "--think-ms", "10", "--reset")


def test_a_host_is_cut_off_and_comes_back(hosts: Hosts) -> None:
    with hosts.workers(TWO, **WAITS):
        trigger = hosts.trigger(*FLOW)
        hosts.wait_for_the_middle(TRANSFERS)
        hosts["worker-1"].cut()
        before = hosts.postgres.pending
        time.sleep(CUT_SECONDS)
        assert wait_until(lambda: hosts.postgres.pending < before - 100, 60), "the other host does nothing"
        hosts["worker-1"].mend()
        said = hosts.end_of(trigger)
        assert "4,000 applied" in said
        assert "all five invariants hold" in said

        def takes_part_again() -> bool:
            return "  worker-1: " in hosts.end_of(hosts.trigger("--transfers", "200", "--reset"))

        assert wait_until(takes_part_again, 60)


def test_a_host_vanishes_for_good(hosts: Hosts) -> None:
    with hosts.workers(TWO, **WAITS) as running:
        trigger = hosts.trigger(*FLOW)
        hosts.wait_for_the_middle(TRANSFERS)
        hosts["worker-2"].vanish()
        try:
            said = hosts.end_of(trigger)
            assert "4,000 applied" in said
            assert "all five invariants hold" in said
            assert hosts.postgres.ask(REDELIVERIES) > 0, "what the host had held has not come back"
            assert running["worker-1"].process is not None
            assert running["worker-1"].process.poll() is None
        finally:
            network.add(hosts["worker-2"])  # another one, for the next test
