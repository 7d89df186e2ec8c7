"""What a user waits for although no transfer is measured: accepting, auditing, starting; and the memory of it all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from bank.errors import BankError
from bank.postgres.schema import open_bank
from bankrun.bench.rules import PATIENCE
from bankrun.results.models.bench import FirstCell, Scale, ScaleStep, WorkerMemory
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.delivery import Delivery, any_pending, wait
from bankrun.runs.session import Servers, open_lab
from workers.submission import Submission

SIZES = (10_000, 100_000, 1_000_000)
CHUNK = 5_000
MEGABYTE = 1024 * 1024
FIRST_CELL_SECONDS_MAX = 120


def scale(
    servers: Servers, topology: Topology, sizes: Sequence[int], *, seed: int, tell: Callable[[str], None]
) -> Scale:
    """Accept, publish, apply and audit ever more transfers in one bank each, and note the memory of the processes."""
    steps = []
    with open_lab(servers, instances=topology.instances, threads=topology.threads) as lab:
        workers = [psutil.Process(info.pid) for info in lab.instances if psutil.pid_exists(info.pid)]
        idle = [process.memory_info().rss // MEGABYTE for process in workers]
        for size in sizes:
            tell(f"{size:,} transfers accepted, applied, audited")
            workload = Workload(accounts=1_000, transfers=size, opening=10_000_000, chunk=min(CHUNK, size))
            step = ScaleStep(size)
            with _time(step, "generate_seconds"):
                orders = list(workload.orders(seed))
            open_bank(lab.database, accounts=workload.accounts, opening=workload.opening)
            name = lab.next_name()
            submission = Submission(name, "batch", name, workload.chunk, threads=topology.threads)
            with Delivery(lab, submission) as delivery:
                with _time(step, "accept_seconds"):
                    delivery.accept(orders)
                with _time(step, "publish_seconds"):
                    delivery.publish(orders)
                del orders
                delivery.join(lab.instances)
                with _time(step, "apply_seconds"):
                    wait(lambda: any_pending(lab.database), PATIENCE, check=lab.look_after)
            _audit_elsewhere(lab.database.url, step)
            steps.append(step)
        busy = [process.memory_info().rss // MEGABYTE for process in workers]
    return Scale(str(topology), steps, WorkerMemory(idle, busy))


@contextmanager
def _time(step: ScaleStep, name: str) -> Iterator[None]:
    """Note how long a block took, in seconds, under a name."""
    began = time.perf_counter()
    try:
        yield
    finally:
        setattr(step, name, round(time.perf_counter() - began, 3))


AUDIT = """
import resource, sys, time
from bank.audit import audit
from bank.postgres.schema import open_for_lab
database = open_for_lab(sys.stdin.readline().strip())
began = time.perf_counter()
found = audit(database)
seconds = time.perf_counter() - began
database.close()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024 * 1024)
print(int(found.passed), seconds, peak)
"""


def _audit_elsewhere(url: str, step: ScaleStep) -> None:
    """Audit in a process of its own, whose peak memory is that of an audit."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", AUDIT], input=url + "\n", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BankError(f"the audit failed: {done.stderr.strip().splitlines()[-1]}")
    passed, seconds, peak_mb = done.stdout.split()
    if passed != "1":
        raise BankError("batch did not keep the money: a rate of wrong transfers is no rate")
    step.audit_seconds, step.audit_peak_mb = round(float(seconds), 3), int(peak_mb)


def first_cell_seconds(tell: Callable[[str], None]) -> FirstCell:
    """Return the time from ``bankrun compare`` to the end of its first cell, in a new state directory and again there.

    The cell is as small as can be: one thread, one transfer.
    """
    with tempfile.TemporaryDirectory(prefix="bankrun-bench-") as place:
        Path(place).chmod(0o755)
        return FirstCell(_first_cell(place, tell, "cold"), _first_cell(place, tell, "warm"))


def _first_cell(place: str, tell: Callable[[str], None], kind: str) -> float:
    tell(f"the first cell, {kind}")
    command = [sys.executable, "-P", "-m", "bankrun", "compare", "--strategy", "row-lock", "--topology", "1x1"]
    command += ["--transfers", "1", "--warmup", "0"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BANKRUN_")}
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**kept, "BANKRUN_STATE_DIR": place},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        seconds = time.perf_counter() - began
        process.stderr.read()
        process.wait(timeout=FIRST_CELL_SECONDS_MAX)
    if process.returncode:
        raise BankError(f"the first cell failed: {first.strip()}")
    return round(seconds, 2)
