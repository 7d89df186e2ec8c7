#!/usr/bin/env python3
"""Send transfers to the workers that are running, watch them finish, and audit the bank.

In compose:            docker compose run --rm lab python scripts/trigger.py --transfers 5000
Without any servers:   .venv/bin/python scripts/trigger.py     (starts its own, and two workers)
"""

import argparse
import secrets
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bankrun import (
    Audit,
    BankError,
    BankrunError,
    CannotStart,
    Lab,
    Workload,
    accounts_in,
    audit,
    decided_by,
    failures,
    open_fresh_bank,
    running_lab,
    trigger,
    watch,
)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="row-lock", help="or your own, as module:Class (default: row-lock)")
    parser.add_argument("--transfers", type=int, default=2_000, help="how many to send (default: 2000)")
    parser.add_argument("--seed", type=int, help="the same seed sends the same transfers (default: a fresh one)")
    parser.add_argument("--think-ms", type=float, default=0.0, help="time between a transfer's read and its write")
    parser.add_argument("--chunk", type=int, default=1, help="transfers in one message (default: 1)")
    parser.add_argument("--reset", action="store_true", help="open a fresh bank first")
    parser.add_argument("--accounts", type=int, default=8, help="accounts in a fresh bank (default: 8)")
    parser.add_argument("--instances", type=int, default=2, help="workers to start where none are running (default: 2)")
    return parser.parse_args()


def send_and_watch(lab: Lab, wanted: argparse.Namespace) -> None:
    """Send the transfers, and show a bar until none is pending."""
    accounts = accounts_in(lab)
    fresh = wanted.reset or accounts == 0
    workload = Workload(
        accounts=wanted.accounts if fresh else accounts,
        transfers=wanted.transfers,
        think_ms=wanted.think_ms,
        chunk=wanted.chunk,
    )
    if fresh:
        open_fresh_bank(lab, workload)
    workers = ", ".join(f"{info.instance} ({info.threads} threads)" for info in lab.instances)
    print(f"{workload.transfers:,} transfers over {workload.accounts} accounts, {wanted.strategy}, to {workers}")
    seed = secrets.randbelow(2**31) if wanted.seed is None else wanted.seed
    started = time.perf_counter()
    trigger(lab, workload, wanted.strategy, seed=seed)
    columns = (TextColumn("transfers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("transfers", total=workload.transfers)
        for pending in watch(lab):
            bar.update(task, completed=max(0, workload.transfers - pending))
    seconds = time.perf_counter() - started
    print(f"done in {seconds:.1f} s: {workload.transfers / seconds:,.0f} transfers/s, sending included")


def show(found: Audit, decided: dict[str, int], failed: dict[str, int]) -> None:
    """Print what the bank looks like now."""
    for instance, count in decided.items():
        print(f"  {instance}: {count:,}")
    counts = ", ".join(f"{count:,} {status}" for status, count in found.transfers.items() if count)
    print(f"in the bank: {counts}; {found.accounts} accounts hold {found.closing_total:,}, drift {found.drift:+,}")
    for reason, count in failed.items():
        print(f"  failed: {count:,}; {reason}")
    for finding in found.findings:
        print(f"  {finding.invariant}, {finding.kind}: {finding.count:,}; {finding.examples[0]}")
    print("audit: all five invariants hold" if found.passed else "audit: the bank is broken; --reset opens a new one")


def main() -> int:
    """Return 0 if the audit is clean, 1 if transfers have failed, 3 if the audit is not clean."""
    wanted = arguments()
    with running_lab(instances=wanted.instances, any_running=True, strategies=[wanted.strategy]) as lab:
        send_and_watch(lab, wanted)
        found = audit(lab.database)
        failed = failures(lab)
        show(found, decided_by(lab), failed)
    return 3 if not found.passed else 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotStart as problem:
        print(f"trigger: {problem}", file=sys.stderr)
        sys.exit(2)
    except (BankError, BankrunError) as problem:
        sys.exit(f"trigger: {problem}")
    except KeyboardInterrupt:
        print("trigger: stopped; what was accepted stays in the bank, and workers that run go on", file=sys.stderr)
        sys.exit(130)
