"""Proofs and faults as grids: a field for each strategy and what it met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bankrun.render.grid import Field, draw_grid
from bankrun.results.models.chaos import ChaosCell
from bankrun.results.models.proof import HEADINGS, CaseResult


def proof_matrix(name: str, cases: Sequence[CaseResult]) -> str:
    """Return a proof as a matrix: strategies down, cases across, once for each number of instances."""
    sides = list(dict.fromkeys(case.instances for case in cases))
    columns = sorted(dict.fromkeys((case.instances, case.case) for case in cases), key=lambda one: sides.index(one[0]))
    broken, total = sum(case.broken for case in cases), sum(case.interleavings for case in cases)
    return draw_grid(
        name,
        "Interleavings",
        f"{broken:,} of {total:,} are broken: {_name_each(case.strategy for case in cases if case.broken)}.",
        list(dict.fromkeys(case.strategy for case in cases)),
        {(where, case): (_say_where(where), HEADINGS.get(case, case)) for where, case in columns},
        {
            (case.strategy, (case.instances, case.case)): Field(
                "broken" if case.broken else "safe",
                f"{case.broken}/{case.interleavings}",
                case.contradicts,
                f"{case.strategy}, {case.case}, {_say_where(case.instances)}: {case.broken} of {case.interleavings} are"
                " broken",
            )
            for case in cases
        },
    )


def fault_matrix(name: str, cells: Sequence[ChaosCell]) -> str:
    """Return what faults did as a matrix: faults down, strategies across."""
    broken = [cell for cell in cells if cell.verdict == "broken"]
    return draw_grid(
        name,
        "Faults",
        f"{len(broken)} of {len(cells)} cells are broken: {_name_each(cell.strategy for cell in broken)}.",
        list(dict.fromkeys(cell.fault for cell in cells)),
        {(cell.topology, cell.strategy): (cell.topology, cell.strategy) for cell in cells},
        {
            (cell.fault, (cell.topology, cell.strategy)): Field(
                cell.verdict,
                f"{cell.lost_postings:,} lost" if cell.lost_postings else cell.verdict,
                refuted=False,
                words=_describe(cell),
            )
            for cell in cells
        },
    )


def _describe(cell: ChaosCell) -> str:
    return (
        f"{cell.fault}, {cell.strategy} on {cell.topology}: {cell.verdict}, {cell.lost_postings} postings lost, "
        f"{cell.duplicates} applied twice, {cell.pending} pending, {cell.extra_deliveries} extra deliveries"
    )


def _say_where(instances: str) -> str:
    return {"same": "in one instance", "two": "in two instances"}.get(instances, instances)


def _name_each(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "none"
