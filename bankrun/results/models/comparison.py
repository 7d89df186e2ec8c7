"""A comparison: the same transfers through several strategies on several topologies, every run audited."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter

from bank.audit import Audit, PostingTold
from bank.errors import CannotStart
from bankrun.results.provenance import Amount, Count, Expected, Provenance, Verdict
from bankrun.results.reading import check_distinct, validate
from bankrun.results.timeline import SCENE_MAX, History, plain_posting
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload


@dataclass(slots=True)
class Run:
    """One run of one cell. Money in minor units; ``seconds`` from the first claim to the last outcome.

    ``distance_ms`` is the round-trip time to Postgres that was measured of each instance before the run, where
    one was to be far. ``withdrawn`` transfers were taken back before anybody began them: the run's time was over.

    ``hosts`` counts the places where a file lock would be shared. ``audit`` holds the findings and one example,
    ``scene`` that example with who else was at the account meanwhile. ``latency_counts`` are (up to ms, transfers),
    ``cost_ms`` what the mean of the latency consists of. ``faults`` are what a strategy did that is no
    outcome of a transfer, and how often.
    """

    strategy: str
    topology: str
    instances: Count
    threads: Count
    applied: Count
    refused: Count
    failed: Count
    pending: Count
    duplicates: Count
    opening_total: int
    closing_total: int
    drift: int
    lost_postings: Count
    lost_delta: int
    unexplained: int
    overdrawn: Count
    retries: Count
    deadlocks: Count
    serialization_failures: Count
    conflicts: Count
    seconds: Amount
    transfers_per_s: Amount
    latency_ms: dict[str, float]
    lock_wait_ms: dict[str, float]
    claim: str
    hosts: Count
    working_max: dict[str, Count]
    audit: Audit
    repeat: Count = 1
    latency_counts: list[tuple[float, Count]] = field(default_factory=list)
    cost_ms: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)
    scene: Annotated[list[PostingTold], Field(max_length=2 * SCENE_MAX)] = field(default_factory=list)
    faults: dict[str, Count] = field(default_factory=dict)
    refused_payable: Count = 0
    distance_ms: dict[str, float] = field(default_factory=dict)
    withdrawn: Count = 0

    @property
    def held(self) -> bool:
        """Whether all invariants held."""
        return self.audit.passed

    def as_json(self) -> dict[str, Any]:
        """Return the run as plain values."""
        told = {"audit": self.audit.as_json(), "scene": [plain_posting(posting) for posting in self.scene]}
        return {**asdict(self), **told}


@dataclass(slots=True)
class Cell:
    """One strategy on one topology: all its runs, and what they amount to.

    ``shown`` is the run that stands for the cell: the first broken one, else the one with the median rate.
    """

    runs: Annotated[list[Run], Field(min_length=1)]
    expected: Expected
    verdict: Verdict
    reason: str

    @property
    def shown(self) -> Run:
        """Return the run whose figures are the cell's."""
        broken = [run for run in self.runs if not run.held]
        by_rate = sorted(self.runs, key=lambda run: run.transfers_per_s)
        return broken[0] if broken else by_rate[len(by_rate) // 2]

    @property
    def topology(self) -> Topology:
        """Return the cell's topology."""
        return Topology.parse(self.shown.topology)

    @property
    def contradicts(self) -> bool:
        """Whether a claim was refuted."""
        return self.expected == "safe" and self.verdict == "broken"

    def as_json(self) -> dict[str, Any]:
        """Return the cell: the figures of the run that stands for it, its verdict, and every run."""
        judged = {"expected": self.expected, "verdict": self.verdict, "reason": self.reason}
        return {**self.shown.as_json(), **judged, "runs": [run.as_json() for run in self.runs]}


@dataclass(slots=True)
class Comparison:
    """All cells under one load."""

    kind: ClassVar[str] = "comparison"

    provenance: Provenance
    workload: Workload
    cells: Annotated[list[Cell], Field(min_length=1)]

    @property
    def contradictions(self) -> list[Cell]:
        """Return the cells that refute a claim."""
        return [cell for cell in self.cells if cell.contradicts]

    @property
    def inconclusive(self) -> list[Cell]:
        """Return the cells that show neither one nor the other."""
        return [cell for cell in self.cells if cell.verdict == "inconclusive"]

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""
        return {
            **self.provenance.as_json(self.kind),
            "workload": asdict(self.workload),
            "cells": [cell.as_json() for cell in self.cells],
        }


_COMPARISON = TypeAdapter(Comparison)


def parse(plain: dict[str, Any]) -> Comparison:
    """Return a comparison from the plain values of a file. Raises ValueError, and names the first that is wrong."""
    try:
        comparison = validate(_COMPARISON, plain)
    except CannotStart as error:  # of a workload that cannot be
        raise ValueError(f"workload: {error}") from error
    if comparison.provenance.seed is None:
        raise ValueError("seed: a comparison has one")
    check_distinct((cell.shown.strategy, cell.shown.topology) for cell in comparison.cells)
    for cell in comparison.cells:
        for run in cell.runs:
            _check(run)
    return comparison


def _times(posting: PostingTold) -> list[datetime]:
    times = (posting.read_at, posting.written_at, posting.committed_at)
    return [at for at in times if at is not None]


def _check(run: Run) -> None:
    """Check what no type says. Raises ValueError."""
    if not all(finding.examples for finding in run.audit.findings):
        raise ValueError("a finding without an example")
    postings = [*run.scene, *(run.audit.example or ())]
    if not all(at.tzinfo for posting in postings for at in _times(posting)):
        raise ValueError("a time without its zone")
    if len({len(series) for series in run.history.series()}) > 1:
        raise ValueError("a history whose series differ in length")
