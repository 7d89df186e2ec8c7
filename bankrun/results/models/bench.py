"""A benchmark: rates of strategies beside pgbench, messages that do nothing and other queues; all on one machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from bankrun.results.provenance import Count, Provenance
from bankrun.results.reading import validate

PGBENCH = "pgbench"
PGBENCH_ACCEPTED = "pgbench-accepted"
PGBENCH_SINGLE = "pgbench-single-statement"
NOOP = "celery-noop"
QUEUES = ("dramatiq", "huey", "procrastinate", "threads")
"""Other ways to run the same transfer, each with QUEUE_STRATEGIES."""
QUEUE_STRATEGIES = ("row-lock", "single-statement")
QUEUE_ROWS = {
    queue if strategy == QUEUE_STRATEGIES[0] else f"{queue} {strategy}": (queue, strategy)
    for strategy in QUEUE_STRATEGIES
    for queue in QUEUES
}
"""Each queue with each strategy, by the name of its row: that of the first strategy is the queue's own."""
RABBITMQ_ROWS = {f"rabbitmq {name}": name for name in (NOOP, *QUEUE_STRATEGIES)}
"""The same contestants with RabbitMQ in Redis' place, by the name of their row."""

MeasuredFrom = Literal["acceptance", "claim", "message"]
Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class RateSpread:
    """Rates of several rounds, in transfers (or messages) a second."""

    median: Rate
    min: Rate
    max: Rate


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One contestant. A ratio that has no counterpart in this run is None.

    ``measured_from`` is what a rate includes: all from the acceptance on, or from the first claim on, or no transfer.
    ``noisy``: the rounds differ so much that a small difference means nothing.
    """

    name: str
    topology: str
    chunk: int
    accounts: int
    measured_from: MeasuredFrom
    transfers_per_s: RateSpread
    noisy: bool
    ratio_to_pgbench: float | None
    ratio_to_bound: float | None


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """How often one transfer waits for Postgres, and how often while it keeps others out of an account or a guard."""

    total: int
    holding: int


@dataclass(slots=True)
class ScaleStep:
    """What one bank of so many transfers took, in seconds; the audit's peak memory in MB."""

    transfers: Count
    generate_seconds: float = 0.0
    accept_seconds: float = 0.0
    publish_seconds: float = 0.0
    apply_seconds: float = 0.0
    audit_seconds: float = 0.0
    audit_peak_mb: int = 0


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The resident memory of each worker in MB, before and after."""

    idle: list[int]
    after: list[int]


@dataclass(frozen=True, slots=True)
class Scale:
    """Ever more transfers with ``batch``, each step in a bank of its own."""

    topology: str
    steps: list[ScaleStep]
    worker_mb: WorkerMemory


@dataclass(frozen=True, slots=True)
class CostCell:
    """One load, the rate of every strategy that kept the money there, and which are the cheapest."""

    instances: int
    threads: int
    accounts: int
    think_ms: float
    cheapest: list[str]
    transfers_per_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class FirstCell:
    """The seconds from ``bankrun compare`` to the end of its first cell: in a new state directory, and again there."""

    cold: float
    warm: float


@dataclass(slots=True)
class Bench:
    """All that was measured. ``scale``, ``cost_map`` and ``first_cell_seconds`` are measured with ``--full`` only.

    ``bounds`` has the rate that a no-op message and one of pgbench's scripts together allow, by the script's name;
    ``missing`` the queues that were not run, and why; ``faults`` what some rounds ended with instead of a rate.
    ``round_trips`` are counted where distances were asked for.
    """

    kind: ClassVar[str] = "bench"

    provenance: Provenance
    rounds: int
    topology: str
    accounts: int
    missing: dict[str, str] = field(default_factory=dict)
    rows: list[BenchRow] = field(default_factory=list)
    bounds: dict[str, Rate] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    scale: Scale | None = None
    cost_map: list[CostCell] | None = None
    first_cell_seconds: FirstCell | None = None
    load_average: list[float] = field(default_factory=list)
    round_trips: dict[str, RoundTrips] | None = None

    @property
    def headline(self) -> list[BenchRow]:
        """Return the contestants on the topology and the accounts that were asked for."""
        return [row for row in self.rows if (row.topology, row.accounts) == (self.topology, self.accounts)]

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values, without what was not measured."""
        plain = {name: value for name, value in asdict(self).items() if value is not None}
        del plain["provenance"]
        return {**self.provenance.as_json(self.kind), **plain}


_BENCH = TypeAdapter(Bench)


def parse(plain: dict[str, Any]) -> Bench:
    """Return a benchmark from the plain values of a file. Raises ValueError, and names the first that is wrong."""
    return validate(_BENCH, plain)
