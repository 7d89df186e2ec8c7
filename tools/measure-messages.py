# ruff: noqa: INP001, T201 - a script, which prints
"""Measure settings of the message path beside each other, in turn, on one pair of servers.

    .venv/bin/python tools/measure-messages.py --rounds 5 \
        --variant 'kombu:receive_many=false' --variant 'now:' \
        --what celery-noop --what row-lock --what dramatiq --what single-statement --what 'huey single-statement'

A variant is a name and settings, as in BANKRUN_RECEIVE_MANY without the prefix; a queue of another project has no
variants, and is measured with the last one. Rates need a quiet machine. CPU time for a message, switches and round
trips need none: of the workers from /proc (Linux), of Redis from INFO. `idle` is ten seconds without work, a second
each; `pause` sends one message after each second without; `think` has 20 ms of think time, and says how evenly the
instances shared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import redis

from bank.settings import Settings, read_settings
from bank.strategies.redis_lock import redis_url
from bankrun.bench import peers, rates
from bankrun.bench.rates import Contestant
from bankrun.results.models.bench import NOOP, QUEUE_ROWS
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Lab
from bankrun.runs.delivery import Delivery
from bankrun.runs.session import Servers, open_lab, open_servers
from workers.app import NOOP_TASK
from workers.submission import Submission

IDLE_SECONDS = 10
PAUSES = 15
PAUSE_SECONDS = 1.1
THINK_MS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """What processes and Redis have used up so far."""

    cpu_seconds: float
    redis_seconds: float
    switches: int
    redis_reads: int

    @classmethod
    def by(cls, pids: list[int], client: redis.Redis) -> Used:
        """Read it."""
        server = client.info()
        return cls(
            sum(map(_cpu_seconds, pids)),
            _cpu_seconds(server["process_id"]),
            sum(map(_switches, pids)),
            server["total_reads_processed"],
        )

    def for_each(self, before: Used, count: int) -> dict[str, float]:
        """Return what was used since, for one of so many."""
        return {
            "cpu_us": 1e6 * (self.cpu_seconds - before.cpu_seconds) / count,
            "redis_us": 1e6 * (self.redis_seconds - before.redis_seconds) / count,
            "switches": (self.switches - before.switches) / count,
            "round_trips": (self.redis_reads - before.redis_reads) / count,
        }


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _switches(pid: int) -> int:
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        count += int(lines["voluntary_ctxt_switches"])
    return count


@contextmanager
def _peers_used(used: list[Used], client: redis.Redis) -> Iterator[None]:
    """Note what a peer's processes have used when they begin, and when the last transfer is decided."""
    waits = peers.wait

    def wait(*arguments: Any, **options: Any) -> None:
        if "what" in options:  # until they are ready
            waits(*arguments, **options)
            return
        mine = [child.pid for child in psutil.process_iter(["cmdline"]) if _is_peer(child.info["cmdline"])]
        used.append(Used.by(mine, client))
        waits(*arguments, **options)
        used.append(Used.by(mine, client))

    peers.wait = wait  # type: ignore[assignment]
    try:
        yield
    finally:
        peers.wait = waits


def _is_peer(command: list[str] | None) -> bool:
    return "bankrun.bench.peers.process" in (command or [])


def measure(servers: Servers, lab: Lab, what: str, shape: Topology, transfers: int, seed: int) -> dict[str, float]:
    """Measure one thing once."""
    assert servers.settings.broker_url is not None
    client = redis.Redis.from_url(redis_url(servers.settings.broker_url.get_secret_value()))
    pids = [info.pid for info in lab.instances]
    if what == "pause":
        delays = sorted(_pause_ms(lab, number) for number in range(PAUSES))
        return {"median_ms": statistics.median(delays), "max_ms": delays[-1]}
    one = Contestant("row-lock" if what == "think" else what, shape, weight=2.0 if what == NOOP else 1.0)
    workload = one.workload(transfers)
    if what == NOOP:
        rates._rate(servers, lab, one, replace(workload, transfers=200), seed)  # noqa: SLF001 - a script's licence
    before = Used.by(pids, client)
    if what == "idle":
        time.sleep(IDLE_SECONDS)
        return Used.by(pids, client).for_each(before, IDLE_SECONDS)
    if what == "think":
        return _think(servers, lab, one, replace(workload, think_ms=THINK_MS), seed)
    used: list[Used] = []
    with _peers_used(used, client):
        rate = rates._rate(servers, lab, one, workload, seed)  # noqa: SLF001
    before, after = used or (before, Used.by(pids, client))
    return {"rate": rate, **after.for_each(before, workload.transfers)}


def _pause_ms(lab: Lab, number: int) -> float:
    name = lab.next_name()
    orders = list(Workload(transfers=1).orders(number))
    with Delivery(lab, Submission(name, "none", name)) as delivery:
        delivery.join(lab.instances)
        delivery.publish(orders, task=NOOP_TASK)  # the first one makes connections
        time.sleep(PAUSE_SECONDS)
        lab.fleet.read_meters(name, lab.instances)
        time.sleep(PAUSE_SECONDS)
        began = time.time()
        delivery.publish(orders, task=NOOP_TASK)
        time.sleep(0.2)
        readings = lab.fleet.read_meters(name, lab.instances)
    return 1000 * (min(readings._began_at) - began)  # noqa: SLF001


def _think(servers: Servers, lab: Lab, one: Contestant, workload: Workload, seed: int) -> dict[str, float]:
    plan = rates.Plan((one.name,), (one.topology,), workload, seed)
    run = lab.run(one.name, one.topology, plan, rates.Silence())
    with servers.database.transaction() as transaction:
        rows = transaction.execute("SELECT count(*) FROM transfers GROUP BY instance ORDER BY 1").fetchall()
    return {"rate": run.transfers_per_s, "least": rows[0][0], "most": rows[-1][0]}


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """Return a variant's name and its settings."""
    name, _, pairs = text.partition(":")
    return name, {key: json.loads(value) for key, _, value in (one.partition("=") for one in pairs.split(",") if one)}


def main() -> None:
    """Measure, and print a line for each thing and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", type=parse_variant)
    parser.add_argument("--what", action="append", default=[])
    parser.add_argument("--topology", type=Topology.parse, default="2x4")
    parser.add_argument("--transfers", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    variants = given.variant or [("now", {})]
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with open_servers(read_settings()) as servers:
        for number in range(given.rounds):
            for place, (name, update) in enumerate(variants if number % 2 == 0 else variants[::-1]):
                changed: Settings = servers.settings.model_copy(update=update)
                some = replace(servers, settings=changed)
                with open_lab(some, instances=given.topology.instances, threads=given.topology.threads) as lab:
                    for what in given.what or [NOOP, "row-lock", "single-statement"]:
                        if what in QUEUE_ROWS and place < len(variants) - 1:
                            continue
                        one = measure(some, lab, what, given.topology, given.transfers, number + 1)
                        found[what, "" if what in QUEUE_ROWS else name].append(one)
                        shown = {key: round(value, 2) for key, value in one.items()}
                        print(f"round {number + 1}: {what} {name}: {shown} load {os.getloadavg()[0]:.1f}", flush=True)
    print()
    for (what, name), rounds in found.items():
        medians = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
        print(f"{what:28} {name:10} {medians}  {[round(one['rate']) for one in rounds if 'rate' in one]}")


if __name__ == "__main__":
    main()
