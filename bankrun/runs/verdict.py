"""From what a cell's runs found to a verdict: safe, broken or inconclusive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bank.strategies import Claim
from bankrun.results.models.comparison import Cell, Run
from bankrun.results.provenance import Verdict
from bankrun.results.topology import Topology
from bankrun.runs.far import find_off

CONTROL_LOST_MIN = 20
"""The control must lose so many postings on the same topology and workload: else the load breaks nothing."""

SAFE: Final = "safe"
BROKEN: Final = "broken"
INCONCLUSIVE: Final = "inconclusive"
UNSAFE: Final = "unsafe"


def judge(runs: Sequence[Run], control: Sequence[Run]) -> Cell:
    """Judge all runs of a cell by what the control did under the same load.

    A run that was not finished is never called broken. One broken run makes the cell broken.
    """
    first = runs[0]
    covered = Claim(first.claim).covers(
        instances=first.instances, threads=first.threads, hosts=max(run.hosts for run in runs)
    )
    verdict, reason = _verdict(runs, control, covered=covered)
    return Cell(runs=list(runs), expected=SAFE if covered else UNSAFE, verdict=verdict, reason=reason)


def _verdict(runs: Sequence[Run], control: Sequence[Run], *, covered: bool) -> tuple[Verdict, str]:
    broken = [run for run in runs if run.pending == 0 and not run.held]
    if broken:
        kinds = {finding.kind: None for run in broken for finding in run.audit.findings}
        return BROKEN, ", ".join(kinds)
    reason = _find_flaw(runs)
    if reason:
        return INCONCLUSIVE, reason
    if runs[0].instances * runs[0].threads == 1:
        return SAFE, ""
    if not covered:
        return INCONCLUSIVE, "holds, but claims nothing here"
    if not control:
        return INCONCLUSIVE, "no control was run"
    lost = min(run.lost_postings for run in control)
    if lost < CONTROL_LOST_MIN:
        return INCONCLUSIVE, f"control held: it lost {lost} postings, and {CONTROL_LOST_MIN} would prove something"
    return SAFE, ""


def _find_flaw(runs: Sequence[Run]) -> str:
    """Return why these runs show nothing, whatever the control did; nothing if they do."""
    faults = [fault for run in runs for fault in run.faults]
    if faults:
        return f"fault: {faults[0]}"
    pending = max(run.pending for run in runs)
    if pending:
        return f"unfinished: {pending} of the transfers were still pending at the end"
    refused = max(run.refused_payable for run in runs)
    if refused:
        return f"{refused} transfers were refused that every order one by one pays"
    off = [sentence for run in runs for sentence in find_off(Topology.parse(run.topology).distance, run.distance_ms)]
    if off:
        return off[0]
    return "" if any(run.applied for run in runs) else "not one transfer was applied"
