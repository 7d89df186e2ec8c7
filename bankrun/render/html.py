"""A saved result as one HTML file: it works offline, without JavaScript, on paper and on a phone.

What it shows first is the verdict in a sentence, then the table, then the pictures, then how it was measured. Its
content-security policy forbids everything from outside; of scripts it allows two by their hashes: ours, and Plotly's,
which is taken from the installed package and travels compressed.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bankrun.render.figures import Figure, figures, listed
from bankrun.render.svg import ALONE, SHAPES
from bankrun.render.tables import NARROW
from bankrun.results.models import Cell, Comparison
from bankrun.results.store import Faults, Proof, Result

NOTES_MAX = 12
NAMED_MAX = 6
"""So many strategies are named in a sentence; of more only the number is said, and the table has the names."""
LEGEND = (
    "3x8 is three instances with eight threads each. Broken: money was lost there, whether the strategy claims to keep"
    " it there or not. Safe: it claims to, and did, under a load that broke the strategy none."
)
HERE = Path(__file__).parent
PAPER = "@media print { :root { " + ALONE.partition("{")[2].partition("}")[0] + "} }"
"""On paper the colours are the light ones, whatever the screen's."""


def report(result: Result) -> str:
    """Return the report of a result."""
    found = figures(result)
    library = _library() if any(figure.plot is not None for figure in found) else Library("", _hash(""))
    script = (HERE / "report.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)} {library.hash}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    title, tone, verdict, notes = headline(result)
    return pages.get_template("report.html").render(
        title=title,
        tone=tone,
        verdict=verdict,
        notes=notes,
        policy=policy,
        verdicts=("safe", "broken", "broken!", "inconclusive"),
        style=Markup(ALONE + PAPER + SHAPES + (HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        summary=_shown(summary(result)),
        figures=[_shown(figure) for figure in found],
        how=_shown(Figure("how", "How it was measured", "", ("what", "value"), list(_how(result)))),
        command=result.command if isinstance(result, Comparison) else result.source.command,
        library=library.packed,
        script=Markup(script),  # noqa: S704 - ours
    )


class Library(NamedTuple):
    """Plotly's script, compressed as base64, and the hash by which a policy allows it."""

    packed: str
    hash: str


@cache
def _library() -> Library:
    source = get_plotlyjs()
    return Library(base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode(), _hash(source))


def headline(result: Result) -> tuple[str, str, str, list[str]]:
    """Return a result's title, its tone (a verdict's name), its verdict in a sentence, and what to know besides."""
    if isinstance(result, Comparison):
        return _comparison_headline(result)
    if isinstance(result, Proof):
        refuted = dict.fromkeys(case.strategy for case in result.cases if case.contradicts)
        broken = dict.fromkeys(case.strategy for case in result.cases if case.broken)
        total = sum(case.interleavings for case in result.cases)
        sentence = f"Of {total:,} interleavings, run on a real Postgres, some are broken for {listed(list(broken))}. "
        sentence += f"Refuted: {listed(list(refuted))}." if refuted else "No claim is refuted."
        truncated = sum(case.truncated for case in result.cases)
        notes = [f"{truncated:,} were cut short, because a transfer was tried too often."] if truncated else []
        notes += [f"{name} was not proved: {_flat(fault)}." for name, fault in result.source.faults.items()]
        return "Every order in which transfers can meet", "broken" if refuted else "safe", sentence, notes
    broken = dict.fromkeys(cell.strategy for cell in result.cells if cell.verdict == "broken")
    lost = sum(cell.lost_postings for cell in result.cells)
    twice = sum(cell.duplicates for cell in result.cells)
    faults = len({cell.fault for cell in result.cells})
    sentence = f"Under {faults} faults, broken: {listed(list(broken)) if broken else 'no strategy'}; "
    sentence += f"{lost:,} postings were lost and {twice:,} transfers took effect twice."
    failed = [cell for cell in result.cells if cell.expected == "safe" and cell.verdict != "safe"]
    notes = [f"{cell.strategy} under {cell.fault} is {cell.verdict}: {cell.reason}." for cell in failed[:NOTES_MAX]]
    notes += [f"{fault} was not run: {why}." for fault, why in result.source.not_run.items()]
    tone = "broken" if any(cell.verdict == "broken" for cell in failed) else "" if broken else "safe"
    return "What faults do to each strategy", tone, sentence, notes


def _comparison_headline(comparison: Comparison) -> tuple[str, str, str, list[str]]:
    by_verdict: dict[str, list[Cell]] = {"safe": [], "broken": [], "inconclusive": []}
    for cell in comparison.cells:
        by_verdict[cell.verdict].append(cell)
    said = {"broken": "did not keep the money", "safe": "kept the money", "inconclusive": "showed neither"}
    parts = [f"{_where(by_verdict[verdict])} {words}" for verdict, words in said.items() if by_verdict[verdict]]
    parts[:1] = _losses(by_verdict["broken"]) or parts[:1]
    refuted = comparison.contradictions
    sentence = "; ".join(parts) + ". "
    sentence += (
        f"Refuted: the claim of {_where(refuted)}." if refuted else "No strategy lost money where it claims to keep it."
    )
    tone = "broken" if refuted else "inconclusive" if not by_verdict["safe"] else "" if by_verdict["broken"] else "safe"
    notes = [
        f"{cell.shown.strategy} on {cell.shown.topology} is inconclusive: {cell.reason}."
        for cell in by_verdict["inconclusive"]
    ]
    load = comparison.workload
    title = f"{load.transfers:,} transfers over {load.accounts:,} accounts"
    return title, tone, sentence, notes


def _losses(broken: Sequence[Cell]) -> list[str]:
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
    return [f"{name} lost {listed(places)}" for name, places in lost.items()]


def _where(cells: Sequence[Cell]) -> str:
    places: dict[str, list[str]] = {}
    for cell in cells:
        places.setdefault(cell.shown.strategy, []).append(cell.shown.topology)
    if len(places) > NAMED_MAX:
        return f"{len(places)} strategies"
    return listed([f"{name} ({', '.join(topologies)})" for name, topologies in places.items()])


def summary(result: Result) -> Figure:
    """Return the table that comes first."""
    if isinstance(result, Comparison):
        # The verdict stands where a phone shows it: third, not last.
        columns = (*NARROW[:2], NARROW[-1], *NARROW[2:-1])
        rows = [tuple(show(cell) for _, show in columns) for cell in result.cells]
        return Figure("table", "The verdicts", LEGEND, tuple(name for name, _ in columns), rows)
    if isinstance(result, Proof):
        totals: dict[tuple[str, str], list[int]] = {}
        for case in result.cases:
            total = totals.setdefault((case.strategy, case.instances), [0, 0, 0, 0])
            for at, value in enumerate((case.broken, case.interleavings, case.conflicts, case.deadlocks)):
                total[at] += value
        lines = [(*key, *(f"{value:,}" for value in values)) for key, values in totals.items()]
        return Figure("table", "The counts", "", ("strategy", "in", "broken", "of", "retried", "deadlocks"), lines)
    worst: dict[str, list[int]] = {}
    for cell in result.cells:
        total = worst.setdefault(cell.strategy, [0, 0, 0, 0, 0])
        counted = (cell.verdict == "broken", cell.lost_postings, cell.duplicates, cell.pending, cell.extra_deliveries)
        for at, value in enumerate(counted):
            total[at] += value
    head = ("strategy", "faults that broke it", "lost", "twice", "pending", "extra deliveries")
    return Figure(
        "table", "The counts", "", head, [(name, *(f"{n:,}" for n in found)) for name, found in worst.items()]
    )


def _how(result: Result) -> Iterator[tuple[str, str]]:
    """Yield what it takes to believe a result, and to repeat it."""
    source: Any = result if isinstance(result, Comparison) else result.source
    yield "bankrun", source.bankrun
    if source.started:
        yield "started", source.started
    if source.seed is not None:
        yield "seed", str(source.seed)
    load = asdict(result.workload) if isinstance(result, Comparison) else result.source.workload
    if load:
        yield "load", _flat(load)
    if source.settings:
        yield "time limits", _flat(source.settings)
    if isinstance(result, Faults):
        yield "faults in each cell", str(result.source.rounds or "unknown")
    if isinstance(result, Comparison):
        yield "runs of each cell", f"{max(len(cell.runs) for cell in result.cells)}"
    for name, value in source.environment.items():
        if name != "instances":
            yield name.replace("_", " "), _flat(value)
    instances = source.environment.get("instances")
    if isinstance(instances, list) and instances and all(isinstance(one, Mapping) for one in instances):
        yield "instances", ", ".join(f"{one.get('instance')} ({one.get('threads')} threads)" for one in instances)


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(_flat(inner) for inner in value)
    return str(value)


def _shown(figure: Figure) -> dict[str, Any]:
    """Return a figure for the template, with ``words``: the columns that hold text and stand to the left."""
    plain = {name: getattr(figure, name) for name in Figure.__slots__}
    words = {at for row in figure.rows for at, value in enumerate(row) if re.search(r"[^\W\d_]{2}", value)}
    return {**plain, "svg": Markup(figure.svg), "plot": _json(figure), "words": words}  # noqa: S704 - our own SVG


def _json(figure: Figure) -> Markup:
    """Return a figure's plot for a script element: a ``</script>`` in a name must not end it."""
    return Markup("" if figure.plot is None else figure.plot.to_json().replace("<", "\\u003c"))  # noqa: S704


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
