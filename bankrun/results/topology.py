"""Instances × threads, written ``3x8``, and how far they are from Postgres: ``3x8@30ms``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bank.errors import CannotStart
from bankrun.results.distance import NEAR, Distance

INSTANCES_MAX = 64
THREADS_MAX = 512


@dataclass(frozen=True, slots=True, order=True)
class Topology:
    """How many instances work, with how many threads each, and how far from Postgres."""

    instances: int
    threads: int
    distance: Distance = NEAR

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= INSTANCES_MAX:
            raise CannotStart(f"topology {self}: a comparison needs 1 to {INSTANCES_MAX} instances")
        if not 1 <= self.threads <= THREADS_MAX:
            raise CannotStart(f"topology {self}: an instance needs 1 to {THREADS_MAX} threads")
        names = {f"w{number}" for number in range(1, self.instances + 1)}
        absent = [name for name in self.distance.names() if name not in names]
        if absent:
            raise CannotStart(f"topology {self}: there is no {absent[0]} to be far away")

    def __str__(self) -> str:
        size = f"{self.instances}x{self.threads}"
        return size if self.distance == NEAR else f"{size}@{self.distance}ms"

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read ``3x8`` or ``3x8@30ms``. Raises CannotStart for anything else."""
        match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*(?:@(.*?)(?:\s*ms)?\s*)?", text)
        if match is None:
            raise CannotStart(f"{text!r} is not a topology: write instances x threads, as in 3x8")
        return cls(int(match[1]), int(match[2]), Distance.parse(match[3]) if match[3] is not None else NEAR)
