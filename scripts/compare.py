#!/usr/bin/env python3
"""Compare locks on one and on several worker instances, with the Python API: a page to copy and change.

In compose:            docker compose run --rm lab python scripts/compare.py
Without any servers:   .venv/bin/python scripts/compare.py     (starts its own, and the workers)
"""

import argparse
import sys

from bankrun import BankError, BankrunError, CannotStart, Plan, Silence, Topology, Workload, running_lab


class Lines(Silence):
    """Say which cell runs."""

    def cell_begins(self, strategy: str, topology: Topology, number: int, total: int) -> None:
        """Print a line before each."""
        print(f"{number}/{total} {strategy} on {topology}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--strategy",
        nargs="+",
        default=["thread-lock", "row-lock"],
        help="which locks to compare, yours as module:Class",
    )
    parser.add_argument("--topology", nargs="+", default=["1x8", "3x8"], help="instances x threads")
    parser.add_argument("--transfers", type=int, default=1_000, help="in each cell (default: 1000)")
    parser.add_argument("--accounts", type=int, default=8, help="fewer, more contention (default: 8)")
    parser.add_argument("--seed", type=int, default=7, help="the same seed sends the same transfers (default: 7)")
    return parser.parse_args()


def main() -> int:
    """Return 0 if every lock that claims to hold did, 3 if one did not."""
    wanted = arguments()
    plan = Plan(
        strategies=tuple(wanted.strategy),
        topologies=tuple(Topology.parse(text) for text in wanted.topology),
        workload=Workload(transfers=wanted.transfers, accounts=wanted.accounts),
        seed=wanted.seed,
    )
    with running_lab(instances=plan.instances, threads=plan.threads, strategies=plan.strategies) as lab:
        print(f"instances: {', '.join(info.instance for info in lab.instances)}")
        # The control, `none`, runs as well: a lock that holds proves something only if no lock breaks.
        cells = lab.compare(plan, Lines())
    for cell in cells:
        run = cell.shown
        print(
            f"{run.strategy:<14} {run.topology:>5}  {run.lost_postings:>6,} lost  drift {run.drift:>+7,}"
            f"  {run.transfers_per_s:>7,.0f}/s  {cell.verdict} {cell.reason}"
        )
    return 3 if any(cell.contradicts for cell in cells) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotStart as problem:
        print(f"compare: {problem}", file=sys.stderr)
        sys.exit(2)
    except (BankError, BankrunError) as problem:
        sys.exit(f"compare: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
