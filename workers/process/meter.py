"""What a run cost in one instance, and all instances' costs together."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hdrh.histogram import HdrHistogram

from bank.errors import Rejected
from bank.receipts import ChunkReceipt, Cost, Receipt

MICROSECONDS_MAX = 3_600_000_000
COSTS = ("guard", "move", "commit", "backoff")
"""The parts of a transfer's time that are measured; a receipt says what each is."""
BUCKETS_PER_OCTAVE = 4
FAULTS_MAX = 10


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, MICROSECONDS_MAX, 2)


class Meter:
    """Counts and times one run's transfers in one instance. Thread-safe.

    ``slots`` bounds how many work at a time: a cell may use fewer threads than the pool has.
    """

    def __init__(self, slots: int) -> None:
        self._slots = threading.BoundedSemaphore(slots)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self.latency = _histogram()
        self.lock_wait = _histogram()
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.working = 0
        self.working_max = 0
        self.began_at = 0.0
        self.ended_at = 0.0

    @contextmanager
    def working_slot(self) -> Iterator[None]:
        """Wait for a slot and hold it for the block."""
        with self._slots:
            with self._lock:
                self.began_at = self.began_at or time.time()
                self.working += 1
                self.working_max = max(self.working_max, self.working)
            try:
                yield
            finally:
                with self._lock:
                    self.working -= 1
                    self.ended_at = time.time()
                    self._idle.notify_all()

    def book(self, receipt: Receipt) -> None:
        """Add one delivery of a transfer."""
        self._book(receipt, deliveries=1, first=int(receipt.first))

    def book_chunk(self, receipt: ChunkReceipt) -> None:
        """Add one delivery of a chunk: each of its transfers took as long as all of it, and cost its share."""
        decided = [fate for fate in receipt.fates if not isinstance(fate, Rejected)]
        self._book(receipt, deliveries=len(decided), first=sum(fate.first for fate in decided))

    def _book(self, cost: Cost, *, deliveries: int, first: int) -> None:
        with self._lock:
            self.counts["deliveries"] += deliveries
            self.counts["repeated"] += deliveries - first
            self.counts["retries"] += cost.attempts - 1
            self.counts.update(cost.conflicts)
            if first:
                self.latency.record_value(_microseconds(cost.seconds), first)
                self.lock_wait.record_value(_microseconds(cost.lock_wait_seconds), first)
                self.seconds["transfers"] += cost.seconds
                for part in COSTS:
                    self.seconds[part] += getattr(cost, f"{part}_seconds")

    def count(self, what: str) -> None:
        """Count something that is not a delivery's receipt."""
        with self._lock:
            self.counts[what] += 1

    def fault(self, what: str) -> None:
        """Count what a strategy did that is no outcome. Of many different ones only the first are kept."""
        with self._lock:
            if what in self.faults or len(self.faults) < FAULTS_MAX:
                self.faults[what] += 1

    def reading(self, wait_seconds: float) -> dict[str, Any]:
        """Return the meter as JSON, once nobody works any more, or after ``wait_seconds``."""
        with self._lock:
            self._idle.wait_for(lambda: self.working == 0, timeout=wait_seconds)
            return {
                "counts": dict(self.counts),
                "faults": dict(self.faults),
                "seconds": dict(self.seconds),
                "working_max": self.working_max,
                "began_at": self.began_at,
                "ended_at": self.ended_at,
                "latency": self.latency.encode().decode(),
                "lock_wait": self.lock_wait.encode().decode(),
            }


def _microseconds(seconds: float) -> int:
    return min(MICROSECONDS_MAX, max(1, round(seconds * 1e6)))


class Readings:
    """The meters of all instances of a run, added up."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._costs: dict[str, float] = defaultdict(float)
        self.working_max: dict[str, int] = {}
        self._began_at: list[float] = []
        self._ended_at: list[float] = []
        self._latency = _histogram()
        self._lock_wait = _histogram()

    def add(self, instance: str, reading: dict[str, Any]) -> None:
        """Add what one instance reported."""
        self.counts.update(reading["counts"])
        self.faults.update(reading["faults"])
        for cost, seconds in reading["seconds"].items():
            self._costs[cost] += seconds
        self.working_max[instance] = reading["working_max"]
        self._began_at.append(reading["began_at"])
        self._ended_at.append(reading["ended_at"])
        self._latency.decode_and_add(reading["latency"])
        self._lock_wait.decode_and_add(reading["lock_wait"])

    def seconds(self) -> float:
        """Return the time from the first job's begin to the last one's end, by the instances' clocks."""
        return max(self._ended_at) - min(self._began_at) if self._began_at else 0.0

    def latency_ms(self) -> dict[str, float]:
        """Return percentiles of the time from a transfer's delivery to its COMMIT, retries included."""
        return _percentiles(self._latency, (50, 95, 99, 100))

    def latency_counts(self) -> list[tuple[float, int]]:
        """Return how many transfers took up to how many milliseconds, and more than the bound before."""
        counts: Counter[int] = Counter()
        for item in self._latency.get_recorded_iterator():
            bucket = math.ceil(BUCKETS_PER_OCTAVE * math.log2(item.value_iterated_to))
            counts[bucket] += item.count_added_in_this_iter_step
        return [
            (round(2 ** (bucket / BUCKETS_PER_OCTAVE) / 1000, 4), counts[bucket])
            for bucket in range(min(counts, default=0), max(counts, default=-1) + 1)
        ]

    def cost_ms(self) -> dict[str, float]:
        """Return what a transfer's time went into, on average; ``rest`` is what was not measured by itself."""
        transfers = self._latency.get_total_count()
        if not transfers:
            return {}
        parts = {cost: self._costs[cost] for cost in COSTS}
        parts["rest"] = max(0.0, self._costs["transfers"] - sum(parts.values()))
        return {cost: round(1000 * seconds / transfers, 4) for cost, seconds in parts.items()}

    def lock_wait_ms(self) -> dict[str, float]:
        """Return percentiles of the time spent in guards and in the strategy's statements."""
        return _percentiles(self._lock_wait, (50, 99))


def _percentiles(histogram: HdrHistogram, percentiles: tuple[int, ...]) -> dict[str, float]:
    if not histogram.get_total_count():
        return {}
    return {
        "max" if percentile == 100 else f"p{percentile}": round(histogram.get_value_at_percentile(percentile) / 1000, 3)
        for percentile in percentiles
    }
