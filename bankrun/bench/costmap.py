"""The cheapest correct strategy for each load: contention, time between read and write, number of instances."""

from __future__ import annotations

from collections.abc import Callable

from bank.strategies import STRATEGIES
from bankrun.results.models.bench import CostCell
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Plan
from bankrun.runs.progress import Silence
from bankrun.runs.session import Servers, open_lab

ACCOUNTS = (2, 10, 1_000)
THINK_MS = (0.0, 2.0, 10.0)
INSTANCES = (1, 2)
THREADS = 4
CANDIDATES = (
    *("thread-lock", "striped-lock", "row-lock", "single-statement", "atomic-update", "version-check"),
    *("serializable", "advisory-lock", "table-lock", "redis-lock"),
)
"""Those that apply one transfer in a transaction: a batch thinks once for a whole message, which is another load."""
CLOSE = 0.9
"""A strategy that reaches this part of the best rate is named beside it: between the two this map does not decide."""
CELL_SECONDS_MAX = 60.0


def cost_map(servers: Servers, *, transfers: int, seed: int, tell: Callable[[str], None]) -> list[CostCell]:
    """Measure every candidate whose claim covers the topology, under every load; who loses money there is left out."""
    cells = []
    for instances in INSTANCES:
        topology = Topology(instances, THREADS)
        with open_lab(servers, instances=instances, threads=THREADS) as lab:
            for accounts in ACCOUNTS:
                for think_ms in THINK_MS:
                    rates: dict[str, float] = {}
                    for name in CANDIDATES:
                        if not STRATEGIES[name].claim.covers(instances=instances, threads=THREADS, hosts=1):
                            continue
                        tell(f"cost map: {name} on {topology}, {accounts} accounts, {think_ms:g} ms")
                        workload = Workload(accounts=accounts, transfers=transfers, think_ms=think_ms)
                        plan = Plan((name,), (topology,), workload, seed, 1, 0, CELL_SECONDS_MAX)
                        run = lab.run(name, topology, plan, Silence())
                        if run.held and not run.pending:
                            rates[name] = run.transfers_per_s
                    cells.append(CostCell(instances, THREADS, accounts, think_ms, cheapest(rates), rates))
    return cells


def cheapest(rates: dict[str, float]) -> list[str]:
    """Return the fastest, and those that are about as fast, best first."""
    best = max(rates.values(), default=0.0)
    return sorted((name for name, rate in rates.items() if rate >= CLOSE * best), key=lambda name: -rates[name])
