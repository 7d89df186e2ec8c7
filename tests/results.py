"""Results that look like saved ones, made up: for tests of what is drawn from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bank.audit import Audit, Finding, PostingTold
from bankrun.chaos.cells import CHAOS_LOAD
from bankrun.results.models.bench import (
    Bench,
    BenchRow,
    CostCell,
    FirstCell,
    RateSpread,
    RoundTrips,
    Scale,
    ScaleStep,
    WorkerMemory,
)
from bankrun.results.models.chaos import Chaos, ChaosCell
from bankrun.results.models.comparison import Cell, Comparison, Run
from bankrun.results.models.proof import CaseResult, ProofResult
from bankrun.results.models.schedule import Background, SerialTold, SourceTold, StepTold, TableTold
from bankrun.results.models.soak import Recovery, Soak, SoakLoad, Strike
from bankrun.results.models.trial import TrialCase, TrialResult
from bankrun.results.provenance import Provenance
from bankrun.results.timeline import History
from bankrun.results.workload import Workload

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FOUND = Provenance("0.1.0", None, "2026-01-02T03:04:05+00:00", "bankrun …", {"python": "3.11"}, {"lock_timeout_ms": 5})


def posting(entry: int, thread: int, read_ms: float, *, after: int, instance: str = "w1") -> PostingTold:
    """Return a posting, written 2 ms after its read and committed 1 ms later."""
    read_at, written_at, committed_at = (BEGIN + timedelta(milliseconds=read_ms + later) for later in (0, 2, 3))
    return PostingTold(
        entry=entry,
        account=5,
        transfer=f"{entry:08d}-0000-0000-0000-000000000000",
        instance=instance,
        thread=f"ThreadPoolExecutor-0_{thread}",
        delta=after - 100,
        before=100,
        after=after,
        previous_entry=None,
        seq=entry,
        read_at=read_at,
        written_at=written_at,
        committed_at=committed_at,
    )


def run(strategy: str, topology: str = "3x8", *, lost: int = 0, rate: float = 400.0, repeat: int = 1) -> Run:
    """Return a run, broken if it lost something."""
    instances, threads = map(int, topology.split("x"))
    scene = [posting(1, 0, 0.0, after=110), posting(2, 3, 1.0, after=95, instance="w2")] if lost else []
    finding = Finding("lineage", "lost posting", lost, ["account 5: entry 1"])
    found = Audit(findings=[finding], example=(scene[0], scene[1])) if lost else Audit()
    return Run(
        strategy=strategy,
        topology=topology,
        instances=instances,
        threads=threads,
        applied=2000,
        refused=0,
        failed=0,
        pending=0,
        duplicates=0,
        opening_total=800_000,
        closing_total=800_000 - lost,
        drift=-lost,
        lost_postings=lost,
        lost_delta=lost,
        unexplained=0,
        overdrawn=0,
        retries=0,
        deadlocks=0,
        serialization_failures=0,
        conflicts=0,
        seconds=5.0,
        transfers_per_s=rate,
        latency_ms={"p50": 5.0, "p95": 10.0, "p99": 20.0, "max": 40.0},
        lock_wait_ms={"p50": 1.0, "p99": 4.0},
        claim="everywhere",
        hosts=1,
        working_max={"w1": threads},
        audit=found,
        repeat=repeat,
        latency_counts=[(2.0, 500), (8.0, 1000), (32.0, 500)],
        cost_ms={"guard": 1.0, "move": 2.0, "commit": 1.0, "backoff": 0.0, "rest": 1.0},
        history=History([1.0, 2.5, 5.0], [0, -lost // 2, -lost], [500, 1200, 2000], [0, lost, lost], {"w1": 2000}),
        scene=scene,
    )


def cell(*runs: Run, verdict: str = "") -> Cell:
    """Return a cell of these runs."""
    lost = any(not one.held for one in runs)
    return Cell(list(runs), "unsafe" if lost else "safe", verdict or ("broken" if lost else "safe"), "lost" * lost)


def comparison(*cells: Cell) -> Comparison:
    """Return a comparison of these cells; without any, of a broken one and a safe one."""
    return Comparison(
        Provenance(
            bankrun="0.1.0",
            seed=7,
            started="2026-01-02T03:04:05+00:00",
            command="bankrun compare --seed 7",
            environment={
                "python": "3.11.7",
                "postgres": {"fsync": "on"},
                "instances": [{"instance": "w1", "threads": 8}],
            },
            settings={"lock_timeout_ms": 5000},
        ),
        workload=Workload(),
        cells=list(cells) or [cell(run("none", lost=700)), cell(run("row-lock"))],
    )


def case(strategy: str = "none", *, broken: int = 4) -> CaseResult:
    """Return what a proof found in one case."""
    return CaseResult(strategy, "two", "same-pair", 2, "nothing", "unsafe", 6, broken, kinds=["drift"], outcomes=["x"])


def chaos_cell() -> ChaosCell:
    """Return a cell of chaos that held."""
    return ChaosCell("kill", "row-lock", "2x4", "safe", "safe", "", 9, 1, 0, 0, 0, 0, 0, 0, 3, 1, 2, 1.5, 4.0, 1)


def soak() -> Soak:
    """Return a soak that did not hold."""
    return Soak(
        FOUND,
        SoakLoad(),
        "3x4",
        [Strike("kill", 10, 0.5, pending=0)],
        {"kill": Recovery(0.5, 0.5)},
        9.5,
        {"applied": 99, "refused": 1, "failed": 0, "pending": 0},
        audit=Audit(findings=[Finding("lineage", "lost posting", 1, ["account 5"])]),
    )


def bench() -> Bench:
    """Return a benchmark with everything."""
    rates = RateSpread(2.0, 1.0, 3.0)
    return Bench(
        FOUND,
        3,
        "2x4",
        1_000,
        {"huey": "not installed"},
        [BenchRow("row-lock", "2x4", 1, 1_000, "claim", rates, noisy=True, ratio_to_pgbench=0.5, ratio_to_bound=None)],
        {"pgbench-accepted": 2.5},
        ["round 1: x"],
        Scale("2x4", [ScaleStep(10_000)], WorkerMemory([1], [2])),
        [CostCell(1, 4, 2, 0.0, ["row-lock"], {"row-lock": 3.0})],
        FirstCell(9.0, 3.0),
        [0.1, 0.2],
        {"row-lock": RoundTrips(5, 2)},
    )


def trial() -> TrialResult:
    """Return a trial that is broken in two processes and safe in one."""
    rows = {"stock": TableTold(["id", "left"], [["1", "9"], ["2", None]], 3)}
    step = StepTold("A", "statement", ["SELECT 1"], "shop.py:3", ["B"], ["B"], "left -= 1", {"B": ["SELECT 2"]}, rows)
    seen = Background(
        rows, [SerialTold("AB", rows, ["A returns 1"])], ["x is 9"], {"A": SourceTold("shop.py", 3, ["x"])}
    )
    two = TrialCase("two", "broken", True, 6, 4, shortest="two/AABB", difference="x is 9", story="…", steps=[step])
    two.background = seen
    return TrialResult(FOUND, ["shop.py:buy(1)"] * 2, [two, TrialCase("same", "safe", True, 2)], "schema.sql")


RESULTS: list[Any] = [
    comparison(),
    ProofResult(FOUND, [case()], {"mine:Mine": "hangs"}),
    Chaos(FOUND, CHAOS_LOAD, 1, {"clock-jump": "no library"}, [chaos_cell()]),
    soak(),
    bench(),
    trial(),
]
"""One of each kind, in the order of ``store.KINDS``."""
