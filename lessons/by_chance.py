"""What happens when no order is forced: measured where it runs, different each time, and so never tested for."""

import sys
import threading
import time
from collections.abc import Callable

BUSY_SECONDS = 0.1
DEPOSITS_SECONDS = 0.3


def in_threads(*parts: Callable[[], object]) -> None:
    """Run each part in a thread of its own."""
    threads = [threading.Thread(target=part) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def changes_of_turn(switch_interval: float) -> int:
    """Return how often, in ``BUSY_SECONDS``, the turn went from one busy thread to another."""
    seen, end = [0], time.perf_counter() + BUSY_SECONDS

    def busy(me: int) -> None:
        while time.perf_counter() < end:
            if seen[-1] != me:
                seen.append(me)

    before = sys.getswitchinterval()
    sys.setswitchinterval(switch_interval)
    in_threads(lambda: busy(1), lambda: busy(2))
    sys.setswitchinterval(before)
    return len(seen) - 1


def order_of_workers() -> list[int]:
    """Return in which order the talk's three workers woke up: three rounds each, with a sleep before each round."""
    order: list[int] = []

    def worker(number: int) -> None:
        for _ in range(3):
            time.sleep(0.01)
            order.append(number)

    in_threads(lambda: worker(0), lambda: worker(1), lambda: worker(2))
    return order


class Plain:
    balance = 0


def deposits() -> tuple[int, int]:
    """Return how many deposits two threads made into a plain attribute without a lock, and how many were lost."""
    account, start = Plain(), threading.Barrier(2)
    counts: list[int] = []

    def many() -> None:
        start.wait()
        end, count = time.perf_counter() + DEPOSITS_SECONDS, 0
        while time.perf_counter() < end:
            for _ in range(1_000):
                account.balance += 1
            count += 1_000
        counts.append(count)

    in_threads(many, many)
    return sum(counts), sum(counts) - account.balance
