"""The matrices of faults and of proofs, in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bank.strategies import STRATEGIES
from bankrun.proof.cases import CASES
from bankrun.render.fault_tables import chaos_tables, soak_table
from bankrun.render.tables import proof_tables
from bankrun.results.models.chaos import ChaosCell
from bankrun.results.models.proof import CaseResult
from bankrun.results.models.soak import Strike
from tests.results import soak

FAULTS = ("kill-between-writes", "cut")


def cell(fault: str, strategy: str, lost: int) -> ChaosCell:
    """Return a cell that is broken if something was lost."""
    return ChaosCell(
        fault=fault,
        strategy=strategy,
        topology="2x4",
        verdict="broken" if lost else "safe",
        expected="safe",
        reason="",
        applied=600,
        refused=0,
        failed=0,
        pending=0,
        lost_postings=lost,
        drift=0,
        duplicates=0,
        unexplained=0,
        extra_deliveries=0,
        republished=0,
        retries=0,
        recovery_s=12.3,
        seconds=20.0,
        rounds=1,
    )


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("count", [1, 7, len(STRATEGIES)])
def test_nothing_in_it_is_cut_off_however_many_strategies_there_are(width: int, count: int) -> None:
    names = list(STRATEGIES)[:count]
    cells = [
        cell(fault, name, 1_000 + number if fault == "cut" else 0)
        for fault in FAULTS
        for number, name in enumerate(names)
    ]
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(*chaos_tables(cells, console.width), sep="")
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "…" not in printed
    assert all(len(line) <= width for line in printed.splitlines())
    words = printed.split()
    assert words.count("12.3") == count
    assert all(f"-{1_000 + number:,}" in words for number in range(count))


def test_without_a_cell_there_is_no_table() -> None:
    assert chaos_tables([], 80) == []


@pytest.mark.parametrize(("pending", "in_vain"), [(0, True), (90, False)])
def test_faults_that_strike_with_nothing_left_to_do_are_told(pending: int, *, in_vain: bool) -> None:
    result = soak()
    result.struck = [Strike("kill", 10, 0.5, pending)]
    console = Console(width=120, file=io.StringIO(), highlight=False)
    console.print(soak_table(result))
    assert isinstance(console.file, io.StringIO)
    assert ("1 fault, with nothing left to do: give more transfers" in console.file.getvalue()) is in_vain


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 2)])
def test_a_proof_that_is_too_wide_is_told_in_several_tables_and_whole(width: int, tables: int) -> None:
    name = "package.module:AStrategyOfMine"
    results = [CaseResult(name, "two", case, 2, "everywhere", "safe", 324, 160) for case in CASES]
    printed = proof_tables(results, width)
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(*printed, sep="")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().split().count("160/324") == len(CASES)
    assert len(printed) >= tables
