"""Results as tables: for the terminal, as Markdown, CSV and JUnit XML."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from bank.strategies import CONTROL, STRATEGIES
from bankrun.errors import CannotStart
from bankrun.quoting import legal
from bankrun.render import distances
from bankrun.render.terminal import Terminal
from bankrun.results.models.bench import Bench, BenchRow
from bankrun.results.models.comparison import Cell, Comparison
from bankrun.results.models.proof import HEADINGS, CaseResult, ProofResult

COLOURS = {"safe": "green", "broken": "red", "inconclusive": "yellow"}


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _verdict(cell: Cell) -> str:
    return cell.verdict + ("!" if cell.contradicts else "")


Column = tuple[str, Callable[[Cell], str]]

NARROW: tuple[Column, ...] = (
    ("strategy", lambda cell: cell.shown.strategy),
    ("topology", lambda cell: cell.shown.topology),
    ("lost", lambda cell: _number(cell.shown.lost_postings)),
    ("drift", lambda cell: f"{cell.shown.drift:+,}" if cell.shown.drift else "0"),
    ("transfers/s", lambda cell: _number(cell.shown.transfers_per_s)),
    ("p99 ms", lambda cell: _number(cell.shown.latency_ms.get("p99"), 1)),
    ("verdict", _verdict),
)
WIDE: tuple[Column, ...] = (
    *NARROW[:-1],
    ("p50 ms", lambda cell: _number(cell.shown.latency_ms.get("p50"), 1)),
    ("wait p50", lambda cell: _number(cell.shown.lock_wait_ms.get("p50"), 1)),
    ("wait p99", lambda cell: _number(cell.shown.lock_wait_ms.get("p99"), 1)),
    ("applied", lambda cell: _number(cell.shown.applied)),
    ("refused", lambda cell: _number(cell.shown.refused)),
    ("pending", lambda cell: _number(cell.shown.pending)),
    ("overdrawn", lambda cell: _number(cell.shown.overdrawn)),
    ("retries", lambda cell: _number(cell.shown.retries)),
    ("deadlocks", lambda cell: _number(cell.shown.deadlocks)),
    ("seconds", lambda cell: _number(cell.shown.seconds, 2)),
    ("claim", lambda cell: cell.shown.claim),
    ("verdict", _verdict),
    ("reason", lambda cell: cell.reason),
)
TEXT_COLUMNS = {"strategy", "topology", "claim", "verdict", "reason"}


def comparison_table(comparison: Comparison, *, wide: bool = False) -> Table:
    """Return the comparison as a table for the terminal."""
    # Not wider than it must be: in a compose log each line begins with the container's name.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    columns = WIDE if wide else NARROW
    for name, _ in columns:
        wraps = name in ("strategy", "reason")  # the names of users' strategies have no limit
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", no_wrap=not wraps, overflow="fold")
    previous = None
    for cell in comparison.cells:
        if previous is not None and cell.shown.topology != previous:
            table.add_section()
        previous = cell.shown.topology
        table.add_row(
            *(Text(show(cell), COLOURS[cell.verdict]) if name == "verdict" else show(cell) for name, show in columns)
        )
    return table


def gallery_markdown(proof: ProofResult, comparison: Comparison) -> str:
    """Return what a proof and a comparison found of each strategy, and what it cost beside no lock at all.

    Raises CannotStart for a comparison without its control, or that does not say where it was made.
    """
    largest = max(comparison.cells, key=lambda cell: cell.shown.instances * cell.shown.threads).shown.topology
    runs = {cell.shown.strategy: cell.shown for cell in comparison.cells if cell.shown.topology == largest}
    if CONTROL not in runs or not runs[CONTROL].transfers_per_s:
        raise CannotStart(f"the comparison has no rate of {CONTROL} on {largest}, beside which speed is told")
    control = runs[CONTROL].transfers_per_s
    head = ["strategy", "claims to hold", "in one", "in two", "paused holder", "retried", f"lost on {largest}", "speed"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for name, strategy in STRATEGIES.items():
        cases = [case for case in proof.cases if case.strategy == name]
        paused = [case for case in cases if case.case == "paused-holder"]
        met = [case for case in cases if case.case != "paused-holder"]
        run = runs.get(name)
        values = [
            f"`{name}`",
            strategy.claim.value,
            _count_broken([case for case in met if case.instances == "same"]),
            _count_broken([case for case in met if case.instances == "two"]),
            _count_broken(paused),
            _number(sum(case.conflicts for case in cases)) if cases else "",
            _number(run.lost_postings) if run else "",
            f"{run.transfers_per_s / control:.2f}" if run else "",
        ]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join([*lines, "", _gallery_footnote(proof, comparison, largest)]) + "\n"


def _gallery_footnote(proof: ProofResult, comparison: Comparison, largest: str) -> str:
    source, load = comparison.provenance, comparison.workload
    total = sum(case.interleavings for case in proof.cases)
    return (
        f"*in one, in two*: broken of all {total:,} interleavings of two transfers (`bankrun prove`), in one "
        f"instance and in two; *retried*: attempts that were run again, over all of them; *lost, speed*: postings "
        f"lost, and transfers/s beside `none`, of {load.transfers:,} transfers over {load.accounts} accounts "
        f"on `{largest}` (`bankrun compare`, seed {source.seed}). {source.started[:10]}, "
        f"bankrun {source.bankrun}, Python {source.told('python')}, {source.servers()}: "
        "small differences in speed are noise."
    )


def _count_broken(cases: Sequence[CaseResult]) -> str:
    if not cases:
        return "n/a"
    broken, total = sum(case.broken for case in cases), sum(case.interleavings for case in cases)
    return f"**{broken}**/{total}" if broken else f"0/{total}"


def comparison_svg(comparison: Comparison) -> str:
    """Return the table as a picture that fetches nothing: Rich's own would load its font from elsewhere."""
    console = Terminal(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print(comparison_table(comparison))
    picture = console.export_svg(title=f"bankrun compare --seed {comparison.provenance.seed}")
    return legal(re.sub(r"@font-face\s*\{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code,", ""))


def proof_columns(results: Sequence[CaseResult]) -> tuple[list[str], list[list[str]]]:
    """Return a proof as a matrix: a row for each strategy and number of instances, a column for each case."""
    cases = list(dict.fromkeys(result.case for result in results))
    rows: dict[tuple[str, str], dict[str, CaseResult]] = {}
    for result in results:
        rows.setdefault((result.strategy, result.instances), {})[result.case] = result
    lines = []
    for (strategy, instances), found in rows.items():
        counts = [f"{found[case].broken}/{found[case].interleavings}" if case in found else "n/a" for case in cases]
        conflicts = sum(result.conflicts for result in found.values())
        lines.append([strategy, instances, *counts, _number(conflicts)])
    return ["strategy", "in", *(HEADINGS.get(case, case) for case in cases), "retried"], lines


def proof_tables(results: Sequence[CaseResult], width: int) -> list[Table]:
    """Return a proof for a terminal of this width: broken interleavings of all, red where a claim is refuted.

    Where not all columns fit, the rest of them are a table below.
    """
    names, lines = proof_columns(results)
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, [name, *column])) + 2 for name, column in zip(names, columns, strict=True)]
    refuted = {(result.strategy, result.instances) for result in results if result.contradicts}
    tables = []
    for block in fit_columns(widths[2:], width - sum(widths[:2])):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
        shown = [0, 1, *(number + 1 for number in block)]
        for number in shown:
            table.add_column(names[number], justify="left" if number < 2 else "right", no_wrap=True)
        for line in lines:
            cells = [_red_if_broken(line[number]) for number in shown]
            table.add_row(*cells, style="bold" if (line[0], line[1]) in refuted else None)
        tables.append(table)
    return tables


def _red_if_broken(cell: str) -> Text:
    return Text(cell, "red" if re.match("[1-9][0-9]*/", cell) else "")


def fit_columns(widths: Sequence[int], room: int) -> list[list[int]]:
    """Return the columns of each of several tables, so that all fit into the room; numbered from 1."""
    blocks: list[list[int]] = []
    left = 0
    for number, needed in enumerate(widths, start=1):
        if not blocks or left < needed:
            blocks.append([])
            left = room
        blocks[-1].append(number)
        left -= needed
    return blocks


def proof_markdown(results: Sequence[CaseResult]) -> str:
    """Return a proof as a Markdown table."""
    names, lines = proof_columns(results)
    head = ["| " + " | ".join(names) + " |", "|---|---|" + "---:|" * (len(names) - 2)]
    return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown table, with what it takes to run it again."""
    lines = ["| " + " | ".join(name for name, _ in NARROW) + " |"]
    lines.append("|" + "|".join("---" if name in TEXT_COLUMNS else "---:" for name, _ in NARROW) + "|")
    lines += ["| " + " | ".join(show(cell) for _, show in NARROW) + " |" for cell in comparison.cells]
    return "\n".join([*lines, "", comparison.provenance.sentence()]) + "\n"


def benchmark_table(rows: Sequence[BenchRow]) -> Table:
    """Return a benchmark's rows as a table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("contestant")
    for name in ("on", "chunk", "accounts", "median /s", "of pgbench", "of the bound"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = (row.ratio_to_pgbench, row.ratio_to_bound)
        table.add_row(
            row.name,
            row.topology,
            f"{row.chunk:,}",
            f"{row.accounts:,}",
            _number(row.transfers_per_s.median),
            *("" if share is None else f"{share:.0%}" for share in shares),
        )
    return table


def distance_table(result: Bench) -> Table:
    """Return rates by strategy and distance as a table for the terminal, with the round trips of each strategy."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    places, grid = distances.gather(result)
    table.add_column("transfers/s")
    for name in ("accounts", "round trips", "with a lock", *(f"{place} ms" for place in places)):
        table.add_column(name, justify="right")
    for (name, accounts), rates in grid.items():
        trips = (result.round_trips or {})[name]
        cells = ("" if rate is None else _number(rate) for rate in rates)
        table.add_row(name, f"{accounts:,}", str(trips.total), str(trips.holding), *cells)
    return table


CSV_COLUMNS = (
    *(
        "strategy",
        "topology",
        "instances",
        "threads",
        "repeat",
        "applied",
        "refused",
        "failed",
        "pending",
        "duplicates",
    ),
    *("opening_total", "closing_total", "drift", "lost_postings", "lost_delta", "unexplained", "overdrawn"),
    *("retries", "deadlocks", "serialization_failures", "conflicts", "seconds", "transfers_per_s", "claim"),
)


def comparison_csv(comparison: Comparison) -> str:
    """Return every run as a line of CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    percentiles = ("p50", "p95", "p99", "max")
    writer.writerow([*CSV_COLUMNS, *(f"latency_{name}_ms" for name in percentiles), "expected", "verdict", "reason"])
    for cell in comparison.cells:
        for run in cell.runs:
            figures = [getattr(run, name) for name in CSV_COLUMNS]
            latency = [run.latency_ms.get(name, "") for name in percentiles]
            writer.writerow([*figures, *latency, cell.expected, cell.verdict, cell.reason])
    return text.getvalue()


def comparison_junit(comparison: Comparison) -> str:
    """Return the comparison as JUnit XML: a cell is a test case, and it fails where a claim is refuted."""
    suite = ET.Element("testsuite", name="bankrun compare", timestamp=comparison.provenance.started)
    for cell in comparison.cells:
        run = cell.shown
        case = ET.SubElement(
            suite, "testcase", classname="bankrun", name=f"{run.strategy} on {run.topology}", time=f"{run.seconds:.3f}"
        )
        if cell.contradicts:
            message = f"claims to hold {run.claim}, but was found broken: {cell.reason}"
            ET.SubElement(case, "failure", message=message).text = f"lost {run.lost_postings}, drift {run.drift}"
        elif cell.verdict == "inconclusive":
            ET.SubElement(case, "skipped", message=cell.reason)
    suite.set("tests", str(len(comparison.cells)))
    suite.set("failures", str(len(comparison.contradictions)))
    suite.set("skipped", str(len(comparison.inconclusive)))
    ET.indent(suite)
    return legal(ET.tostring(suite, encoding="unicode", xml_declaration=True)) + "\n"
