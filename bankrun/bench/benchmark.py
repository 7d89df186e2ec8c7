"""The benchmark that ``bankrun bench`` runs and saves: which contestants meet, and all that is measured around them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from bank.errors import CannotStart
from bank.strategies.single_statement import SingleStatement
from bankrun.bench import costmap, peers, scale
from bankrun.bench.rabbitmq import describe_rabbitmq
from bankrun.bench.rates import Contestant, measure
from bankrun.results.distance import Distance
from bankrun.results.models.bench import (
    NOOP,
    PGBENCH,
    PGBENCH_ACCEPTED,
    PGBENCH_SINGLE,
    QUEUE_ROWS,
    RABBITMQ_ROWS,
    Bench,
    FirstCell,
)
from bankrun.results.provenance import Provenance, check_seed, write_command
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.provenance import begin_with
from bankrun.runs.session import Servers, open_lab

ROUNDS_MAX = 1_000
SECONDS_FAR = 5.0
ACCOUNTS_FEW = 8
MAP_TRANSFERS = 300


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure. Raises CannotStart for what cannot be measured.

    ``transfers`` are those of a contestant with the weight 1 in each round. ``quick`` leaves out the other queues;
    ``full`` adds instances, threads, contention, a million transfers and the cost map. With ``distances``, the
    strategies are measured at each of these and nothing else is, with contention and without.
    """

    strategies: tuple[str, ...]
    topology: Topology
    transfers: int
    accounts: int
    chunk: int
    rounds: int
    seed: int
    quick: bool = False
    full: bool = False
    distances: tuple[Distance, ...] = ()
    rabbitmq_url: str = ""
    """A RabbitMQ to measure beside the embedded broker."""

    def __post_init__(self) -> None:
        Workload(accounts=self.accounts, transfers=self.transfers, chunk=self.chunk)  # which refuses what makes no bank
        if not 1 <= self.rounds <= ROUNDS_MAX:
            raise CannotStart(f"rounds={self.rounds}: it must be between 1 and {ROUNDS_MAX}")
        check_seed(self.seed)
        if self.quick and self.full:
            raise CannotStart("--quick and --full are opposites: give one of them")
        if self.distances and (self.quick or self.full):
            raise CannotStart("distances are measured by themselves: leave --quick and --full out")
        clients = self.topology.instances * self.topology.threads
        if self.transfers < clients:
            raise CannotStart(f"transfers={self.transfers}: each of the {clients} clients needs one")

    def command(self) -> str:
        """Return the command that repeats it."""
        return write_command(
            "bench",
            quick=self.quick,
            full=self.full,
            strategy=self.strategies,
            topology=str(self.topology),
            transfers=self.transfers,
            accounts=self.accounts,
            chunk=self.chunk,
            rounds=self.rounds,
            seed=self.seed,
            **({"distance_ms": [str(distance) for distance in self.distances]} if self.distances else {}),
        )

    def headline(self) -> list[Contestant]:
        """Return who is compared on one topology. The faster get more transfers, so that all take about as long."""
        shape, accounts, chunk = self.topology, self.accounts, self.chunk
        single = SingleStatement.name in self.strategies
        return [
            Contestant(PGBENCH, shape, 1, accounts, 2),
            Contestant(PGBENCH_ACCEPTED, shape, 1, accounts, 2),
            Contestant(NOOP, shape, chunk, accounts),
            *([Contestant(PGBENCH_SINGLE, shape, 1, accounts, 2)] if single else []),
            *(Contestant(name, shape, chunk, accounts) for name in self.strategies),
            *(Contestant("row-lock", shape, size, accounts, 2) for size in ((10,) if self.quick else (10, 50, 200))),
            *(Contestant("batch", shape, size, accounts, 60) for size in ((1_000,) if self.quick else (1_000, 5_000))),
        ]

    def around(self) -> list[Contestant]:
        """Return the same with more and fewer instances, threads and accounts: many rows, so each gets less to do.

        Only ``batch`` gets as much as in the headline: it is over so soon that what it begins with would count.
        """
        shape, accounts = self.topology, self.accounts
        others = [Topology(instances, shape.threads) for instances in (1, 2, 4)]
        threads = [Topology(shape.instances, threads) for threads in (1, 2, 8, 16)]
        return [
            *(
                Contestant(name, one, size, accounts, weight)
                for one in (*others, *threads)
                for name, size, weight in (
                    *((PGBENCH, 1, 1), (PGBENCH_ACCEPTED, 1, 1), (NOOP, 1, 0.5)),
                    *(("row-lock", 1, 0.5), (SingleStatement.name, 1, 0.5), ("row-lock", 10, 1), ("batch", 1_000, 60)),
                )
            ),
            *(
                Contestant(name, shape, size, number, weight)
                for number in (2, 10, 100, 10_000)
                for name, size, weight in (
                    *((PGBENCH, 1, 1), ("row-lock", 1, 0.5), (SingleStatement.name, 1, 0.5)),
                    *(("atomic-update", 1, 0.5), ("version-check", 1, 0.25), ("batch", 1_000, 60)),
                )
            ),
        ]

    def far(self) -> list[Contestant]:
        """Return the strategies at every distance: over a few accounts, and over many."""
        return [
            Contestant(name, replace(self.topology, distance=distance), 1, accounts, seconds=SECONDS_FAR)
            for distance in self.distances
            for accounts in dict.fromkeys((ACCOUNTS_FEW, self.accounts))
            for name in self.strategies
        ]

    def contestants(self, missing: set[str]) -> list[Contestant]:
        """Return all that are measured, without the queues that are missing."""
        if self.distances:
            return self.far()
        found = self.headline()
        if not self.quick:
            found += [
                Contestant(name, self.topology, 1, self.accounts)
                for name, (queue, _) in QUEUE_ROWS.items()
                if queue not in missing
            ]
        if self.rabbitmq_url:
            found += [
                Contestant(row, self.topology, 1, self.accounts)
                for row, name in RABBITMQ_ROWS.items()
                if name in (NOOP, *self.strategies)
            ]
        if self.full:
            found += self.around()
            found.sort(key=lambda one: (one.topology != self.topology, one.topology))
        once: dict[object, Contestant] = {}
        for one in found:
            once.setdefault(one.what, one)
        return list(once.values())


def run_benchmark(
    servers: Servers, plan: BenchPlan, tell: Callable[[str], None], *, first_cell: FirstCell | None, load_before: float
) -> Bench:
    """Measure everything. ``first_cell`` and the load average from before the servers were there are saved with it."""
    missing = {} if plan.quick or plan.distances else peers.missing(servers)
    result = Bench(_begin(servers, plan), plan.rounds, str(plan.topology), plan.accounts, missing)
    measured = measure(
        servers,
        plan.contestants(set(missing)),
        transfers=plan.transfers,
        seed=plan.seed,
        rounds=plan.rounds,
        tell=tell,
        rabbitmq_url=plan.rabbitmq_url,
    )
    result.rows = measured.summarize()
    result.bounds = {
        script: round(bound, 1)
        for script in (PGBENCH_ACCEPTED, PGBENCH_SINGLE)
        if (bound := measured.bound(plan.topology, accounts=plan.accounts, script=script)) is not None
    }
    result.faults = measured.faults()
    if plan.full:
        result.scale = scale.scale(servers, plan.topology, scale.SIZES, seed=plan.seed, tell=tell)
        result.cost_map = costmap.cost_map(servers, transfers=MAP_TRANSFERS, seed=plan.seed, tell=tell)
        result.first_cell_seconds = first_cell
    result.load_average = [round(load_before, 1), round(os.getloadavg()[0], 1)]
    return result


def _begin(servers: Servers, plan: BenchPlan) -> Provenance:
    other = {"rabbitmq": describe_rabbitmq(servers, plan.rabbitmq_url)} if plan.rabbitmq_url else {}
    with open_lab(servers, instances=plan.topology.instances, threads=plan.topology.threads) as lab:
        begun = begin_with(servers, plan.command(), lab.instances, seed=plan.seed)
        return replace(begun, environment={**begun.environment, **other})
