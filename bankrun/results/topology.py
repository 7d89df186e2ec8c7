"""Instances × threads, written ``3x8``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bank.errors import CannotStart

INSTANCES_MAX = 64
THREADS_MAX = 512


@dataclass(frozen=True, slots=True, order=True)
class Topology:
    """How many instances work, with how many threads each."""

    instances: int
    threads: int

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= INSTANCES_MAX:
            raise CannotStart(f"topology {self}: a comparison needs 1 to {INSTANCES_MAX} instances")
        if not 1 <= self.threads <= THREADS_MAX:
            raise CannotStart(f"topology {self}: an instance needs 1 to {THREADS_MAX} threads")

    def __str__(self) -> str:
        return f"{self.instances}x{self.threads}"

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read ``3x8``. Raises CannotStart for anything else."""
        match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
        if match is None:
            raise CannotStart(f"{text!r} is not a topology: write instances x threads, as in 3x8")
        return cls(int(match[1]), int(match[2]))
