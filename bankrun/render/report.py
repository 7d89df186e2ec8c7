"""A saved result as a report: its verdict in words, its table, its figures, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bankrun.errors import CannotStart
from bankrun.render.figures import figures
from bankrun.render.html import Figure, Headline, render_page
from bankrun.render.story import join_names
from bankrun.render.tables import NARROW
from bankrun.render.trial_page import trial_page
from bankrun.results.models.chaos import Chaos, ChaosCell
from bankrun.results.models.comparison import Cell, Comparison
from bankrun.results.models.proof import ProofResult
from bankrun.results.models.trial import TrialResult
from bankrun.results.store import Result

NOTES_MAX = 12
NAMED_MAX = 6
"""So many strategies are named in a sentence; of more only the number is said, and the table has the names."""
LEGEND = (
    "3x8 is three instances with eight threads each. Broken: money was lost there, whether the strategy claims to keep"
    " it there or not. Safe: it claims to, and did, under a load that broke the strategy none."
)


def report(result: Result) -> str:
    """Return the report of a result. Raises CannotStart for a kind that has none."""
    if isinstance(result, TrialResult):
        return trial_page(result)
    if not isinstance(result, (Comparison, ProofResult, Chaos)):
        raise CannotStart(f"reports are made of a comparison, a proof, chaos or a trial, and this is a {result.kind}")
    found = figures(result)
    return render_page(headline(result), summary(result), found, list(_how(result)), result.provenance.command)


def headline(result: Result) -> Headline:
    """Return a result's verdict in words. Raises CannotStart for a kind that has none."""
    if isinstance(result, Comparison):
        return _comparison_headline(result)
    if isinstance(result, ProofResult):
        return _proof_headline(result)
    if isinstance(result, Chaos):
        return _chaos_headline(result)
    raise CannotStart(f"there is no report of a {result.kind}")


def _proof_headline(proof: ProofResult) -> Headline:
    refuted = dict.fromkeys(case.strategy for case in proof.contradictions)
    broken = dict.fromkeys(case.strategy for case in proof.cases if case.broken)
    total = sum(case.interleavings for case in proof.cases)
    sentence = f"Of {total:,} interleavings, run on a real Postgres, some are broken for {join_names(list(broken))}. "
    sentence += f"Refuted: {join_names(list(refuted))}." if refuted else "No claim is refuted."
    truncated = sum(case.truncated for case in proof.cases)
    notes = [f"{truncated:,} were cut short, because a transfer was tried too often."] if truncated else []
    notes += [f"{name} was not proved: {fault}." for name, fault in proof.faults.items()]
    tone = "broken" if refuted else "safe"
    return Headline("Every order in which transfers can meet", tone, sentence, notes)


def _chaos_headline(chaos: Chaos) -> Headline:
    broken = dict.fromkeys(cell.strategy for cell in chaos.cells if cell.verdict == "broken")
    lost = sum(cell.lost_postings for cell in chaos.cells)
    twice = sum(cell.duplicates for cell in chaos.cells)
    faults = len({cell.fault for cell in chaos.cells})
    sentence = f"Under {faults} faults, broken: {join_names(list(broken)) if broken else 'no strategy'}; "
    sentence += f"{lost:,} postings were lost and {twice:,} transfers took effect twice."
    failed = [cell for cell in chaos.cells if cell.expected == "safe" and cell.verdict != "safe"]
    notes = [f"{cell.strategy} under {cell.fault} is {cell.verdict}: {cell.reason}." for cell in failed[:NOTES_MAX]]
    notes += [f"{fault} was not run: {why}." for fault, why in chaos.not_run.items()]
    tone = "broken" if any(cell.verdict == "broken" for cell in failed) else "" if broken else "safe"
    return Headline("What faults do to each strategy", tone, sentence, notes)


def _comparison_headline(comparison: Comparison) -> Headline:
    by_verdict: dict[str, list[Cell]] = {"safe": [], "broken": [], "inconclusive": []}
    for cell in comparison.cells:
        by_verdict[cell.verdict].append(cell)
    words = {"broken": "did not keep the money", "safe": "kept the money", "inconclusive": "showed neither"}
    parts = [f"{_name_places(by_verdict[verdict])} {said}" for verdict, said in words.items() if by_verdict[verdict]]
    parts[:1] = _name_losses(by_verdict["broken"]) or parts[:1]
    refuted = comparison.contradictions
    sentence = "; ".join(parts) + ". "
    sentence += (
        f"Refuted: the claim of {_name_places(refuted)}."
        if refuted
        else "No strategy lost money where it claims to keep it."
    )
    tone = "broken" if refuted else "inconclusive" if not by_verdict["safe"] else "" if by_verdict["broken"] else "safe"
    notes = [
        f"{cell.shown.strategy} on {cell.shown.topology} is inconclusive: {cell.reason}."
        for cell in by_verdict["inconclusive"]
    ]
    load = comparison.workload
    title = f"{load.transfers:,} transfers over {load.accounts:,} accounts"
    return Headline(title, tone, sentence, notes)


def _name_losses(broken: Sequence[Cell]) -> list[str]:
    """Return how much each broken strategy lost, and where, if that is all that was wrong and fits into a sentence."""
    lost: dict[str, list[str]] = {}
    for cell in broken:
        run = cell.shown
        if not run.lost_postings:
            return []
        where = f"{run.lost_postings:,} of {2 * run.applied:,} postings on {run.topology}"
        lost.setdefault(run.strategy, []).append(where)
    if len(lost) > NAMED_MAX:
        return []
    return [f"{name} lost {join_names(places)}" for name, places in lost.items()]


def _name_places(cells: Sequence[Cell]) -> str:
    places: dict[str, list[str]] = {}
    for cell in cells:
        places.setdefault(cell.shown.strategy, []).append(cell.shown.topology)
    if len(places) > NAMED_MAX:
        return f"{len(places)} strategies"
    return join_names([f"{name} ({', '.join(topologies)})" for name, topologies in places.items()])


def summary(result: Result) -> Figure:
    """Return the table that comes first. Raises CannotStart for a kind that has none."""
    if isinstance(result, Comparison):
        # The verdict stands where a phone shows it: third, not last.
        columns = (*NARROW[:2], NARROW[-1], *NARROW[2:-1])
        rows = [tuple(show(cell) for _, show in columns) for cell in result.cells]
        return Figure("table", "The verdicts", LEGEND, tuple(name for name, _ in columns), rows)
    head: tuple[str, ...]
    if isinstance(result, ProofResult):
        head = ("strategy", "in", "broken", "of", "retried", "deadlocks")
        counted = [
            ((case.strategy, case.instances), (case.broken, case.interleavings, case.conflicts, case.deadlocks))
            for case in result.cases
        ]
        return Figure("table", "The counts", "", head, _add_up(counted))
    if isinstance(result, Chaos):
        head = ("strategy", "faults that broke it", "lost", "twice", "pending", "extra deliveries")
        return Figure(
            "table", "The counts", "", head, _add_up([((cell.strategy,), _count(cell)) for cell in result.cells])
        )
    raise CannotStart(f"there is no report of a {result.kind}")


def _count(cell: ChaosCell) -> tuple[int, ...]:
    return (cell.verdict == "broken", cell.lost_postings, cell.duplicates, cell.pending, cell.extra_deliveries)


def _add_up(counted: Sequence[tuple[tuple[str, ...], tuple[int, ...]]]) -> list[tuple[str, ...]]:
    """Return a line for each name, with the sums of its counts."""
    totals: dict[tuple[str, ...], list[int]] = {}
    for key, counts in counted:
        total = totals.setdefault(key, [0] * len(counts))
        for at, count in enumerate(counts):
            total[at] += count
    return [(*key, *(f"{count:,}" for count in total)) for key, total in totals.items()]


def _how(result: Result) -> Iterator[tuple[str, str]]:
    """Yield what it takes to believe a result, and to repeat it."""
    source = result.provenance
    yield "bankrun", source.bankrun
    if source.started:
        yield "started", source.started + ("; cut short: what is not here was not reached" if source.cut_short else "")
    if source.seed is not None:
        yield "seed", str(source.seed)
    if isinstance(result, (Comparison, Chaos)):
        yield "load", _flatten(result.workload.options())
    if source.settings:
        yield "time limits", _flatten(source.settings)
    if isinstance(result, Chaos):
        yield "faults in each cell", str(result.rounds)
    if isinstance(result, Comparison):
        yield "runs of each cell", f"{max(len(cell.runs) for cell in result.cells)}"
    for name, value in source.environment.items():
        if name != "instances":
            yield name.replace("_", " "), _flatten(value)
    instances = source.environment.get("instances")
    if isinstance(instances, list) and instances and all(isinstance(one, Mapping) for one in instances):
        yield "instances", ", ".join(f"{one.get('instance')} ({one.get('threads')} threads)" for one in instances)


def _flatten(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flatten(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(_flatten(inner) for inner in value)
    return str(value)
