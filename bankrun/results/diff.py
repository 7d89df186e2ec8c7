"""What changed between two saved results, and whether it is more than noise.

A rate or a latency is different each time. Whether two sets of repeated runs differ is asked of their ranks (Mann and
Whitney, 1947), which takes nothing for granted about how such figures are distributed. With few runs the answer is
that there are too few, however far apart they are. What is enumerated rather than measured, a proof, has no noise.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Any

from bankrun.errors import CannotStart
from bankrun.results.models.chaos import Chaos
from bankrun.results.models.comparison import Comparison, Run
from bankrun.results.models.proof import ProofResult
from bankrun.results.store import Result

P_MAX = 0.05
"""Two sets of runs that do not differ look different with this probability: once in twenty comparisons."""
CHANGED, NOISE, TOO_FEW, EXACT, SAME = "changed", "noise", "too few runs", "changed for certain", "the same"

Measure = tuple[str, Callable[[Run], float | None]]
MEASURES: tuple[Measure, ...] = (
    ("transfers/s", lambda run: run.transfers_per_s),
    ("p99 ms", lambda run: run.latency_ms.get("p99")),
    ("lost", lambda run: float(run.lost_postings)),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one cell in both results, and what is to be made of the difference."""

    cell: str
    figure: str
    before: str
    after: str
    finding: str

    @property
    def is_real(self) -> bool:
        """Whether it is more than noise."""
        return self.finding in (CHANGED, EXACT)


def changes(before: Result, after: Result) -> list[Change]:
    """Return every figure that both results have. Raises CannotStart if they are not of one kind."""
    if isinstance(before, Comparison) and isinstance(after, Comparison):
        return list(_diff_comparisons(before, after))
    if isinstance(before, ProofResult) and isinstance(after, ProofResult):
        return list(_diff_proofs(before, after))
    if isinstance(before, Chaos) and isinstance(after, Chaos):
        return list(_diff_chaos(before, after))
    if before.kind == after.kind:
        raise CannotStart(f"there is no diff of two results of the kind {before.kind}")
    raise CannotStart(f"one is of the kind {before.kind}, the other of {after.kind}: they have nothing in common")


def circumstances(before: Result, after: Result) -> list[str]:
    """Return what else was different: load, settings, versions, machine. Then not only the code was changed."""
    one, two = _circumstances(before), _circumstances(after)
    return [
        f"{name}: {one.get(name, 'nothing')} → {two.get(name, 'nothing')}"
        for name in dict.fromkeys((*one, *two))
        if one.get(name) != two.get(name)
    ]


def missing(before: Result, after: Result) -> list[str]:
    """Return the cells that only one of the results has."""
    one, two = _cells(before), _cells(after)
    return [f"only in the first: {' '.join(key)}" for key in one if key not in two] + [
        f"only in the second: {' '.join(key)}" for key in two if key not in one
    ]


def probability(before: Sequence[float], after: Sequence[float]) -> float:
    """Return how probable it is that two sets from one and the same source differ at least as much as these do.

    The rank-sum test, by its normal approximation, with corrections for ties and continuity.
    """
    n, m = len(before), len(after)
    others = sorted(after)
    wins = sum((bisect_left(others, x) + bisect_right(others, x)) / 2 for x in before)  # a tie is half a win
    ties = sum(count**3 - count for count in Counter([*before, *after]).values())
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    distance = max(0.0, abs(wins - n * m / 2) - 0.5)
    return float(2 * NormalDist().cdf(-distance / variance**0.5))


def enough(n: int, m: int) -> bool:
    """Whether so many runs on each side could show a difference at all, if they lay as far apart as can be."""
    return n > 0 and m > 0 and probability([0.0 + i for i in range(n)], [float(n + i) for i in range(m)]) <= P_MAX


def repeats_needed() -> int:
    """Return how many runs each side needs at least."""
    return next(n for n in range(1, 100) if enough(n, n))


def _diff_comparisons(before: Comparison, after: Comparison) -> Iterator[Change]:
    one, two = _cells(before), _cells(after)
    for key in one:
        if key not in two:
            continue
        old, new = one[key], two[key]
        name = " ".join(key)
        yield Change(name, "verdict", old.verdict, new.verdict, _of_verdicts(old.verdict, new.verdict))
        for figure, of in MEASURES:
            values = [[value for run in cell.runs if (value := of(run)) is not None] for cell in (old, new)]
            if all(values):
                yield Change(name, figure, _middle(values[0]), _middle(values[1]), _finding(*values))


def _of_verdicts(before: str, after: str) -> str:
    """Return what a change of verdict is: money that was lost was lost; whether a load broke the control is chance."""
    if before == after:
        return SAME
    return EXACT if "broken" in (before, after) else NOISE


def _finding(before: Sequence[float], after: Sequence[float]) -> str:
    if set(before) == set(after) and len(set(before)) == 1:
        return SAME
    if not enough(len(before), len(after)):
        return TOO_FEW
    return CHANGED if probability(before, after) <= P_MAX else NOISE


def _middle(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    return f"{median(values):,.6g}" + (f" ({least:,.6g} to {most:,.6g})" if least != most else "")


def _diff_proofs(before: ProofResult, after: ProofResult) -> Iterator[Change]:
    one, two = _cells(before), _cells(after)
    for key in one:
        if key in two:
            old, new = (f"{case.broken}/{case.interleavings}" for case in (one[key], two[key]))
            yield Change(" ".join(key), "broken", old, new, SAME if old == new else EXACT)


def _diff_chaos(before: Chaos, after: Chaos) -> Iterator[Change]:
    one, two = _cells(before), _cells(after)
    for key in one:
        if key not in two:
            continue
        for figure in ("verdict", "lost_postings", "duplicates", "pending"):
            old, new = (str(getattr(cells[key], figure)) for cells in (one, two))
            # A fault strikes at random: that it lost nothing this time says little, but a verdict is a verdict.
            finding = _of_verdicts(old, new) if figure == "verdict" else SAME if old == new else TOO_FEW
            yield Change(" ".join(key), figure.replace("_", " "), old, new, finding)


def _cells(result: Result) -> Mapping[tuple[str, ...], Any]:
    if isinstance(result, Comparison):
        return {(cell.shown.strategy, cell.shown.topology): cell for cell in result.cells}
    if isinstance(result, ProofResult):
        return {(case.strategy, case.instances, case.case): case for case in result.cases}
    if isinstance(result, Chaos):
        return {(cell.fault, cell.strategy, cell.topology): cell for cell in result.cells}
    return {}


def _circumstances(result: Result) -> dict[str, str]:
    source = result.provenance
    found = {"bankrun": source.bankrun, "seed": str(source.seed), **_flatten(source.environment)}
    if isinstance(result, (Comparison, Chaos)):
        found |= _flatten(result.workload.options()) | _flatten(source.settings)
    return found


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values by dotted names, without what is different each time: who the instances were."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            flat[prefix + name] = str(value)
    return flat
