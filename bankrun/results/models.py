"""What a comparison found, as it is saved: the JSON of DESIGN.md's contract, and nothing that was not measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bankrun.results.timeline import History
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload

SCHEMA = 1


@dataclass(slots=True)
class Run:
    """One run of one cell. Money in minor units; ``seconds`` from the first claim to the last outcome.

    ``hosts`` counts the places where a file lock would be shared. ``audit`` holds the findings and one example,
    ``scene`` that example with who else was at the account meanwhile. ``latency_counts`` are (up to ms, transfers),
    ``cost_ms`` what the mean of the latency consists of. ``faults`` are what a strategy did that is no
    outcome of a transfer, and how often.
    """

    strategy: str
    topology: str
    instances: int
    threads: int
    applied: int
    refused: int
    failed: int
    pending: int
    duplicates: int
    opening_total: int
    closing_total: int
    drift: int
    lost_postings: int
    lost_delta: int
    unexplained: int
    overdrawn: int
    retries: int
    deadlocks: int
    serialization_failures: int
    conflicts: int
    seconds: float
    transfers_per_s: float
    latency_ms: dict[str, float]
    lock_wait_ms: dict[str, float]
    claim: str
    hosts: int
    working_max: dict[str, int]
    audit: dict[str, Any]
    repeat: int = 1
    latency_counts: list[tuple[float, int]] = field(default_factory=list)
    cost_ms: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)
    scene: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether all invariants held."""
        return bool(self.audit["passed"])


@dataclass(slots=True)
class Cell:
    """One strategy on one topology: all its runs, and what they amount to.

    ``shown`` is the run that stands for the cell: the first broken one, else the one with the median rate.
    """

    runs: list[Run]
    expected: str
    verdict: str
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
        return Topology(self.shown.instances, self.shown.threads)

    @property
    def contradicts(self) -> bool:
        """Whether a claim was refuted."""
        return self.expected == "safe" and self.verdict == "broken"

    def as_json(self) -> dict[str, Any]:
        """Return the cell: the figures of the run that stands for it, its verdict, and every run."""
        judged = {"expected": self.expected, "verdict": self.verdict, "reason": self.reason}
        return {**asdict(self.shown), **judged, "runs": [asdict(run) for run in self.runs]}


@dataclass(slots=True)
class Provenance:
    """What it takes to run a result again, and to know what it was found with."""

    bankrun: str
    started: str
    command: str
    environment: dict[str, Any]
    settings: dict[str, Any]

    def sentence(self) -> str:
        """Return it as a footnote in Markdown."""
        postgres, redis = self.environment["postgres"], self.environment["redis"]
        return (
            f"`{self.command}`, {self.started}; bankrun {self.bankrun}, Python {self.environment['python']}, "
            f"Celery {self.environment['packages']['celery']}, Postgres {postgres['server_version']}, "
            f"{redis['server']} {redis['version']}, {self.environment['cores']} cores."
        )


@dataclass(slots=True)
class Comparison(Provenance):
    """Everything that is needed to read a comparison, and to run it again."""

    seed: int
    workload: Workload
    cells: list[Cell] = field(default_factory=list)

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
            "schema": SCHEMA,
            "bankrun": self.bankrun,
            "seed": self.seed,
            "started": self.started,
            "command": self.command,
            "environment": self.environment,
            "settings": self.settings,
            "workload": asdict(self.workload),
            "cells": [cell.as_json() for cell in self.cells],
        }
