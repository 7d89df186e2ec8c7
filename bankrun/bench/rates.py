"""What is measured, and how: every contestant once a round, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

from bank.errors import BankError
from bank.outside import known_strategy
from bank.postgres.schema import open_bank
from bank.strategies import Claim, takes_chunks
from bankrun.bench import peers
from bankrun.bench.pgbench import SCRIPTS, pgbench_rate
from bankrun.bench.rabbitmq import lab_on_rabbitmq
from bankrun.bench.rules import PATIENCE, check_kept
from bankrun.errors import BankrunError
from bankrun.results.distance import NEAR
from bankrun.results.models.bench import (
    NOOP,
    PGBENCH,
    PGBENCH_ACCEPTED,
    QUEUE_ROWS,
    RABBITMQ_ROWS,
    BenchRow,
    MeasuredFrom,
    RateSpread,
)
from bankrun.results.models.comparison import Run
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Lab, Plan
from bankrun.runs.delivery import Delivery, any_pending, wait
from bankrun.runs.far import find_off
from bankrun.runs.progress import Silence
from bankrun.runs.session import Servers, open_lab
from workers.app import NOOP_TASK
from workers.submission import Submission

WARMUP = 100
SLICE_ORDERS = 20_000
NOISE_WIDE = 0.25
"""A spread (max - min) / median above this is called noisy."""


class Contestant(NamedTuple):
    """Its name, how many at once, how many transfers in a message, over how many accounts; ``weight`` scales these.

    ``pgbench`` and a chunk strategy are measured from before the acceptance on, ``celery-noop`` in messages, all others
    from the first claim on.
    """

    name: str
    topology: Topology
    chunk: int = 1
    accounts: int = 1_000
    weight: float = 1.0
    seconds: float | None = None
    """What it has not begun by then is withdrawn."""

    @property
    def what(self) -> tuple[str, Topology, int, int]:
        """What is measured, however much of it."""
        return self.name, self.topology, self.chunk, self.accounts

    def workload(self, transfers: int) -> Workload:
        """Return what it gets in a round, given what one with the weight 1 gets."""
        least = self.topology.instances * self.topology.threads
        return Workload(accounts=self.accounts, transfers=max(least, round(transfers * self.weight)), chunk=self.chunk)


@dataclass(slots=True)
class Row:
    """One contestant's rates over all rounds, in transfers (or messages) a second, and why some rounds have none."""

    contestant: Contestant
    rates: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Return the median rate."""
        return statistics.median(self.rates)

    @property
    def is_noisy(self) -> bool:
        """Whether the rounds differ so much that a small difference means nothing."""
        return (max(self.rates) - min(self.rates)) / self.median > NOISE_WIDE


@dataclass(frozen=True, slots=True)
class Rates:
    """All contestants of one run."""

    rows: list[Row]

    def find(self, name: str, topology: Topology, accounts: int = 1_000, chunk: int = 1) -> Row | None:
        """Return a contestant's row, if it was measured."""
        for row in self.rows:
            one = row.contestant
            if (one.name, one.topology, one.accounts, one.chunk) == (name, topology, accounts, chunk) and row.rates:
                return row
        return None

    def bound(
        self, topology: Topology, chunk: int = 1, accounts: int = 1_000, *, script: str = PGBENCH_ACCEPTED
    ) -> float | None:
        """Return 1/(1/n + 1/p): a message costs what a no-op costs, then the transfer what it costs pgbench."""
        noop = self.find(NOOP, topology, accounts, chunk)
        pgbench = self.find(script, topology, accounts)
        if noop is None or pgbench is None:
            return None
        return 1 / (1 / noop.median + 1 / pgbench.median)

    def faults(self) -> list[str]:
        """Return a sentence for each round that a contestant did not finish, or that lost money it claims to keep."""
        return [
            f"{row.contestant.name} on {row.contestant.topology}, chunk {row.contestant.chunk},"
            f" {row.contestant.accounts:,} accounts: {fault}"
            for row in self.rows
            for fault in row.faults
        ]

    def summarize(self) -> list[BenchRow]:
        """Return what is saved of each contestant that has a rate. A ratio without a counterpart is None."""
        return [self._summarize(row) for row in self.rows if row.rates]

    def _summarize(self, row: Row) -> BenchRow:
        one = row.contestant
        pgbench = self.find(PGBENCH, one.topology, one.accounts) or self.find(PGBENCH, one.topology)
        bound = self.bound(one.topology, one.chunk, one.accounts)
        return BenchRow(
            name=one.name,
            topology=str(one.topology),
            chunk=one.chunk,
            accounts=one.accounts,
            measured_from=measured_from(one.name),
            transfers_per_s=RateSpread(round(row.median, 1), round(min(row.rates), 1), round(max(row.rates), 1)),
            noisy=row.is_noisy,
            ratio_to_pgbench=None if pgbench is None else round(row.median / pgbench.median, 3),
            ratio_to_bound=None if bound is None else round(row.median / bound, 3),
        )


def measured_from(name: str) -> MeasuredFrom:
    """Return what a contestant's rate includes: all from the acceptance on, or from the claim on, or no transfer."""
    if RABBITMQ_ROWS.get(name, name) == NOOP:
        return "message"
    return "acceptance" if name == PGBENCH or is_chunk_strategy(name) else "claim"


def is_chunk_strategy(name: str) -> bool:
    """Whether a strategy applies whole messages."""
    strategy = known_strategy(name)
    return strategy is not None and takes_chunks(strategy)


def measure(
    servers: Servers,
    contestants: Sequence[Contestant],
    *,
    transfers: int,
    seed: int,
    rounds: int,
    tell: Callable[[str], None],
    rabbitmq_url: str = "",
) -> Rates:
    """Run every contestant once a round. Each topology gets a fleet that is exactly so large, anew in each round.

    A contestant that does not finish, or does not keep what it claims to keep, has no rate for that round and a fault
    instead; the others go on, on a new fleet. Raises BankError if there is no server to measure on.
    """
    rows = {one: Row(one) for one in contestants}
    for number in range(rounds):
        for topology, group in groupby(rows.values(), key=lambda row: row.contestant.topology):
            waiting = deque(group)
            while waiting:
                far = topology.distance != NEAR or any(row.contestant.seconds for row in waiting)
                with open_lab(servers, instances=topology.instances, threads=topology.threads, far=far) as lab:
                    while waiting:
                        row = waiting.popleft()
                        one = row.contestant
                        tell(f"round {number + 1} of {rounds}: {one.name} on {topology}, chunk {one.chunk}")
                        try:
                            rate = _rate(servers, lab, one, one.workload(transfers), seed + number, rabbitmq_url)
                        except (BankError, BankrunError) as fault:
                            tell(f"not measured: {fault}")
                            row.faults.append(f"round {number + 1}: {fault}")
                            break  # what it left standing in this fleet is not the next one's
                        if rate is not None:
                            row.rates.append(rate)
    return Rates(list(rows.values()))


def _rate(
    servers: Servers, lab: Lab, one: Contestant, workload: Workload, seed: int, rabbitmq_url: str = ""
) -> float | None:
    if one.name in RABBITMQ_ROWS:
        with lab_on_rabbitmq(servers, lab, rabbitmq_url, one.topology) as other:
            return _rate(servers, other, one._replace(name=RABBITMQ_ROWS[one.name]), workload, seed)
    if one.name in SCRIPTS:
        clients = one.topology.instances * one.topology.threads
        return pgbench_rate(lab.database, one.name, workload, clients=clients, seed=seed)
    if one.name == NOOP:
        return _noop_rate(lab, workload, one.topology, seed)
    if one.name in QUEUE_ROWS:
        return peers.rate(servers, lab, one.name, one.topology, workload, seed)
    if is_chunk_strategy(one.name):
        return end_to_end_rate(lab, one.name, one.topology, workload, seed)
    warmup = min(WARMUP, workload.transfers)
    plan = Plan((one.name,), (one.topology,), workload, seed, warmup=warmup, seconds=one.seconds)
    run = lab.run(one.name, one.topology, plan, Silence())
    _check(run)
    return run.transfers_per_s


def end_to_end_rate(lab: Lab, strategy: str, topology: Topology, workload: Workload, seed: int) -> float:
    """Return the rate from before the first acceptance to the last commit: accepting, publishing and working overlap.

    Raises BankError if a transfer stays pending or the audit fails.
    """
    lab.admit(strategy)
    warmup = replace(workload, transfers=min(workload.transfers, 2 * workload.chunk * topology.instances))
    for one in (warmup, workload):
        seconds = _end_to_end_seconds(lab, strategy, topology, one, seed)
    return workload.transfers / seconds


def _end_to_end_seconds(lab: Lab, strategy: str, topology: Topology, workload: Workload, seed: int) -> float:
    name = lab.next_name()
    orders = list(workload.orders(seed))
    submission = Submission(name, strategy, name, workload.chunk, threads=topology.threads)
    open_bank(lab.database, accounts=workload.accounts, opening=workload.opening)
    with Delivery(lab, submission) as delivery:
        delivery.join(lab.instances[: topology.instances])
        began = time.perf_counter()
        for first in range(0, len(orders), SLICE_ORDERS):
            part = orders[first : first + SLICE_ORDERS]
            delivery.accept(part)
            delivery.publish(part)
        wait(lambda: any_pending(lab.database), PATIENCE, check=lab.look_after)
        ended = time.perf_counter()
    check_kept(lab.database, strategy)
    return ended - began


def _check(run: Run) -> None:
    """Raise BankError if a run has no rate: one that does not keep what it claims to keep is no contestant.

    What claims nothing here is one: its rate is what a lock costs the others.
    """
    if run.pending:
        raise BankError(f"{run.strategy} did not finish: {run.pending:,} transfers are still pending")
    if run.faults:
        raise BankError(f"{next(iter(run.faults))}: a rate with that is no rate")
    if run.failed:
        raise BankError(f"{run.failed:,} transfers of {run.strategy} have failed: a rate without them is no rate")
    off = find_off(Topology.parse(run.topology).distance, run.distance_ms)
    if off:
        raise BankError(off[0])
    claims = Claim(run.claim).covers(instances=run.instances, threads=run.threads, hosts=run.hosts)
    if claims and not run.held:
        raise BankError(f"{run.strategy} did not keep the money: a rate of wrong transfers is no rate")


def _noop_rate(lab: Lab, workload: Workload, topology: Topology, seed: int) -> float:
    chosen = lab.instances[: topology.instances]
    orders = list(workload.orders(seed))
    name = lab.next_name()
    submission = Submission(name, "none", name, workload.chunk, threads=topology.threads)
    with Delivery(lab, submission) as delivery:
        delivery.publish(orders, task=NOOP_TASK)
        delivery.join(chosen)
        wait(lambda: lab.fleet.queue_length(name), PATIENCE, check=lab.look_after, what="messages are in the queue")
    seconds = lab.fleet.read_meters(name, chosen).seconds()
    if not seconds:
        raise BankError(f"{len(orders)} messages were too few to be timed")
    return len(orders) / seconds
